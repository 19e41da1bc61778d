"""What would happen to a mail, step by step, asked of the same rules, routes and DNS that a running server has.

Nothing is queued. With `connects` the next hop is asked as far as RCPT, by the code that delivers.
"""

import enum
import os
from collections.abc import Sequence
from ipaddress import ip_address

import msgspec

from posthouse.config import Config, ListenerRole
from posthouse.mail.grant import Grant
from posthouse.mail.outcome import Failed
from posthouse.net.client import ClientChannel, ClientTimeouts, Endpoint, PeerLost
from posthouse.net.transcript import Transcript
from posthouse.policy.decide import Deferral, Need, Refusal, decide, expand
from posthouse.policy.facts import Facts, Role, Unknown
from posthouse.policy.networks import normalise_address
from posthouse.relay.directions import Directions, Pathfinder
from posthouse.relay.route import HopKind, NextHop, Route
from posthouse.serve.data_dir import DataDir, RelayOption
from posthouse.serve.wiring import ourselves_of, resolver_of, routes_of, rules_of, smtp_settings_of
from posthouse.smtp.address import Path
from posthouse.smtp.event import MailParameters
from posthouse.smtp.reply import Reply
from posthouse.transports.api import TlsMode, Unavailable
from posthouse.transports.opening import open_session

_PATIENCE = ClientTimeouts(connect=10.0, tls=20.0, greeting=30.0, command=30.0, mail=30.0, rcpt=60.0)
"""Someone is watching: a next hop that needs longer is reported as slow."""

_TLS_WORDS = {
    TlsMode.OPPORTUNISTIC: "opportunistic: STARTTLS where it is offered, in the clear where not",
    TlsMode.REQUIRED: "required: no mail without TLS",
    TlsMode.VERIFIED: "verified: no mail without TLS and a valid certificate for the host's name",
    TlsMode.NEVER: "never: in the clear",
}


class Verdict(enum.StrEnum):
    """What would become of the mail: it goes on, it is refused, or that can't be told now."""

    GOES_ON = "goes-on"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Case(msgspec.Struct, frozen=True):
    """The mail asked about. `client` "" and `login` "": handed in by a local user of this machine."""

    forward_path: Path
    reverse_path: Path
    client: str = ""
    login: str = ""
    connects: bool = False


class Step(msgspec.Struct, frozen=True):
    """One step: a name that programs may rely on, and words."""

    step: str
    words: str


class Trace(msgspec.Struct, frozen=True):
    """The whole answer; `dialogue` is what was said to the next hop, empty without `connects`."""

    verdict: Verdict
    steps: tuple[Step, ...]
    dialogue: tuple[str, ...] = ()


async def trace(config: Config, case: Case) -> Trace:
    """Follows a mail as far as it would go. ConfigError."""
    tracer = _Tracer(config, case)
    verdict = await tracer.run()
    return Trace(verdict, tuple(tracer.steps), tuple(tracer.transcript.lines))


