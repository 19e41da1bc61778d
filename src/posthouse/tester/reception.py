"""The collector's SMTP sessions: probe mail in, a receipt for each token, nothing ever out.

Whoever brings a mail for a token of ours is the output host of a relay, or a server with a notice about a probe. What has
no valid token is refused at RCPT, so that no other mail is ever taken; what is taken is reduced to its header at once. This
handler has no way to a queue: it cannot relay.
"""

import asyncio
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

import msgspec

from posthouse.mail.header import fields, header_of_pieces
from posthouse.observe import log, metrics
from posthouse.policy.networks import normalise_address
from posthouse.smtp.address import Path
from posthouse.smtp.event import (
    CommandRefused,
    ContentBroken,
    ContentComplete,
    ContentPiece,
    ContentWanted,
    Event,
    Greeted,
    MailFrom,
    RcptTo,
    TransactionReset,
)
from posthouse.smtp.reply import Reply
from posthouse.smtp.server import CONTENT_WELCOME, ServerConnection
from posthouse.tester.collector import CollectorFault, Receipt
from posthouse.tester.receipts import ReceiptsFull
from posthouse.tester.token import Purpose, Token, TokenFault, TokenKey, tokens_in, verify

HEADER_KEPT = 32 * 1024
"""Octets of a header that a receipt keeps."""

MOST_RECIPIENTS = 10

_SENDER_OK = Reply(250, "2.1.0", ("Sender OK",))
_RECIPIENT_OK = Reply(250, "2.1.5", ("Probe expected",))
_COLLECTED = Reply(250, "2.0.0", ("Collected: this probe has been relayed",))
_NO_PROBE = Reply(503, "5.5.1", ("RCPT comes first",))
_BROKEN = Reply(451, "4.3.0", ("The receipt could not be kept; try again later",))


class Record(Protocol):
    """Keeps receipts."""

    def __call__(self, receipts: tuple[Receipt, ...]) -> None:
        """Durable when it returns. ReceiptsFull, CollectorFault."""


class Line(Protocol):
    """What a session asks of its driver (net.server)."""

    def answer(self, reply: Reply) -> None:
        """The reply that `handle` did not have at once."""


class Peer(Protocol):
    """Who is at the other end (net.server.Peer)."""

    @property
    def address(self) -> str:
        """The address after PROXY."""


class Rate:
    """So many events a minute for each key and in all, by token buckets (`burst` at once). Bounded memory; the clock is given."""

    def __init__(self, each_per_minute: int, all_per_minute: int) -> None:
        self._each, self._all = each_per_minute, all_per_minute
        self._levels: dict[str, tuple[float, float]] = {}

    def allows(self, key: str, now: float) -> bool:
        """Counts one event if there is room for it. `now` in seconds, of any clock that does not go back."""
        if len(self._levels) > 10_000:
            self._levels = {kept: level for kept, level in self._levels.items() if now - level[1] < 60}
            if len(self._levels) > 10_000:
                return False
        own = self._level(f"from {key}", self._each, now)
        total = self._level("", self._all, now)
        if own < 1 or total < 1:
            return False
        self._levels[f"from {key}"] = own - 1, now
        self._levels[""] = total - 1, now
        return True

    def _level(self, key: str, per_minute: int, now: float) -> float:
        level, at = self._levels.get(key, (float(per_minute), now))
        return min(float(per_minute), level + max(0.0, now - at) * per_minute / 60)


class CollectorDesk(msgspec.Struct):
    """What the sessions of one collector listener share. Mutable on purpose: a reload renews it.

    `domains` are those whose mail is taken, `contact` is whom a refused client may write to. `record` runs in a thread.
    """

    listener: str
    domains: frozenset[str]
    key: TokenKey
    record: Record
    rate: Rate
    contact: str = ""
    clock: Callable[[], float] = time.time


class _Arrival:
    """A message on its way in."""

    __slots__ = ("held", "is_header_whole", "pieces", "recipients", "reverse_path", "size")

    def __init__(self, reverse_path: Path) -> None:
        self.reverse_path = reverse_path
        self.recipients: dict[str, tuple[Path, Token]] = {}
        self.pieces: list[bytes] = []
        self.held = 0
        self.size = 0


