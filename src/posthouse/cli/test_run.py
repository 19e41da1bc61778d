"""What `posthouse test` does: finds the addresses, asks for consent, tests, tells and keeps the result."""

import asyncio
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Literal

import click
import msgspec
import uvloop

from posthouse.cli.consent import admitted
from posthouse.cli.options import ExitStatus, fail, print_json
from posthouse.cli.test_text import Progress, print_report
from posthouse.config import Config
from posthouse.serve.collecting import testers_key
from posthouse.serve.testing import collector_of, identity_of
from posthouse.serve.wiring import resolver_of
from posthouse.smtp.address import AddressError, parse_mailbox
from posthouse.tester import history
from posthouse.tester.case import CASES
from posthouse.tester.collector import CollectorClient
from posthouse.tester.consent import Denial
from posthouse.tester.echo import is_nonce
from posthouse.tester.message import Tester
from posthouse.tester.office import OfficeFault
from posthouse.tester.places import Place, PlaceFault, find_addresses, parse_place
from posthouse.tester.prober import NO_THIRD_PARTY, ProberSettings, probe
from posthouse.tester.report import Denied, Document, Reach, Report, Target, judge_places
from posthouse.tester.verdict import HostVerdict

SMTP_PORT = 25
_AT_ONCE = 4
"""Places of one host that are tested side by side."""


class Wishes(msgspec.Struct, frozen=True):
    """The command line, checked."""

    place: Place
    ports: tuple[int, ...]
    family: Literal["", "4", "6"] = ""
    source: str = ""
    deadline: float = 300.0
    collector: str = "auto"
    delivery: float = 30.0
    numbers: tuple[int, ...] = ()
    domain: str = ""
    hello_name: str = ""
    reverse_path: str = ""
    third_party: str = ""
    nonce: str = ""
    shows_changes: bool = False
    quiet: bool = False
    shows_dialogues: bool = False
    prove: str = ""
    typed: str = ""


def wishes_of(host: str, *, ports: str, **given: Any) -> Wishes:
    """The command line as values. Ends the command with a sentence for what can't be."""
    try:
        place = parse_place(host)
    except PlaceFault as fault:
        fail(str(fault))
    given = {name: "" if value is None else value for name, value in given.items()}
    wishes = Wishes(place, _ports(place, ports), **given)
    check_wishes(wishes)
    return wishes


def _ports(place: Place, text: str) -> tuple[int, ...]:
    found = [place.port] if place.port else []
    for word in text.split(",") if text else ():
        if not word.strip().isdecimal() or not 0 < int(word) <= 65_535:
            fail(f"--ports {text!r}: write ports with commas between them, 25,465,587,2525")
        found.append(int(word))
    return tuple(dict.fromkeys(found or [SMTP_PORT]))


def check_wishes(wishes: Wishes) -> None:
    """Ends the command with a sentence for what can't be."""
    known = {case.number for case in CASES}
    for number in wishes.numbers:
        if number not in known:
            fail(f"there is no case {number}: `posthouse test --list` shows them")
    for option, text in (("--from", wishes.reverse_path), ("--to", wishes.third_party)):
        try:
            if text:
                parse_mailbox(text.encode(), smtputf8=False)
        except AddressError as error:
            fail(f"{option} {text!r} is not a mail address: {error}")
    if wishes.source:
        try:
            ip_address(wishes.source)
        except ValueError:
            fail(f"--source {wishes.source!r} is not an IP address")
    if wishes.nonce and not is_nonce(wishes.nonce):
        fail(f"--nonce {wishes.nonce!r} is none: `posthouse relay nonce` on the server to be tested prints one")
    for option, text in (("--hello", wishes.hello_name), ("--domain", wishes.domain)):
        if not text.isascii() or not text.isprintable() or " " in text:
            fail(f"{option} {text!r} is no host name")


def settings_of(config: Config, wishes: Wishes, *, has_collector: bool) -> ProberSettings:
    """How the prober shows itself and what it says."""
    identity = identity_of(config)
    is_named = bool(wishes.reverse_path or config.tester.reverse_path)
    local, _, domain = (wishes.reverse_path or identity.reverse_path).rpartition("@")
    return ProberSettings(
        tester=Tester(wishes.hello_name or identity.hello_name, identity.contact),
        tester_local=local,
        # Unless it is chosen, notices about probes should come to where probes do.
        tester_domain=domain if is_named or not has_collector else "",
        third_party=wishes.third_party or NO_THIRD_PARTY,
        source_address=wishes.source,
        deadline_seconds=wishes.deadline,
        delivery_seconds=wishes.delivery,
        numbers=frozenset(wishes.numbers),
        nonce=wishes.nonce,
    )


def collector_for(config: Config, wish: str) -> CollectorClient | None:
    """The configured collector; None when none is wanted or none can be asked, which is then said."""
    if wish == "none":
        return None
    collector, words = collector_of(config)
    if collector is None:
        click.echo(f"posthouse: no collector takes part: {words}", err=True)
    return collector


def test_once(config: Config, wishes: Wishes) -> Document:
    """One test of the host, with progress on a terminal. PlaceFault, OfficeFault."""
    progress = Progress()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_test(config, wishes, progress))
    finally:
        progress.clear()


