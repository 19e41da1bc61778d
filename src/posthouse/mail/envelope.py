"""Envelope, Recipient, Origin (RFC 5321 2.3.1): who handed mail in, from whom, to whom, and by what right."""

import functools

import msgspec

from posthouse.mail.grant import Grant
from posthouse.smtp.address import Path
from posthouse.smtp.event import BodyType, Notify, Ret

_ALPHABET = "0123456789bcdfghjklmnpqrstvwxyz"  # no a, e, o, u: an id never spells a word
_BASE = len(_ALPHABET)
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)  # two digits at a time: half the divisions
_SHARD_BITS = 8
_SEQUENCE_BITS = 12


class QueueIds:
    """Hands out queue ids of one shard: milliseconds since 1970, the shard, a sequence; unique and growing within it.

    The clock is given (`now`, milliseconds since 1970); ids stay unique when it jumps back.
    """

    def __init__(self, shard: int, last: int = 0) -> None:
        if not 0 <= shard < 1 << _SHARD_BITS:
            raise ValueError(f"shard {shard} is not between 0 and {(1 << _SHARD_BITS) - 1}")
        self._shard = shard << _SEQUENCE_BITS
        self._tick = last >> (_SHARD_BITS + _SEQUENCE_BITS)
        self._sequence = last & ((1 << _SEQUENCE_BITS) - 1)

    def next(self, now: int) -> int:
        """A new id, greater than all before it from this shard."""
        if now > self._tick:
            self._tick, self._sequence = now, 0
        elif self._sequence + 1 < 1 << _SEQUENCE_BITS:
            self._sequence += 1
        else:
            self._tick, self._sequence = self._tick + 1, 0
        return self._tick << (_SHARD_BITS + _SEQUENCE_BITS) | self._shard | self._sequence


def shard_of(queue_id: int) -> int:
    """The shard that holds a message."""
    return queue_id >> _SEQUENCE_BITS & ((1 << _SHARD_BITS) - 1)


def first_id_at(now: int) -> int:
    """The least id that may be handed out from then on (milliseconds since 1970)."""
    return max(now, 0) << (_SHARD_BITS + _SEQUENCE_BITS)


def arrival_of(queue_id: int) -> int:
    """When the id was handed out, in milliseconds since 1970."""
    return queue_id >> (_SHARD_BITS + _SEQUENCE_BITS)


@functools.lru_cache(maxsize=4096)  # asked some five times while a message is under way
def queue_id_text(queue_id: int) -> str:
    """The id as people see it: short, lower case, sorts by age within a shard."""
    digits = ""
    while queue_id:
        queue_id, pair = divmod(queue_id, len(_PAIRS))
        digits = _PAIRS[pair] + digits
    return digits.lstrip(_ALPHABET[0]) or _ALPHABET[0]


def parse_queue_id(text: str) -> int:
    """The number behind a queue id. ValueError when it is none."""
    value = 0
    for character in text.lower():
        value = value * _BASE + _ALPHABET.index(character)
    if not text or value >= 1 << 63:
        raise ValueError(f"{text!r} is not a queue id")
    return value


class Origin(msgspec.Struct, frozen=True):
    """How the mail entered our ADMD (RFC 5598 2.3).

    `client` is the address after PROXY, "" for the local socket and for our own notifications. `protocol` is the
    with-keyword of RFC 3848 ("ESMTPSA"). `login` and `local_uid` (-1: none) say who, `tls` which version and cipher.
    """

    client: str
    protocol: str
    hello_name: str = ""
    login: str = ""
    tls: str = ""
    listener: str = ""
    local_uid: int = -1
    port: int = 0


class Recipient(msgspec.Struct, frozen=True):
    """One forward-path with the grant that let it in. `original_recipient` as in RcptParameters, "" if not given."""

    forward_path: Path
    grant: Grant
    notify: Notify = Notify.DEFAULT
    original_recipient: str = ""


class Envelope(msgspec.Struct, frozen=True):
    """All about a message that is not in it. `arrived_at` is in milliseconds since 1970; never changed after accept."""

    queue_id: int
    reverse_path: Path
    recipients: tuple[Recipient, ...]
    origin: Origin
    arrived_at: int
    body: BodyType = BodyType.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret = Ret.DEFAULT
    envelope_id: str = ""

    @property
    def id_text(self) -> str:
        """The queue id as shown to people."""
        return queue_id_text(self.queue_id)
