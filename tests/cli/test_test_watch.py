"""`posthouse test --watch`: what is told of each round, and what a collector of figures reads."""

import json
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from posthouse.cli import test_watch
from posthouse.cli.program import run
from posthouse.cli.test_watch import figures_of
from posthouse.tester.report import Document, Report
from posthouse.tester.verdict import HostVerdict
from posthouse_server import ADDRESS, configured, posthouse, route_to


def test_changes_are_told_and_figures_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server is tested twice; in between it is opened for the tester."""
    trust = '[relay]\ntrusted_networks = ["{}"]\n'
    with configured(route_to("smtp://127.0.0.1:9")) as server:
        text = server.configuration.read_text()
        server.configuration.write_text(text + trust.format("127.9.9.9"))
        with server.serving():

            def open_it(_seconds: float) -> None:
                server.configuration.write_text(text + trust.format(ADDRESS))
                server.command("reload")

            figures = tmp_path / "posthouse.prom"
            arguments = ["test", server.address, "--watch", "--rounds", "2", "--every", "30m", "--collector", "none"]
            with monkeypatch.context() as patch:
                patch.setattr(time, "sleep", open_it)
                status = run([*arguments, "--metrics", str(figures), "--config", str(server.configuration)])
    said = capsys.readouterr().out
    assert status == 1
    assert (
        said.index("closed")
        < said.index("open: it accepted cases 101")
        < said.index("changed: verdict: closed -> open")
    )
    found = {family.name: family for family in text_string_to_metric_families(figures.read_text())}
    verdicts = {one.labels["verdict"]: one.value for one in found["posthouse_test_verdict"].samples}
    assert verdicts == {"open": 1, "closed": 0, "unknown": 0}


def test_host_that_cannot_be_found_is_told_and_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    with posthouse() as server:
        arguments = ["test", "no-such-host.test:25", "--watch", "--rounds", "1", "--config", str(server.configuration)]
        assert run(arguments) == 3
    assert "no verdict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--watch", "--every", "1s"], "too often"),
        (["--watch", "--every", "soon"], "--every"),
        (["--watch", "--metrics", "/nowhere/at/all.prom"], "no directory"),
        (["--every", "1h"], "go with --watch"),
        (["--rounds", "3"], "go with --watch"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["test", ADDRESS, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_figures_escape_what_a_name_may_hold() -> None:
    report = Report('a"b\\c', "192.0.2.1", 25, HostVerdict.OPEN, "", (), 1.0, 2.5)
    text = "".join(f"{line}\n" for line in figures_of(Document("", HostVerdict.OPEN, "", (report,))))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (duration,) = families["posthouse_test_duration_seconds"].samples
    assert (duration.labels["target"], duration.value) == ('a"b\\c', 2.5)


def test_json_is_one_document_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report("h", "192.0.2.1", 25, HostVerdict.CLOSED, "closed", (), 1.0, 2.5)
    monkeypatch.setattr(
        test_watch, "test_once", lambda _config, _wishes: Document("h", HostVerdict.CLOSED, "closed", (report,))
    )
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    assert run(["test", "h", "--watch", "--rounds", "2", "--json"]) == 0
    assert [json.loads(line)["verdict"] for line in capsys.readouterr().out.splitlines()] == ["closed", "closed"]
