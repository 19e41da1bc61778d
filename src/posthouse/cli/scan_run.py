"""What `posthouse scan` does: reads the list, tests what may be tested, and answers line by line."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import uvloop

from posthouse.cli.consent import admitted
from posthouse.cli.options import ExitStatus, fail
from posthouse.cli.test_run import Wishes, check_wishes, collector_for, settings_of
from posthouse.config import Config
from posthouse.serve.collecting import testers_key
from posthouse.serve.descriptors import raise_descriptor_limit
from posthouse.serve.wiring import resolver_of
from posthouse.tester import history
from posthouse.tester.consent import Denial
from posthouse.tester.office import OfficeFault
from posthouse.tester.places import Address, Place, find_addresses
from posthouse.tester.prober import ProberSettings, probe
from posthouse.tester.report import Reach, Report, Target
from posthouse.tester.scan import Entry, Refused, Scanned, Scanner, Skip, Skipped, read_list
from posthouse.tester.verdict import HostVerdict

_LONGEST_LINE = 10_000
_COLOURS = {HostVerdict.OPEN: "bright_red", HostVerdict.CLOSED: "green", HostVerdict.UNKNOWN: "yellow"}


class ScanWishes(msgspec.Struct, frozen=True):
    """The command line."""

    file: Path
    at_once: int
    sessions: int
    deadline: float
    collector: str
    source: str
    keeps_dialogues: bool


class _Tally:
    def __init__(self) -> None:
        self.hosts = dict.fromkeys(HostVerdict, 0)
        self.skipped = 0

    def add(self, answer: Scanned | Skipped) -> None:
        if isinstance(answer, Scanned):
            self.hosts[answer.verdict] += 1
        else:
            self.skipped += answer.why is not Skip.TWICE

    @property
    def verdict(self) -> HostVerdict:
        """Open when one is; closed when all are, and all were tested."""
        if self.hosts[HostVerdict.OPEN]:
            return HostVerdict.OPEN
        is_proven = self.hosts[HostVerdict.CLOSED] and not self.hosts[HostVerdict.UNKNOWN] and not self.skipped
        return HostVerdict.CLOSED if is_proven else HostVerdict.UNKNOWN

    @property
    def words(self) -> str:
        hosts = self.hosts
        return (
            f"{sum(hosts.values())} hosts tested: {hosts[HostVerdict.OPEN]} open, {hosts[HostVerdict.CLOSED]} closed, "
            f"{hosts[HostVerdict.UNKNOWN]} without a verdict; {self.skipped} lines not tested"
        )


def run_scan(config: Config, wishes: ScanWishes, *, as_json: bool) -> int:
    """The whole command."""
    raise_descriptor_limit()
    tally = _Tally()
    show = _ShowJson(wishes.keeps_dialogues) if as_json else _ShowText()
    with _lines(wishes.file) as lines:
        entries = list(read_list(lines))
    if not entries:
        fail(f"{wishes.file} names no host: write one a line, mx.example.org or 192.0.2.1:587")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_scan(config, wishes, entries, show, tally))
    show.end(tally)
    return ExitStatus(tally.verdict.exit_status)


@contextlib.contextmanager
def _lines(file: Path) -> Iterator[Iterator[str]]:
    """The lines of the list, whatever octets they hold; none is read beyond _LONGEST_LINE."""
    try:
        if str(file) == "-":
            yield iter(lambda: sys.stdin.readline(_LONGEST_LINE), "")
            return
        with file.open(encoding="utf-8", errors="replace") as opened:
            yield iter(lambda: opened.readline(_LONGEST_LINE), "")
    except OSError as error:
        fail(f"{file}: {error.strerror}")


async def _scan(
    config: Config, wishes: ScanWishes, entries: "list[Entry | Skipped]", show: "_Show", tally: _Tally
) -> None:
    collector = collector_for(config, wishes.collector)
    key = testers_key(config) if collector is not None else None
    settings = _settings(config, wishes, has_collector=collector is not None)
    resolver = resolver_of(config)

    async def probe_one(target: Target) -> Report:
        report = await probe(target, settings, tokens=key, collector=collector)
        try:
            history.keep(config.data_dir, report)
        except history.HistoryFault as fault:
            print(f"posthouse: {fault}", file=sys.stderr)
        return report

    def admit(place: Place, address: Address) -> None:
        try:
            answer = admitted(config, place.host, address)
        except OfficeFault as fault:
            raise Refused(str(fault)) from fault
        if isinstance(answer, Denial):
            raise Refused(answer.words)

    async def find(place: Place) -> tuple[Address, ...]:
        return await find_addresses(resolver, place)

    try:
        async for answer in Scanner(find, admit, probe_one, min(wishes.at_once, len(entries))).scan(entries):
            tally.add(answer)
            show.add(answer)
    finally:
        resolver.close()
        if collector is not None:
            await collector.close()


def _settings(config: Config, wishes: ScanWishes, *, has_collector: bool) -> ProberSettings:
    asked = Wishes(Place("localhost"), (), source=wishes.source, deadline=wishes.deadline)
    check_wishes(asked)
    settings = settings_of(config, asked, has_collector=has_collector)
    return msgspec.structs.replace(
        settings, at_once=wishes.sessions, dialogue_octets=settings.dialogue_octets if wishes.keeps_dialogues else 0
    )


class _ShowText:
    """A line for each."""

    def add(self, answer: Scanned | Skipped) -> None:
        if isinstance(answer, Skipped):
            click.echo(f"{click.style('not tested', fg='yellow')}  {answer.text}: line {answer.line}: {answer.words}")
            return
        for report in answer.reports:
            place = Target(report.address, report.port, report.target)
            click.echo(
                f"{click.style(f'{_WORDS[report.verdict]:<10}', fg=_COLOURS[report.verdict])}  {place}: {report.words}"
            )

    def end(self, tally: _Tally) -> None:
        click.echo(tally.words)


_WORDS = {HostVerdict.OPEN: "open", HostVerdict.CLOSED: "closed", HostVerdict.UNKNOWN: "no verdict"}


class _ShowJson:
    """One document, written as it grows, so that a long list needs no memory."""

    def __init__(self, keeps_dialogues: bool) -> None:
        self._keeps_dialogues = keeps_dialogues
        self._separator = '{"hosts":['

    def add(self, answer: Scanned | Skipped) -> None:
        self._write(self._separator + msgspec.json.encode(self._row(answer)).decode())
        self._separator = ",\n"

    def _row(self, answer: Scanned | Skipped) -> dict[str, object]:
        if isinstance(answer, Skipped):
            return {
                "line": answer.line,
                "host": answer.text,
                "verdict": "not-tested",
                "why": answer.why,
                "words": answer.words,
            }
        reports = answer.reports
        if not self._keeps_dialogues:
            reports = tuple(msgspec.structs.replace(report, transcripts=()) for report in reports)
        words = "; ".join(report.words for report in reports if report.reach is not Reach.NOBODY_LISTENS)
        return {
            "line": answer.line,
            "host": answer.host,
            "verdict": answer.verdict,
            "words": words or reports[0].words,
            "reports": reports,
        }

    def end(self, tally: _Tally) -> None:
        if self._separator.startswith("{"):
            self._write(self._separator)
        counts = {str(verdict): count for verdict, count in tally.hosts.items()} | {"not-tested": tally.skipped}
        rest = {"verdict": tally.verdict, "words": tally.words, "counts": counts, "format": 1}
        self._write("]," + msgspec.json.encode(rest).decode()[1:] + "\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


_Show = _ShowText | _ShowJson
