"""How a test looks to people: a table with colour, the verdict below it, and a line of progress while it runs."""

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence

import click

from posthouse.tester.case import CASES
from posthouse.tester.event import EventKind, ProbeEvent
from posthouse.tester.report import CaseResult, Path, Reach, Remedy, Report, Target
from posthouse.tester.verdict import CASE_WORDS, CaseVerdict, HostVerdict

_COLOURS = {
    CaseVerdict.RELAYED: "bright_red",
    CaseVerdict.ACCEPTED: "bright_red",
    CaseVerdict.NOT_DELIVERED: "yellow",
    CaseVerdict.REFUSED: "green",
    CaseVerdict.LOCAL: "green",
    CaseVerdict.BOUNCED: "yellow",
    CaseVerdict.NOT_TRIED: "bright_black",
    CaseVerdict.UNKNOWN: "yellow",
}
_HOST_COLOURS = {HostVerdict.OPEN: "bright_red", HostVerdict.CLOSED: "green", HostVerdict.UNKNOWN: "yellow"}
_NAME_WIDTH = max(len(case.name) for case in CASES)
_VERDICT_WIDTH = max(map(len, CASE_WORDS.values()))
_REDRAW_SECONDS = 0.1


class Progress:
    """One line on standard error where that is a terminal; gone when `clear` is called."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._drawn_at = 0.0
        self._width = 0
        self._accepted = 0

    def note(self, label: str, event: ProbeEvent) -> None:
        """Something happened in the test of `label`."""
        if not self._is_shown:
            return
        words = ""
        if event.kind is EventKind.JUDGED and event.result is not None:
            self._accepted += event.result.verdict in (CaseVerdict.ACCEPTED, CaseVerdict.RELAYED)
            accepted = f", {self._accepted} accepted" if self._accepted else ""
            words = f"{label}: {event.done} of {event.cases} cases{accepted}"
            if time.monotonic() - self._drawn_at < _REDRAW_SECONDS:
                return
        elif event.kind is EventKind.WAITING:
            words = f"{label}: waiting {event.seconds:.0f} s: {event.line}"
        if words:
            self._drawn_at = time.monotonic()
            self._draw(words)

    def clear(self) -> None:
        """Takes the line away."""
        if self._width:
            self._draw("")
            self._width = 0

    def _draw(self, words: str) -> None:
        words = words[: shutil.get_terminal_size().columns - 1]
        blank = " " * max(0, self._width - len(words))
        self._width = max(self._width, len(words))
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{words}{blank}" if words else f"\r{blank}\r")
            sys.stderr.flush()


def print_report(report: Report, *, is_quiet: bool, shows_dialogues: bool) -> None:
    """The table of one place, and under it what it comes to."""
    place = Target(report.address, report.port, report.target)
    if not is_quiet:
        click.echo(click.style(str(place), bold=True))
        for line in _head(report):
            click.echo(f"  {line}")
        if report.reach is Reach.TALKED:
            for result in report.results:
                _print_row(result)
    click.echo(click.style(f"{place}: {report.words}", fg=_HOST_COLOURS[report.verdict], bold=True))
    if is_quiet:
        return
    _print_paths(report.paths)
    for doubt in report.doubts:
        click.echo(f"  note: {doubt}")
    if report.remedy is not None:
        _print_remedy(report.remedy)
    if shows_dialogues:
        _print_dialogues(report)


def _head(report: Report) -> list[str]:
    lines = [f"says     {report.banner}"] if report.banner else []
    if report.software != "unknown" and report.banner:
        lines.append(f"software {report.software}")
    tls = report.tls
    if tls.state in ("offered", "implicit", "not-offered", "failed"):
        words = {
            "offered": "offered",
            "implicit": "from the first octet",
            "not-offered": "not offered",
            "failed": "fails",
        }
        subject = f", certificate {tls.subject or '(no subject)'} until {tls.not_after}" if tls.not_after else ""
        signed = " (self-signed)" if tls.is_self_signed else ""
        version = f" {tls.version}" if tls.version else ""
        lines.append(f"TLS      {words[tls.state]}{version}{subject}{signed}")
    return lines


def _print_row(result: CaseResult) -> None:
    verdict = click.style(f"{CASE_WORDS[result.verdict]:<{_VERDICT_WIDTH}}", fg=_COLOURS[result.verdict])
    why = " -- ".join(part for part in (result.reply, result.words) if part)
    line = f"{result.number:>5}  {result.name:<{_NAME_WIDTH}}  {verdict}  "
    room = 10_000
    if sys.stdout.isatty():
        room = max(20, shutil.get_terminal_size().columns - len(click.unstyle(line)) - 1)
    click.echo((line + why[:room]).rstrip())


def _print_paths(paths: Sequence[Path]) -> None:
    for path in paths[:3]:
        hops = f" by {len(path.hops)} hosts" if path.is_multi_hop else ""
        click.echo(
            f"  case {path.case_number} went in at {path.input_host} and came out at {path.output_host} "
            f"({path.output_hello_name}){hops}{': a multi-hop relay' if path.is_multi_hop else ''}"
        )
        for hop in path.hops if path.is_multi_hop else ():
            click.echo(f"      {' '.join(hop.field.split())}")


def _print_remedy(remedy: Remedy) -> None:
    click.echo(f"  first of all: {remedy.sentence}")
    for line in remedy.lines:
        click.echo(f"      {line}")
    if remedy.see:
        click.echo(f"      see {remedy.see}")


def _print_dialogues(report: Report) -> None:
    for session in report.transcripts:
        click.echo(f"  session {session.session}")
        for line in session.lines:
            click.echo(f"    {line}")
