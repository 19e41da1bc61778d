"""The same cases once more, over the listeners as they are: real sockets, real TLS, real workers; as far as RCPT.

In memory nothing can be sent; here a recipient that is let in would be mail. So a case ends at its recipient, whose
answer must be the refusal it had in memory, and cases that need a content, or may be accepted, are left to memory.

It comes from an address of this machine that the rules don't trust, over loopback; nothing leaves the machine. Where there
is no such address (all of loopback trusted, say) the listener is named as untried, in words. Behind `proxy = "required"` it
is one of the proxies, if this machine may be one, and names an outside address; else what is tried is that nobody else gets
a session. The workers know these sessions by a nonce of their own, so that nothing of it stands in the log and the counts.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from ipaddress import ip_address

import msgspec

from posthouse.config import Config, ListenerRole, ListenerSettings, ProxyUse
from posthouse.net.tls import lenient_context
from posthouse.policy.classes import outside_addresses
from posthouse.policy.networks import Address, NetworkSet
from posthouse.policy.rules import Rules
from posthouse.serve.case_dialogue import Dialogue, StartTls, can_be_said, say_case
from posthouse.serve.machine import own_addresses
from posthouse.serve.self_test import OWN_ROLES, Relayed, lines_of, names_for
from posthouse.smtp.reply import Reply, ReplyError, ReplyReader
from posthouse.tester.case import CASES, Case, Right, Way

ANSWER_SECONDS = 5.0
ALL_SECONDS = 20.0
SESSIONS_AT_ONCE = 6
_CASES_A_SESSION = 4
"""Below [limits] errors_slow, from which on answers come slower."""

_LOOPBACK = tuple(map(ip_address, ("127.0.0.2", "127.0.0.3", "127.1.2.3", "127.200.0.9", "127.0.0.1", "::1")))
_OVER_SOCKETS = frozenset(Way) - {Way.SMUGGLED, Way.BDAT, Way.NO_HELLO, Way.PROXY_V1, Way.PROXY_V2}
"""Without those that need a content, or that say something before a hello could carry the nonce."""

HelloName = Callable[[str], str]
"""From the address that the session will be seen with to the EHLO name by which the workers know it for their own."""


class LiveTest(msgspec.Struct, frozen=True):
    """What came of it. `untried` are sentences about listeners that could not be tried."""

    sessions: int
    cases: int
    listeners: tuple[str, ...]
    untried: tuple[str, ...]
    seconds: float
    relayed: Relayed | None = None
    """Of several the one with the lowest number: which session is quicker must not change what the postmaster reads."""

    @property
    def sentence(self) -> str:
        """For people."""
        if not self.listeners:
            return "self-test over the listeners: none could be tried"
        return (
            f"self-test over the listeners: {self.cases} cases as far as RCPT at {', '.join(self.listeners)}: "
            f"{self.sessions} sessions in {self.seconds * 1000:.0f} ms, "
            + ("none was let in" if self.relayed is None else "ONE WAS LET IN")
        )


class _Place(msgspec.Struct, frozen=True):
    """A listener, where to reach it, from where, and the PROXY header that comes first."""

    listener: ListenerSettings
    text: str
    host: str
    port: int
    source: str
    seen_as: str
    header: bytes = b""


class _Unreachable(Exception):
    """There is no connection from that source."""


class _Unlike(Exception):
    """The listener did not talk as ours do."""


async def rehearse_live(
    config: Config, rules: Rules, bound: Sequence[tuple[str, int]], hello_name: HelloName, cases: Sequence[Case] = CASES
) -> LiveTest:
    """`bound` are the listeners' texts and ports, in the configuration's order. Never longer than ALL_SECONDS."""
    began = time.monotonic()
    tally = _Tally()
    mine = [
        (listener, text, port)
        for listener, (text, port) in zip(config.listeners, bound, strict=True)
        if listener.role in OWN_ROLES
    ]
    ends_at = asyncio.get_running_loop().time() + ALL_SECONDS
    for listener, text, port in mine:
        if tally.relayed is not None:
            break
        try:
            async with asyncio.timeout_at(ends_at):
                await _try_listener(config, rules, listener, text, port, hello_name, cases, tally)
        except TimeoutError:
            tally.untried.append(f"{text} was not tried over its socket to the end: time was over")
    return LiveTest(
        tally.sessions,
        len(tally.said),
        tuple(tally.listeners),
        tuple(tally.untried),
        time.monotonic() - began,
        tally.relayed,
    )


class _Tally:
    def __init__(self) -> None:
        self.sessions = 0
        self.said: set[int] = set()
        self.listeners: list[str] = []
        self.untried: list[str] = []
        self.relayed: Relayed | None = None


async def _try_listener(
    config: Config,
    rules: Rules,
    listener: ListenerSettings,
    text: str,
    port: int,
    hello_name: HelloName,
    cases: Sequence[Case],
    tally: _Tally,
) -> None:
    words = "every address of this machine is trusted there, so none can stand for a stranger"
    for place in _places(rules, listener, text, port):
        try:
            if listener.proxy is ProxyUse.REQUIRED and not place.header:
                await _expect_no_session(place)
            else:
                await _say_all(config, rules, place, hello_name(place.seen_as), cases, tally)
        except _Unreachable as error:
            words = f"from {place.source} it could not be reached ({error})"
            continue
        except (_Unlike, OSError, TimeoutError) as error:
            words = f"it did not talk as it should ({str(error) or 'no answer in time'})"
            break
        tally.listeners.append(text)
        return
    tally.untried.append(f"{text} was not tried over its socket: {words}")


def _places(rules: Rules, listener: ListenerSettings, text: str, port: int) -> Iterator[_Place]:
    """From where a stranger can be played, the likeliest first."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.host, listener.host)  # noqa: S104 - where to call, not a bind
    version = ip_address(host).version
    machine = [one for one in (*_LOOPBACK, *own_addresses()) if one.version == version]
    if listener.proxy is ProxyUse.REQUIRED:
        proxies = NetworkSet.parse(listener.proxies)
        outside = next(one for one in outside_addresses(rules) if one.version == 4)
        header = f"PROXY TCP4 {outside} 192.0.2.1 4242 25\r\n".encode()
        for source in machine:
            if source in proxies:
                yield _Place(listener, text, host, port, str(source), str(outside), header)
        for source in machine:
            if source not in proxies:
                yield _Place(listener, text, host, port, str(source), str(source))
        return
    for source in machine:
        if listener.role is ListenerRole.SUBMISSION or not _is_trusted(rules, source):
            yield _Place(listener, text, host, port, str(source), str(source))


