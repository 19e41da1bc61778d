"""Every case of the relay test, in memory, against rules about to be put in force: may one of them relay?

The proof (policy.proof) asks `decide`; this asks the whole way that mail takes in: octets into the real engine, its events
into the real session, that one's decisions, and what it hands over into a spool in memory. Only sockets are missing. It
runs at the start and at each reload, from outside addresses of both families, at each listener that takes mail for the
relay. What counts is what arrived in the spool, not what was replied: one recipient that is none of ours, and there is no
start, or the old rules stay.

Listeners that are alike in all that a session can see are tested once. A collector has no way to the queue and a lab is
open on purpose, to its list, for a time: they are excluded, and said to be.
"""

import time
from collections.abc import Iterator, Sequence

import msgspec

from posthouse.config import Config, ListenerRole, ListenerSettings, ProxyUse
from posthouse.mail.envelope import Envelope
from posthouse.mail.grant import GrantKind
from posthouse.mail.message import Message
from posthouse.net.connection import Peer
from posthouse.observe import log, metrics
from posthouse.policy.classes import outside_addresses, third_party
from posthouse.policy.proof import Ours
from posthouse.policy.rules import Place, Rules, with_networks, with_relay
from posthouse.relay.intake import Intake
from posthouse.relay.session import Desk, Session
from posthouse.serve.case_dialogue import StartTls, Step, can_be_said, say_case
from posthouse.serve.masking import listener_key
from posthouse.smtp.address import Path
from posthouse.smtp.event import TlsWanted
from posthouse.smtp.reply import Reply, ReplyReader
from posthouse.smtp.server import Ending, ServerConnection, ServerSettings, Signal
from posthouse.spool.memory import MemorySpool
from posthouse.tester.case import CASES, Case, Names

_TLS = "TLSv1.3 in memory"
OWN_ROLES = (ListenerRole.RELAY, ListenerRole.SUBMISSION)
"""Of the listeners that take mail for the relay."""