class _Tracer:
    def __init__(self, config: Config, case: Case) -> None:
        self.steps: list[Step] = []
        self.transcript = Transcript()
        self._config = config
        self._case = case

    def _note(self, step: str, words: str) -> None:
        self.steps.append(Step(step, words))

    async def run(self) -> Verdict:
        option = DataDir(self._config.data_dir, -1).relay_option
        rules = rules_of(self._config, relay_enabled=option is not RelayOption.OFF)
        facts = self._facts()
        self._note("configuration", self._config.place)
        self._note("client", _client_words(facts))
        if option is RelayOption.OFF:
            self._note("relay", "relaying is off (`posthouse relay on`)")
        elif option is RelayOption.UNKNOWN:
            self._note(
                "relay", f"{self._config.data_dir}/relay-state can't be read; what follows holds if relaying is on"
            )
        decision = decide(facts, rules)
        if not isinstance(decision, Grant):
            return self._no(decision)
        self._note("decision", f"granted: {decision.kind}: {decision.reason}")
        expanded = expand(self._case.forward_path, decision, rules)
        if not isinstance(expanded, tuple):
            return self._no(expanded)
        return await self._follow(expanded)

    def _facts(self) -> Facts:
        case = self._case
        client = normalise_address(ip_address(case.client)) if case.client else Unknown.NOT_LEARNABLE
        if case.login:
            roles = {listener.role for listener in self._config.listeners}
            role = Role.SUBMISSION if ListenerRole.SUBMISSION in roles else Role.RELAY
            return Facts(role, client, case.forward_path, login=case.login)
        if case.client:
            return Facts(Role.RELAY, client, case.forward_path)
        return Facts(Role.LOCAL, client, case.forward_path, local_uid=os.getuid())

    def _no(self, answer: Refusal | Deferral | Need | Grant) -> Verdict:
        if isinstance(answer, Refusal | Deferral):
            self._note("decision", f"{answer.reply} ({answer.reason.slug})")
            return Verdict.REFUSED if isinstance(answer, Refusal) else Verdict.UNKNOWN
        self._note("decision", "it is not known who the client is")
        return Verdict.UNKNOWN

    async def _follow(self, recipients: Sequence[tuple[Path, Grant]]) -> Verdict:
        """Each recipient to its next hop; the worst answer is the verdict."""
        resolver = resolver_of(self._config)
        pathfinder = Pathfinder(routes_of(self._config), resolver, ourselves_of(self._config))
        verdicts = set()
        try:
            for path, grant in recipients:
                if path != self._case.forward_path:
                    self._note("alias", f"leads to {path} ({grant.kind}: {grant.reason})")
                verdicts.add(await self._find(path, pathfinder))
        finally:
            resolver.close()
        for verdict in (Verdict.REFUSED, Verdict.UNKNOWN):
            if verdict in verdicts:
                return verdict
        return Verdict.GOES_ON

    async def _find(self, path: Path, pathfinder: Pathfinder) -> Verdict:
        route = pathfinder.routes.find(path.domain)
        if route is not None:
            self._note("route", _route_words(route))
        directions = await pathfinder.find(path.domain)
        if not isinstance(directions, Directions):
            self._note("dns", f"{directions.reason} ({directions.status})")
            return Verdict.REFUSED if isinstance(directions, Failed) else Verdict.UNKNOWN
        for next_hop in directions.next_hops:
            self._describe(next_hop, path)
        if not self._case.connects:
            return Verdict.GOES_ON
        return await self._try_next_hops(directions, path)

    def _describe(self, next_hop: NextHop, path: Path) -> None:
        hop, route = next_hop.hop, next_hop.route
        match hop.kind:
            case HopKind.MAILDIR:
                local_part = path.local_part.decode("utf-8", "backslashreplace")
                self._note("next-hop", f"the Maildir {hop.path.replace('{local_part}', local_part)}")
            case HopKind.PIPE:
                self._note("next-hop", f"the program {' '.join(route.command)}")
            case _:
                hosts = ", ".join(str(Endpoint(*host)) for host in next_hop.hosts) or hop.path
                self._note("next-hop", f"{hop}: {hosts}, tried in this order")
                tls = "TLS from the first octet" if hop.kind is HopKind.SMTPS else _TLS_WORDS[route.tls]
                self._note("tls", tls)
                self._note_manner(route)

    def _note_manner(self, route: Route) -> None:
        """What the route changes of the dialogue."""
        manner = [f"EHLO {route.hello_name}"] if route.hello_name else []
        manner += [f"from {route.source_address}"] if route.source_address else []
        manner += [f"login {route.login.user}"] if route.login else []
        if route.new_reverse_path:
            manner.append(f"reverse-path {route.reverse_path(self._case.reverse_path)}")
        if manner:
            self._note("manner", ", ".join(manner))

    async def _try_next_hops(self, directions: Directions, path: Path) -> Verdict:
        """As a delivery would: the first that can be used decides."""
        last = Verdict.GOES_ON
        for next_hop in directions.next_hops:
            if next_hop.hop.kind in (HopKind.MAILDIR, HopKind.PIPE):
                return last
            settings = smtp_settings_of(next_hop, self._config.hostname)
            settings = msgspec.structs.replace(settings, timeouts=_PATIENCE, transcript=self.transcript)
            opened = await open_session(settings)
            if isinstance(opened, Unavailable):
                self._note("dialogue", f"{opened.reason}")
                last = Verdict.REFUSED if opened.is_permanent else Verdict.UNKNOWN
                continue
            channel, endpoint = opened
            return await self._ask(channel, endpoint, path, directions.route)
        return last

    async def _ask(self, channel: ClientChannel, endpoint: Endpoint, path: Path, route: Route) -> Verdict:
        reverse_path = route.reverse_path(self._case.reverse_path)
        smtputf8 = not (path.is_ascii and reverse_path.is_ascii)
        engine = channel.engine
        if smtputf8 and not engine.offers.smtputf8:
            await channel.quit()
            self._note("dialogue", f"{endpoint} does not offer SMTPUTF8, which the address needs (5.6.7)")
            return Verdict.REFUSED
        try:
            engine.mail(reverse_path, MailParameters(smtputf8=smtputf8))
            reply = await _reply(channel)
            if reply.is_positive:
                engine.rcpt(path, smtputf8=smtputf8)
                reply = await _reply(channel)
                engine.rset()
                await _reply(channel)
            await channel.quit()
        except PeerLost as lost:
            self._note("dialogue", f"{endpoint} {lost.words}")
            return Verdict.UNKNOWN
        finally:
            channel.close()
        self._note("dialogue", f"{endpoint} answers {reply}")
        if reply.is_positive:
            return Verdict.GOES_ON
        return Verdict.UNKNOWN if reply.is_transient else Verdict.REFUSED


async def _reply(channel: ClientChannel) -> Reply:
    await channel.flush()
    return (await channel.answer()).reply


def _client_words(facts: Facts) -> str:
    at = "" if isinstance(facts.client, Unknown) else f" at {facts.client}"
    if facts.login:
        return f"{facts.login}, logged in{at}"
    if facts.role is Role.LOCAL:
        return f"uid {facts.local_uid} of this machine (posthouse sendmail)"
    return f"a client{at}, not logged in"


def _route_words(route: Route) -> str:
    patterns = " ".join(pattern or "<postmaster>" for pattern in route.patterns)
    return f"{patterns} goes to {', then '.join(str(hop) for hop in route.hops)}"