def run_test(config: Config, wishes: Wishes, *, as_json: bool) -> int:
    """The whole command."""
    try:
        document = test_once(config, wishes)
    except (PlaceFault, OfficeFault) as fault:
        fail(str(fault), ExitStatus.NO_VERDICT if isinstance(fault, PlaceFault) else ExitStatus.USAGE)
    if not document.reports:
        fail(document.words)
    if as_json:
        print_json(document)
    else:
        print_document(document, wishes)
    return document.verdict.exit_status


def print_document(document: Document, wishes: Wishes) -> None:
    """For people."""
    for report in document.reports:
        print_report(report, is_quiet=wishes.quiet, shows_dialogues=wishes.shows_dialogues)
    for denied in document.denied:
        click.echo(f"{denied.place}: not tested: {denied.words}")
    if wishes.shows_changes:
        for change in document.changes or ("nothing has changed",):
            click.echo(f"  changed: {change}" if document.changes else f"  {change}")
    if len(document.reports) > 1:
        click.echo(document.words)


async def _test(config: Config, wishes: Wishes, progress: Progress) -> Document:
    targets, denied = await _find_targets(config, wishes)
    if not targets:
        return Document(wishes.place.host, HostVerdict.UNKNOWN, denied[0].words, (), denied)
    collector = collector_for(config, wishes.collector)
    key = testers_key(config) if collector is not None else None
    settings = settings_of(config, wishes, has_collector=collector is not None)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def test_one(target: Target) -> Report:
        async with turns:
            return await probe(
                target,
                settings,
                tokens=key,
                collector=collector,
                on_event=lambda event: progress.note(str(target), event),
            )

    try:
        reports = await asyncio.gather(*map(test_one, targets))
    finally:
        if collector is not None:
            await collector.close()
    changes = _remember(config, reports, wishes)
    verdict = judge_places(reports)
    return Document(wishes.place.host, verdict, _words(verdict, reports), tuple(reports), denied, changes)


async def _find_targets(config: Config, wishes: Wishes) -> tuple[list[Target], tuple[Denied, ...]]:
    """Every address and port that may be tested."""
    resolver = resolver_of(config)
    try:
        addresses = await find_addresses(resolver, wishes.place)
    finally:
        resolver.close()
    if wishes.family:
        addresses = tuple(one for one in addresses if one.version == int(wishes.family))
    if wishes.source:
        addresses = tuple(one for one in addresses if one.version == ip_address(wishes.source).version)
    if not addresses:
        raise PlaceFault(f"{wishes.place.host} has no address of that family")
    targets, denied = [], []
    for address in addresses:
        answer = admitted(config, wishes.place.host, address)
        if isinstance(answer, Denial):
            denied.append(Denied(str(address), answer.words))
            continue
        targets += [Target(str(address), port, wishes.place.host, wishes.domain) for port in wishes.ports]
    return targets, tuple(denied)


def _remember(config: Config, reports: Sequence[Report], wishes: Wishes) -> tuple[str, ...]:
    """Keeps the results; what has changed since the last ones. A test of chosen cases only is not kept as the host's result."""
    found: list[str] = []
    for report in reports:
        try:
            before = history.last(config.data_dir, report.address, report.port)
            if before is not None:
                where = f"{report.address} port {report.port}: " if len(reports) > 1 else ""
                found += [f"{where}{change}" for change in history.changes(before, report)]
            elif wishes.shows_changes:
                print(f"posthouse: no earlier result of {report.address} port {report.port} is kept", file=sys.stderr)
            if not wishes.numbers:
                history.keep(config.data_dir, report)
        except history.HistoryFault as fault:
            print(f"posthouse: {fault}", file=sys.stderr)
    return tuple(found) if wishes.shows_changes else ()


def _words(verdict: HostVerdict, reports: Sequence[Report]) -> str:
    """The verdict on the whole host in one sentence."""
    if len(reports) == 1:
        return reports[0].words
    deciding = [one for one in reports if one.verdict is verdict] or list(reports)
    places = ", ".join(str(Target(one.address, one.port)) for one in deciding[:4])
    untried = ", ".join(str(Target(one.address, one.port)) for one in reports if one.reach is Reach.NO_WAY)
    return f"{_VERDICT_WORDS[verdict]} at {places}{f'; this machine has no way to {untried}' if untried else ''}"


_VERDICT_WORDS = {HostVerdict.OPEN: "open", HostVerdict.CLOSED: "closed", HostVerdict.UNKNOWN: "no verdict"}


def print_cases(*, as_json: bool) -> int:
    """The table of cases."""
    if as_json:
        print_json(CASES)
        return ExitStatus.DONE
    for case in CASES:
        mail, rcpt = case.reverse_path + case.parameters, case.forward_path
        click.echo(f"{case.number:>4}  {case.name}\n      MAIL FROM:{_shown(mail)}  RCPT TO:{_shown(rcpt)}")
        click.echo(f"      {case.way}; right: {case.right}; {case.history}")
    return ExitStatus.DONE


def _shown(path: str) -> str:
    return path.encode("unicode_escape").decode() if not path.isprintable() else path