def _is_trusted(rules: Rules, address: Address) -> bool:
    return address in rules.trusted_networks


async def _expect_no_session(place: _Place) -> None:
    """A stranger without a PROXY header is cut before it hears a word."""
    async with _connected(place) as wire, asyncio.timeout(ANSWER_SECONDS):
        try:
            octets = await wire.reader.read(64)
        except ConnectionResetError:
            return
        if octets:
            raise _Unlike(f"it greeted somebody who is no proxy: {octets!r}")


async def _say_all(
    config: Config, rules: Rules, place: _Place, hello: str, cases: Sequence[Case], tally: _Tally
) -> None:
    names = msgspec.structs.replace(names_for(config, rules, place.listener), tester_name=hello)
    offered = await _offers(place, hello)
    wanted = [case for case in cases if is_wanted(case) and can_be_said(case, offered)]
    shared = [case for case in wanted if not case.has_own_session and case.way is not Way.STARTTLS]
    groups = [shared[n : n + _CASES_A_SESSION] for n in range(0, len(shared), _CASES_A_SESSION)]
    groups += [[case] for case in wanted if case not in shared]
    slots = asyncio.Semaphore(min(SESSIONS_AT_ONCE, config.limits.connections_per_client))

    async def say(group: list[Case]) -> None:
        async with slots, _connected(place) as wire:
            tally.sessions += 1
            await wire.replies(1)
            for case in group:
                reply = await wire.say_case(say_case(case, names, hello=hello, with_content=False))
                if reply is None:
                    continue
                tally.said.add(case.number)
                if reply.is_positive and (tally.relayed is None or case.number < tally.relayed.case_number):
                    rule = f"not told; the answer to RCPT was {reply}"
                    tally.relayed = Relayed(
                        case.number,
                        case.name,
                        place.text,
                        place.seen_as,
                        names.fill(case.forward_path),
                        rule,
                        lines_of(wire.dialogue),
                    )

    done = await asyncio.gather(*(say(group) for group in groups), return_exceptions=True)
    for error in done:
        if isinstance(error, BaseException):
            raise error