class Relayed(msgspec.Struct, frozen=True):
    """A case that a stranger was relayed by. `dialogue` holds its lines, each with "C: " or "S: " in front; `rule` says by
    which grant."""

    case_number: int
    case_name: str
    listener: str
    client: str
    forward_path: str
    rule: str
    dialogue: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What happened, and by which rule."""
        return (
            f"The self-test was relayed at {self.listener}: case {self.case_number} ({self.case_name}), from {self.client}, "
            f"to {self.forward_path} by the grant {self.rule}."
        )

    @property
    def dialogue_text(self) -> str:
        """The dialogue, each line on one of its own, indented."""
        return "".join(f"\n    {line}" for line in self.dialogue)


class SelfTest(msgspec.Struct, frozen=True):
    """What came of it. `listeners` are those it was made at, `clients` whence; `excluded` says which were left out and why."""

    sessions: int
    cases: int
    not_offered: int
    listeners: tuple[str, ...]
    clients: tuple[str, ...]
    excluded: tuple[str, ...]
    seconds: float
    relayed: Relayed | None = None

    @property
    def is_closed(self) -> bool:
        """No case was relayed."""
        return self.relayed is None

    @property
    def sentence(self) -> str:
        """For people."""
        if not self.listeners:
            return "self-test: no listener takes mail for the relay"
        return (
            f"self-test: {self.cases} cases from {', '.join(self.clients)} at {', '.join(self.listeners)}: "
            f"{self.sessions} sessions in memory in {self.seconds * 1000:.0f} ms, "
            + ("none was relayed" if self.is_closed else "ONE WAS RELAYED")
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """For `check`: what was done, what was left out, and the dialogue of what was relayed."""
        dialogue = (
            () if self.relayed is None else (self.relayed.sentence, *(f"  {one}" for one in self.relayed.dialogue))
        )
        return (self.sentence, *self.excluded, *dialogue)


class Caller(msgspec.Struct, frozen=True):
    """Who says the cases: an outside address, or one that a proxy does not know."""

    peer: Peer
    words: str


class _Shape(msgspec.Struct, frozen=True):
    """All of a listener that a session in memory can see: listeners of one shape behave alike."""

    role: ListenerRole
    engine: ServerSettings
    implicit_tls: bool


def rehearse(config: Config, rules: Rules, cases: Sequence[Case] = CASES) -> SelfTest:
    """Says every case at every listener, and stops at the first that is relayed. Nothing of it is logged or counted.

    The relay option is taken as on and no network as suspended, as in the proof.
    """
    began = time.monotonic()
    rules = with_networks(with_relay(rules, enabled=True), suspended=False)
    mine = [one for one in config.listeners if one.role in OWN_ROLES]
    callers = _callers(rules)
    tally = _Tally()
    with log.silenced(), metrics.uncounted():
        for shape, listeners in _by_shape(config, mine).items():
            if tally.relayed is None:
                _test_shape(config, rules, shape, listeners, callers, cases, tally)
    return SelfTest(
        tally.sessions,
        len(tally.said),
        len(cases) - len(tally.said) if mine else 0,
        tuple(map(listener_key, mine)),
        tuple(caller.words for caller in callers if caller.peer.is_address_known),
        tuple(_excluded(config)),
        time.monotonic() - began,
        tally.relayed,
    )


class _Tally:
    def __init__(self) -> None:
        self.sessions = 0
        self.said: set[int] = set()
        self.relayed: Relayed | None = None


def _callers(rules: Rules) -> tuple[Caller, ...]:
    found = [Caller(Peer(str(one), 4242), str(one)) for one in outside_addresses(rules)]
    unknown = Peer("127.0.0.1", 4242, is_address_known=False)
    return (*found, Caller(unknown, "an address that no proxy told"))


def _by_shape(config: Config, listeners: list[ListenerSettings]) -> dict[_Shape, list[ListenerSettings]]:
    from posthouse.serve.wiring import engine_settings_of  # noqa: PLC0415 - only who tests loads all the rooms

    shapes: dict[_Shape, list[ListenerSettings]] = {}
    for one in listeners:
        shape = _Shape(one.role, engine_settings_of(config, one), one.tls is not None and one.tls.implicit)
        shapes.setdefault(shape, []).append(one)
    return shapes


def _excluded(config: Config) -> Iterator[str]:
    for one in config.listeners:
        if one.role not in OWN_ROLES:
            why = "open on purpose, by its own rules" if one.role is ListenerRole.LAB else "it has no way to the queue"
            yield f"{listener_key(one)}: the {one.role} is left out of the self-test, {why}"


def _test_shape(
    config: Config,
    rules: Rules,
    shape: _Shape,
    listeners: list[ListenerSettings],
    callers: tuple[Caller, ...],
    cases: Sequence[Case],
    tally: _Tally,
) -> None:
    offered, ours, reader = _offered(shape.engine), Ours(rules), ReplyReader()
    for listener, caller, names in _rounds(config, rules, listeners, callers):
        for case in cases:
            if not can_be_said(case, offered):
                continue
            tally.sessions += 1
            tally.said.add(case.number)
            session = MemorySession(config, listener, rules, shape.engine, caller.peer, reader)
            session.open(implicit_tls=shape.implicit_tls)
            session.say(case, names)
            relayed = session.find_relayed(ours, rules, case, names, caller.words)
            if relayed is not None:
                tally.relayed = relayed
                return


def _rounds(
    config: Config, rules: Rules, listeners: list[ListenerSettings], callers: tuple[Caller, ...]
) -> Iterator[tuple[ListenerSettings, Caller, Names]]:
    """Each outside address with a domain of ours of each kind; the unknown address only where there can be one.

    Before a login one stranger and one domain are as good as all: nothing else is looked at.
    """
    domains = (*_own_domains(rules), config.hostname.lower())
    known = [caller for caller in callers if caller.peer.is_address_known]
    first = listeners[0]
    many = 1 if first.role is ListenerRole.SUBMISSION else max(len(known), len(domains))
    for n in range(many):
        yield first, known[n % len(known)], names_for(config, rules, first, domains[n % len(domains)])
    proxied = next((one for one in listeners if one.proxy is ProxyUse.REQUIRED), None)
    if proxied is not None:
        yield proxied, callers[-1], names_for(config, rules, proxied, domains[0])


def _own_domains(rules: Rules) -> tuple[str, ...]:
    """The first local and the first relay domain, one below it for a pattern of subdomains."""
    found = []
    for place in Place:
        named = (pattern for pattern in rules.patterns(place) if pattern[0] not in "*[")
        first = next(named, "")
        if first:
            found.append(f"sub{first}" if first.startswith(".") else first)
    return tuple(found)


def names_for(config: Config, rules: Rules, listener: ListenerSettings, domain: str = "") -> Names:
    """What the placeholders of the cases stand for at a listener; `domain` "": the first of ours."""
    host = "192.0.2.1" if listener.host in ("0.0.0.0", "::", "") else listener.host  # noqa: S104 - a name, not a bind
    return Names(
        target_domain=domain or (*_own_domains(rules), config.hostname.lower())[0],
        target_name=config.hostname.lower(),
        target_address=f"IPv6:{host}" if ":" in host else host,
        third_local="self-test",
        third_domain=third_party(rules),
        tester_local="tester",
        tester_domain="outside.example",
        tester_name="tester.outside.example",
    )


def _offered(engine: ServerSettings) -> frozenset[str]:
    said = {
        "PIPELINING": engine.pipelining,
        "SMTPUTF8": engine.smtputf8,
        "CHUNKING": engine.chunking,
        "STARTTLS": engine.starttls,
        "AUTH": bool(engine.auth_mechanisms),
    }
    return frozenset(keyword for keyword, is_offered in said.items() if is_offered)


class _Arrivals:
    """Stands where the scheduler does: keeps what was accepted, and sends nothing on."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    def add(self, envelope: Envelope, message: Message) -> None:
        """A message has been accepted."""
        del message
        self.envelopes.append(envelope)