class Reception:
    """The handler of one connection (net.server.Handler)."""

    def __init__(self, desk: CollectorDesk, line: Line, engine: ServerConnection) -> None:
        self.engine = engine
        self._desk = desk
        self._line = line
        self._client = ""
        self._hello_name = ""
        self._arrival: _Arrival | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._is_counted = False
        self._is_gone = False

    def connected(self, peer: Peer) -> Reply | None:
        """Who calls; None: greet with the engine's banner."""
        self._client = str(normalise_address(ip_address(peer.address))) if peer.address else ""
        self._is_counted = True
        metrics.sessions.inc(self._desk.listener)
        metrics.sessions_open.inc(self._desk.listener)
        return None

    def tls_started(self, _description: str) -> None:
        """All that was said before is forgotten (RFC 3207 4.2)."""
        self._hello_name = ""
        self._arrival = None

    def closed(self) -> None:
        """The connection is gone; a receipt that is being kept is kept."""
        self._is_gone = True
        self._arrival = None
        if self._is_counted:
            metrics.sessions_open.dec(self._desk.listener)

    def handle(self, event: Event) -> Reply | None:
        """An event of the engine; the reply if it is known at once."""
        match event:
            case MailFrom():
                self._arrival = _Arrival(event.reverse_path)
                return _SENDER_OK
            case RcptTo():
                return self._rcpt(event.forward_path)
            case ContentWanted():
                return CONTENT_WELCOME if self._arrival is not None and self._arrival.recipients else _NO_PROBE
            case ContentPiece():
                self._piece(event.data)
            case ContentComplete():
                return self._complete(event.size_bytes)
            case Greeted():
                self._hello_name = event.hello_name
                self._arrival = None
            case TransactionReset() | ContentBroken():
                self._arrival = None
            case CommandRefused():
                metrics.commands_refused.inc(str(event.reply.code))
            case _:
                return Reply(502, "5.5.1", ("A collector does nothing of the kind",)) if event.needs_reply else None
        return None

    def _rcpt(self, path: Path) -> Reply:
        arrival = self._arrival
        if arrival is None:
            return Reply(503, "5.5.1", ("MAIL comes first",))
        found = self._token_of(path)
        if isinstance(found, Reply):
            log.info("probe-refused", client=self._client, forward_path=str(path), reply=str(found))
            return found
        if not self._desk.rate.allows(self._client, self._desk.clock()):
            return Reply(451, "4.7.1", ("Too many probes at once; try again in a minute",))
        text, token = found
        arrival.recipients[text] = path, token
        return _RECIPIENT_OK

    def _token_of(self, path: Path) -> tuple[str, Token] | Reply:
        """The token that a forward-path of ours carries, or the refusal."""
        desk = self._desk
        words = TokenFault.MALFORMED.value
        if path.domain in desk.domains:
            for text in tokens_in(path.local_part.decode("latin-1")):
                for purpose in (Purpose.PROBE, Purpose.BOUNCE):
                    found = verify(desk.key, text, desk.clock(), purpose)
                    if isinstance(found, Token):
                        return text, found
                    if found is TokenFault.EXPIRED or words is TokenFault.MALFORMED.value:
                        words = found.value
        else:
            words = "it is for another domain, and a collector never relays"
        where = f"; write to {desk.contact}" if desk.contact else ""
        sentence = f"This mail is not taken: {words}. Here the probes of a relay test are collected{where}"
        return Reply(550, "5.7.1", (sentence,))

    def _piece(self, data: bytes) -> None:
        arrival = self._arrival
        if arrival is None:
            return
        arrival.size += len(data)
        if arrival.held < HEADER_KEPT:
            arrival.pieces.append(data[: HEADER_KEPT - arrival.held])
            arrival.held += len(arrival.pieces[-1])

    def _complete(self, size_bytes: int) -> Reply | None:
        arrival, self._arrival = self._arrival, None
        if arrival is None or not arrival.recipients:
            return Reply(451, "4.3.0", ("The message was lost on the way in; please send it again",))
        self._keeping = asyncio.get_running_loop().create_task(self._keep(self._receipts(arrival, size_bytes)))
        self._keeping.add_done_callback(self._note_fault)
        return None

    def _note_fault(self, task: asyncio.Task[None]) -> None:
        """A fault of ours must not leave the client waiting for an answer for ever."""
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            log.exception("collector-fault", fault, client=self._client)
            self._answer(_BROKEN)

    def _receipts(self, arrival: _Arrival, size_bytes: int) -> tuple[Receipt, ...]:
        header = header_of_pieces(arrival.pieces)
        received = tuple(_text(one.value) for one in fields(header) if one.name.lower() == b"received")
        now = self._desk.clock()
        return tuple(
            Receipt(
                test_id=token.test_id,
                case_number=token.case_number,
                purpose=token.purpose,
                token=text,
                arrived_at=now,
                client=self._client,
                hello_name=self._hello_name,
                reverse_path=str(arrival.reverse_path),
                forward_path=str(path),
                received=received,
                header=_text(header),
                size_bytes=size_bytes,
            )
            for text, (path, token) in arrival.recipients.items()
        )

    async def _keep(self, receipts: tuple[Receipt, ...]) -> None:
        try:
            await asyncio.to_thread(self._desk.record, receipts)
        except ReceiptsFull as full:
            self._answer(Reply(550, "5.7.1", (f"No more of this: {full}",)))
            return
        except CollectorFault as error:
            log.error("receipt-lost", words=str(error))
            self._answer(_BROKEN)
            return
        for one in receipts:
            metrics.probes_collected.inc("bounce" if one.is_bounce else "relayed")
            log.info(
                "probe-collected",
                client=one.client,
                hello_name=one.hello_name,
                test=one.test_id,
                case=one.case_number,
                bounce=one.is_bounce,
                hops=len(one.received),
            )
        self._answer(_COLLECTED)

    def _answer(self, reply: Reply) -> None:
        if not self._is_gone:
            self._line.answer(reply)


def _text(octets: bytes) -> str:
    """Octets as text that can be stored and shown: what is no UTF-8 stays visible."""
    return octets.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