def is_wanted(case: Case) -> bool:
    """The case can be judged by the answer to its recipient: whoever lets that in relays."""
    return case.right is Right.REFUSED and case.way in _OVER_SOCKETS


async def _offers(place: _Place, hello: str) -> frozenset[str]:
    async with _connected(place) as wire:
        (greeting,) = await wire.replies(1)
        if greeting.code != 220:
            raise _Unlike(f"it greets with {greeting}")
        (reply,) = await wire.say(f"EHLO {hello}\r\n".encode(), 1)
        return frozenset(line.split(" ")[0].upper() for line in reply.lines[1:])


class _Wire:
    """One connection, with what was said on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.dialogue: list[tuple[str, bytes]] = []
        self._parser = ReplyReader()

    async def replies(self, count: int) -> tuple[Reply, ...]:
        """So many replies. _Unlike when the other side ends, or says what is no reply; TimeoutError."""
        found: list[Reply] = []
        async with asyncio.timeout(ANSWER_SECONDS):
            while len(found) < count:
                try:
                    reply = self._parser.next_reply()
                except ReplyError as error:
                    raise _Unlike(str(error)) from error
                if reply is not None:
                    found.append(reply)
                    continue
                octets = await self.reader.read(65536)
                if not octets:
                    raise _Unlike("it closed the connection")
                self.dialogue.append(("S", octets))
                self._parser.receive_data(octets)
        return tuple(found)

    async def say(self, octets: bytes, replies: int) -> tuple[Reply, ...]:
        """Says something and waits for the replies to it."""
        self.dialogue.append(("C", octets))
        self.writer.write(octets)
        return await self.replies(replies)

    async def say_case(self, dialogue: Dialogue) -> Reply | None:
        """The reply to the case's recipient; None when the session ended before."""
        last: Reply | None = None
        try:
            step = next(dialogue)
            while True:
                replies: tuple[Reply, ...] = ()
                if isinstance(step, StartTls):
                    await self.writer.start_tls(lenient_context())
                else:
                    replies = await self.say(step.octets, step.replies)
                    last = replies[-1]
                    if last.code == 421:
                        return None
                step = dialogue.send(replies)
        except StopIteration:
            return last
        except (_Unlike, OSError):
            return None  # it hung up on this case, and lets nothing in


@contextlib.asynccontextmanager
async def _connected(place: _Place) -> AsyncIterator[_Wire]:
    """A connection from the place's source, closed afterwards. _Unreachable, OSError, TimeoutError."""
    is_tls = place.listener.tls is not None and place.listener.tls.implicit
    async with asyncio.timeout(ANSWER_SECONDS):
        try:
            reader, writer = await asyncio.open_connection(place.host, place.port, local_addr=(place.source, 0))
        except OSError as error:
            raise _Unreachable(error.strerror or str(error)) from error
        if place.header:
            writer.write(place.header)
        if is_tls:
            await writer.start_tls(lenient_context())
    try:
        yield _Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
