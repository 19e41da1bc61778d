"""What is written in rows besides plain columns: the envelope's rest, and the events of a message's history, as JSON."""

import re
import zlib
from collections.abc import Iterable

import msgspec

from posthouse.mail.envelope import Envelope, Origin
from posthouse.mail.outcome import Deferred, Delivered, Failed, Outcome, Relayed
from posthouse.mail.reason import Reason, Slug
from posthouse.smtp.address import NULL_PATH, AddressError, Path
from posthouse.smtp.event import BodyType, Ret
from posthouse.spool.api import Fate, Retry


class EnvelopeRest(msgspec.Struct, frozen=True, omit_defaults=True):
    """`message.envelope`: what of an Envelope has no column of its own."""

    origin: Origin
    body: BodyType = BodyType.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret = Ret.DEFAULT
    envelope_id: str = ""


class GrantedRecipient(msgspec.Struct, frozen=True):
    """A recipient as the history remembers it: the forward-path for people, the grant's kind and its words."""

    forward_path: str
    grant: str
    words: str


class Accepted(msgspec.Struct, frozen=True, tag_field="event", tag="accepted"):
    """A message entered the queue. Times are milliseconds since 1970."""

    at: int
    reverse_path: str
    size_bytes: int
    origin: Origin
    recipients: tuple[GrantedRecipient, ...]


class Attempted(msgspec.Struct, frozen=True, tag_field="event", tag="attempt"):
    """An attempt ended for one recipient. `next_at` is 0 when the recipient is settled."""

    at: int
    recipient: int
    outcome: str
    status: str
    slug: str
    words: str
    remote: str
    diagnostic: str
    attempts: int
    next_at: int


class Acted(msgspec.Struct, frozen=True, tag_field="event", tag="operator"):
    """An operator did something to the recipients named: hold, release, retry, reroute, bounce, delete."""

    at: int
    verb: str
    recipients: tuple[int, ...]
    argument: str = ""


class Withdrawn(msgspec.Struct, frozen=True, tag_field="event", tag="withdrawn"):
    """The message could not be stored after all and its client was told so."""

    at: int
    words: str


HistoryEvent = Accepted | Attempted | Acted | Withdrawn

_json = msgspec.json.Encoder()
_event_decoder: msgspec.json.Decoder[HistoryEvent] = msgspec.json.Decoder(HistoryEvent)
_rest_decoder = msgspec.json.Decoder(EnvelopeRest)
_attempted_decoder = msgspec.json.Decoder(Attempted)
_OUTCOMES: dict[type[Outcome], str] = {
    Relayed: "relayed",
    Delivered: "delivered",
    Deferred: "deferred",
    Failed: "failed",
}
_OUTCOME_TYPES = {name: kind for kind, name in _OUTCOMES.items()}


def clean(text: str) -> str:
    """A text that UTF-8 can hold: octets that were no UTF-8 (surrogates here) become visible escapes."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def _encode(value: msgspec.Struct) -> str:
    try:
        return _json.encode(value).decode()
    except UnicodeEncodeError:
        return _json.encode(_clean_tree(msgspec.to_builtins(value))).decode()


def _clean_tree(value: object) -> object:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {key: _clean_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean_tree(item) for item in value]
    return value


def encode_event(event: HistoryEvent) -> str:
    """An event as its JSON text."""
    return _encode(event)


def decode_event(text: str) -> HistoryEvent:
    """The event again. msgspec.ValidationError when it is none."""
    return _event_decoder.decode(text)


def encode_rest(envelope: Envelope) -> str:
    """`message.envelope` of an Envelope."""
    rest = EnvelopeRest(envelope.origin, envelope.body, envelope.smtputf8, envelope.ret, envelope.envelope_id)
    return _encode(rest)


def decode_rest(text: str) -> EnvelopeRest:
    """`message.envelope` read back, sealed or not. ValueError when it is none."""
    return _rest_decoder.decode(unsealed(text))


def seal(rest: str, head: Iterable[object], recipients: Iterable[tuple[object, ...]]) -> str:
    """`rest` and, behind it, a checksum of all in a message that no other one covers and nothing ever changes.

    A database has none of its own: a bit that flips in a forward-path would send mail to a stranger.
    """
    found = zlib.crc32(f"{rest}{head}".encode())
    for recipient in recipients:
        found = zlib.crc32(repr(recipient).encode(), found)
    return f"{rest} {found:08x}"


def unsealed(text: str) -> str:
    """What `seal` was given; the text itself when it was never sealed."""
    return text[:-9] if text[-9:-8] == " " else text


def accepted_event(envelope: Envelope, size_bytes: int) -> Accepted:
    """The first event of a message."""
    return Accepted(
        envelope.arrived_at,
        path_text(envelope.reverse_path),
        size_bytes,
        envelope.origin,
        tuple(
            [
                GrantedRecipient(path_text(r.forward_path), r.grant.kind._value_, r.grant.reason.words)
                for r in envelope.recipients
            ]
        ),
    )


def attempted_event(fate: Fate) -> Attempted:
    """An attempt's end as an event; also `recipient.last`."""
    outcome = fate.outcome
    return Attempted(
        fate.ended_at,
        fate.index,
        _OUTCOMES[type(outcome)],
        outcome.status,
        outcome.reason.slug._value_,
        outcome.reason.words,
        outcome.remote,
        outcome.diagnostic,
        fate.attempts,
        fate.then.next_at if isinstance(fate.then, Retry) else 0,
    )


def decode_attempted(text: str) -> Attempted:
    """`recipient.last` read back."""
    return _attempted_decoder.decode(text)


def outcome_of(attempted: Attempted) -> Outcome:
    """The outcome behind an event."""
    reason = Reason(Slug(attempted.slug), attempted.words)
    return _OUTCOME_TYPES[attempted.outcome](attempted.status, reason, attempted.remote, attempted.diagnostic)


def path_octets(path: Path) -> bytes:
    """A path as a column: the local part's octets, "@", the domain. A domain never holds "@", so this can be undone."""
    octets = b"%b@%b" % (path.local_part, path.domain.encode())
    return octets if len(octets) > 1 else b""


def octets_path(octets: bytes) -> Path:
    """A path from its column."""
    if not octets:
        return NULL_PATH
    local_part, _, domain = octets.rpartition(b"@")
    return Path(local_part, domain.decode())


_plain = re.compile(rb"[A-Za-z0-9_=+-]+(?:\.[A-Za-z0-9_=+-]+)*").fullmatch


def path_text(path: Path) -> str:
    """A path for people, without angle brackets; "" for the null path, "postmaster" for the one without a domain."""
    local_part, domain = path.local_part, path.domain
    if domain and _plain(local_part):  # nearly all
        return f"{local_part.decode()}@{domain}"
    if path.is_null:
        return ""
    try:
        return str(path)
    except AddressError:  # a control character: no path on the wire, but the history must say something
        return f"{path.local_part.decode('utf-8', 'backslashreplace')}@{path.domain}"