class MemorySession:
    """One session: the real engine and the real relay session, driven as net.connection drives them, with no loop and no wait."""

    def __init__(
        self,
        config: Config,
        listener: ListenerSettings,
        rules: Rules,
        engine: ServerSettings,
        peer: Peer,
        reader: ReplyReader,
    ) -> None:
        from posthouse.serve.wiring import desk_of  # noqa: PLC0415 - see above

        self._spool = MemorySpool(0, loop=None, clock=_no_clock)
        self._arrivals = _Arrivals()
        intake = Intake(self._spool, self._arrivals, _no_clock)
        desk: Desk = desk_of(config, listener, rules, intake, _no_clock, None)
        self._peer = peer
        self._engine = ServerConnection(engine)
        self._session = Session(desk, self, self._engine)
        self._listener = listener_key(listener)
        self._late: Reply | None = None
        self._reader = reader
        self._dialogue: list[tuple[str, bytes]] = []

    # The session's side (relay.session.Line).

    def answer(self, reply: Reply) -> None:
        """The reply that the session did not have at once."""
        self._late = reply

    def cut(self, why: str) -> None:
        """The session ends itself."""
        self._engine.cut(Reply(421, "4.4.2", (why,)))

    def pause(self) -> None:
        """Nothing is read here but what was said."""

    def resume(self) -> None:
        """See `pause`."""

    # The tester's side.

    def open(self, *, implicit_tls: bool) -> None:
        """The client is there, and is greeted."""
        if implicit_tls:
            self._engine.tls_started()
            self._session.tls_started(_TLS)
        self._engine.greet(self._session.connected(self._peer))
        self._hear(self._engine.data_to_send())

    def say(self, case: Case, names: Names) -> None:
        """The whole case, as far as the session lasts."""
        dialogue = say_case(case, names, hello=names.tester_name, with_content=True)
        replies: tuple[Reply, ...] | None = None
        while self._engine.ending is Ending.NOT_YET:
            try:
                step: Step = next(dialogue) if replies is None else dialogue.send(replies)
            except StopIteration:
                break
            replies = self._take(step)
        self._spool.flush()
        self._session.closed()

    @property
    def forward_paths(self) -> tuple[Path, ...]:
        """All that arrived."""
        return tuple(one.forward_path for envelope in self._arrivals.envelopes for one in envelope.recipients)

    def find_relayed(self, ours: Ours, rules: Rules, case: Case, names: Names, client: str) -> Relayed | None:
        """The first recipient that arrived and is none of ours."""
        for envelope in self._arrivals.envelopes:
            for recipient in envelope.recipients:
                path, grant = recipient.forward_path, recipient.grant
                is_ours = ours.may_be_granted(path) and path.domain != names.third_domain
                is_alias = path in ours.alias_targets or path == rules.postmaster
                if not (is_alias or is_ours) or grant.kind not in _STRANGERS_GRANTS:
                    rule = f"{grant.kind} ({grant.reason.words})"
                    return Relayed(
                        case.number, case.name, self._listener, client, f"<{path}>", rule, lines_of(self._dialogue)
                    )
        return None

    def _take(self, step: Step) -> tuple[Reply, ...]:
        if isinstance(step, StartTls):
            return ()  # the engine has been told when it wanted it
        self._dialogue.append(("C", step.octets))
        self._engine.receive_data(step.octets)
        return self._hear(self._pump())

    def _pump(self) -> bytes:
        engine, session = self._engine, self._session
        said = b""
        while not isinstance(event := engine.next_event(), Signal):
            if event.needs_reply:
                reply = session.handle(event)
                if reply is None:
                    self._spool.flush()  # the answer waits for the message to be durable
                    reply, self._late = self._late or Reply(451, "4.3.0", ("nothing answered in time",)), None
                engine.reply(reply)
            else:
                session.handle(event)
                if isinstance(event, TlsWanted):
                    said += engine.data_to_send()
                    engine.tls_started()
                    session.tls_started(_TLS)
            if engine.delay:
                engine.delay_is_over()
        return said + engine.data_to_send()

    def _hear(self, octets: bytes) -> tuple[Reply, ...]:
        self._dialogue.append(("S", octets))
        self._reader.receive_data(octets)
        return tuple(iter(self._reader.next_reply, None))


_STRANGERS_GRANTS = (GrantKind.LOCAL_DELIVERY, GrantKind.RELAY_DOMAIN, GrantKind.FORWARDING)


def lines_of(dialogue: list[tuple[str, bytes]]) -> tuple[str, ...]:
    """As a transcript shows it; what is not plain text is escaped."""
    return tuple(
        f"{side}: {line.decode('utf-8', 'backslashreplace').translate(_ESCAPES)}"
        for side, octets in dialogue
        for line in octets.split(b"\r\n")
        if line
    )


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def _no_clock() -> int:
    return 0
