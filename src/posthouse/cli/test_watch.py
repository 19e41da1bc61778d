"""`posthouse test --watch`: the same test again and again; what has changed is told, and figures are kept for Prometheus."""

import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from posthouse.cli.options import ExitStatus, fail, print_json
from posthouse.cli.test_run import Wishes, print_document, test_once
from posthouse.config import Config, values
from posthouse.tester.office import OfficeFault
from posthouse.tester.places import PlaceFault
from posthouse.tester.report import Document, Report
from posthouse.tester.verdict import CaseVerdict, HostVerdict

SHORTEST_SECONDS = 60.0


class Rhythm(msgspec.Struct, frozen=True):
    """Seconds from the beginning of one test to that of the next; how many in all, 0: for ever; where the figures go."""

    every: float
    rounds: int = 0
    metrics_file: Path | None = None


def rhythm_of(every: str, rounds: int, metrics_file: Path | None) -> Rhythm:
    """The command line as values. Ends the command with a sentence for what can't be."""
    try:
        seconds = values.duration(every)
    except ValueError as error:
        fail(f"--every {error}")
    if seconds < SHORTEST_SECONDS:
        fail(f"--every {every!r} is too often: once a minute at most")
    if metrics_file is not None and not metrics_file.parent.is_dir():
        fail(f"--metrics {metrics_file}: there is no directory {metrics_file.parent}")
    return Rhythm(seconds, rounds, metrics_file)


def run_watch(config: Config, wishes: Wishes, rhythm: Rhythm, *, as_json: bool) -> int:
    """Tests until it is interrupted, or as often as was wished; the exit status is that of the last verdict.

    A host that can't be found now, or is not to be tested so often, is told and tried again at its time.
    """
    wishes = msgspec.structs.replace(wishes, shows_changes=True)
    status: int = ExitStatus.NO_VERDICT
    done = 0
    while True:
        began = time.monotonic()
        try:
            document = test_once(config, wishes)
        except PlaceFault as fault:
            _tell_failure(str(fault))
        except OfficeFault as fault:
            fail(str(fault))
        else:
            if not document.reports and not done:
                fail(document.words)
            status = document.verdict.exit_status
            _tell(document, wishes, is_first=not done, as_json=as_json)
            _write_figures(document, rhythm)
        done += 1
        if done == rhythm.rounds:
            return status
        time.sleep(max(0.0, began + rhythm.every - time.monotonic()))


def _tell_failure(words: str) -> None:
    click.echo(f"{_now()} no verdict: {words}", err=True)


def _tell(document: Document, wishes: Wishes, *, is_first: bool, as_json: bool) -> None:
    """The whole of the first test; then a line for each, and one for each change. With --json a document a line."""
    if as_json:
        print_json(document)
    elif is_first:
        print_document(document, wishes)
    else:
        click.echo(f"{_now()} {document.words}")
        for change in document.changes:
            click.echo(f"  changed: {change}")


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _write_figures(document: Document, rhythm: Rhythm) -> None:
    if rhythm.metrics_file is None:
        return
    new = rhythm.metrics_file.with_name(f".{rhythm.metrics_file.name}.new")
    try:
        new.write_text("".join(f"{line}\n" for line in figures_of(document)))
        new.replace(rhythm.metrics_file)  # a collector never reads half a file
    except OSError as error:
        click.echo(f"posthouse: {rhythm.metrics_file} can't be written: {error.strerror}", err=True)


def figures_of(document: Document) -> Iterator[str]:
    """Prometheus' text format, for node_exporter's textfile collector."""
    yield from _head("posthouse_test_verdict", "1 for the verdict of the last relay test of a host; 0 for the others.")
    for report in document.reports:
        for verdict in HostVerdict:
            labels = f'{_labels(report)},verdict="{verdict}"'
            yield f"posthouse_test_verdict{{{labels}}} {int(report.verdict is verdict)}"
    yield from _head("posthouse_test_cases", "Cases of the last relay test, by verdict.")
    for report in document.reports:
        for kind in CaseVerdict:
            labels = f'{_labels(report)},verdict="{kind}"'
            yield f"posthouse_test_cases{{{labels}}} {report.count.get(kind, 0)}"
    yield from _head("posthouse_test_duration_seconds", "How long the last relay test took.")
    for report in document.reports:
        yield f"posthouse_test_duration_seconds{{{_labels(report)}}} {report.seconds}"
    yield from _head("posthouse_test_time_seconds", "When the last relay test began, in seconds since 1970.")
    for report in document.reports:
        yield f"posthouse_test_time_seconds{{{_labels(report)}}} {report.started_at:.0f}"


def _head(name: str, words: str) -> Iterator[str]:
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} gauge"


def _labels(report: Report) -> str:
    return f'target="{_escaped(report.target)}",address="{_escaped(report.address)}",port="{report.port}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
