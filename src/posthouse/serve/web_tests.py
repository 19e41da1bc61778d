"""The tests that visitors ask for, carried out by the tester's own engine: the one place where web and tester meet.

Each port of the host that answers is tested, one after the other: a host is asked politely, by one session's worth at a time.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from ipaddress import ip_address

from posthouse.config import Config, ConfigError
from posthouse.dns.resolver import Answer, Resolver
from posthouse.observe import log
from posthouse.policy.networks import Address
from posthouse.serve.collecting import testers_key
from posthouse.serve.testing import collector_of, identity_of, office_of
from posthouse.tester.collector import CollectorClient
from posthouse.tester.consent import Denial
from posthouse.tester.event import EventKind as ProbeEventKind
from posthouse.tester.event import ProbeEvent
from posthouse.tester.machine import own_addresses
from posthouse.tester.message import Tester
from posthouse.tester.prober import ProberSettings, probe
from posthouse.tester.report import Target
from posthouse.tester.token import TokenKey
from posthouse.web.desk import NotCarriedOut
from posthouse.web.document import PortState
from posthouse.web.event import EventKind, Who
from posthouse.web.job import Job

PORT_SECONDS = 300.0
TEST_SECONDS = 600.0
"""How long a test may take, a port and altogether: hosts that tarpit must not keep others waiting for ever."""

_LEAST_SECONDS = 20.0  # less is not worth beginning

CONNECT_SECONDS = 6.0
"""How long a port may take to answer; one that is filtered never does."""

_NAME_SECONDS = 3.0
_ARROWS = {"->": Who.TESTER, "<-": Who.HOST, "--": Who.NOBODY}


class Carrier:
    """Carries out tests as `config` says. Made anew at a reload; tests under way keep theirs."""

    def __init__(self, config: Config, resolver: Resolver) -> None:
        self._config = config
        self._resolver = resolver

    async def carry(self, job: Job) -> None:
        """One test. NotCarriedOut when it may not be, or can't be, carried out."""
        subject = job.subject
        address = ip_address(subject.address)
        office = office_of(self._config)
        answer = await asyncio.to_thread(office.admit, subject.host, address, is_caller=subject.by_calling)
        if isinstance(answer, Denial):
            raise NotCarriedOut(answer.words)
        if subject.by_calling and is_own(address):
            log.warning(
                "web-tests-itself",
                address=subject.address,
                words="somebody called from this machine itself; if visitors come through a proxy, name it in [web] proxies",
            )
        collector, key, words = await self._collector()
        try:
            job.tell(EventKind.STARTED, words=f"who tests: {identity_of(self._config).hello_name}; {words}")
            await self._knock(job)
            name = await self._name_of(job, address)
            ends_at = time.monotonic() + TEST_SECONDS
            for port in [one.port for one in job.ports if one.is_open]:
                seconds = min(PORT_SECONDS, ends_at - time.monotonic())
                if seconds < _LEAST_SECONDS:
                    job.leave_out(port, "answers, and was not tested: the test had taken too long already")
                    continue
                target = Target(subject.address, port, name)
                settings = self._prober_settings(job, seconds)
                report = await probe(target, settings, tokens=key, collector=collector, on_event=_teller(job, port))
                job.reports.append(report)
                job.tell(EventKind.NOTE, port=port, words=report.words)
        finally:
            if collector is not None:
                await collector.close()

    def _prober_settings(self, job: Job, seconds: float) -> ProberSettings:
        identity = identity_of(self._config)
        local, _, domain = identity.reverse_path.rpartition("@")
        asked_by = "whoever calls from the host" if job.subject.by_calling else "whoever showed control of the host"
        return ProberSettings(
            tester=Tester(identity.hello_name, identity.contact, asked_by),
            tester_local=local,
            tester_domain=domain if self._config.tester.reverse_path else "",
            nonce=job.subject.nonce,
            deadline_seconds=seconds,
        )

    async def _collector(self) -> tuple[CollectorClient | None, TokenKey | None, str]:
        """Whom to ask what has arrived, with its key; in words what the verdict will rest on. NotCarriedOut."""
        try:
            collector, why_not = await asyncio.to_thread(collector_of, self._config)
            if collector is None:
                return None, None, f"judged by the replies alone ({why_not})"
            return collector, testers_key(self._config), "judged by what arrives at its collector"
        except ConfigError as error:
            raise NotCarriedOut(f"this tester is not set up: {error}") from error

    async def _knock(self, job: Job) -> None:
        address = job.subject.address
        states = await asyncio.gather(*(_knock(address, port) for port in job.subject.ports))
        for state in states:
            job.ports.append(state)
            job.tell(EventKind.PORT, port=state.port, words=state.words)

    async def _name_of(self, job: Job, address: Address) -> str:
        """What the host is called: as its user does, else its reverse name, "" when it has none that is found soon."""
        if job.subject.host != job.subject.address:
            return job.subject.host
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NAME_SECONDS):
                found = await self._resolver.host_names(address)
                if isinstance(found, Answer):
                    return found.records[0]
        return ""


def is_own(address: Address) -> bool:
    """Loopback, or another address of this machine."""
    return address.is_loopback or address in own_addresses()


async def _knock(address: str, port: int) -> PortState:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _reader, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return PortState(port, False, f"no answer within {CONNECT_SECONDS:g} s")
    except OSError as error:
        return PortState(port, False, "closed" if isinstance(error, ConnectionRefusedError) else str(error.strerror))
    writer.transport.abort()
    return PortState(port, True, "answers")


def _teller(job: Job, port: int) -> Callable[[ProbeEvent], None]:
    """Passes a test's events on to those who watch."""

    def tell(event: ProbeEvent) -> None:
        match event.kind:
            case ProbeEventKind.LINE:
                seconds, who, text = _read_line(event.line)
                job.tell_line(port, event.session, seconds or event.at, who, text)
            case ProbeEventKind.SESSION_OPENED:
                job.tell_line(port, event.session, event.at, Who.NOBODY, event.line or "session opened")
            case ProbeEventKind.SESSION_CLOSED:
                job.tell_line(port, event.session, event.at, Who.NOBODY, event.line or "session closed")
            case ProbeEventKind.JUDGED if event.result is not None:
                job.tell(EventKind.CASE, port=port, case=event.result)
            case ProbeEventKind.WAITING:
                job.tell(EventKind.NOTE, port=port, words=f"waiting, {event.seconds:.0f} s at most: {event.line}")
            case _:
                pass  # the report says it

    return tell


def _read_line(line: str) -> tuple[float, Who, str]:
    """A transcript's line ("  1.204 -> RCPT TO:<...>") in its parts."""
    number, _, rest = line.strip().partition(" ")
    arrow, _, text = rest.strip().partition(" ")
    try:
        return float(number), _ARROWS[arrow], text
    except (ValueError, KeyError):
        return 0.0, Who.NOBODY, line.strip()
