"""`posthouse test` and `posthouse scan` as they are typed."""

import json
import subprocess
import sys

import msgspec
import pytest

from posthouse.cli.program import run
from posthouse.tester.case import CASES
from posthouse.tester.report import Document
from rude_servers import Closed, Manners, serving_beside


class Open(Manners):
    def is_let_through(self, path):
        return True


class Busy(Manners):
    async def greet(self):
        self.writer.write(b"554 5.3.2 not today\r\n")
        raise Closed


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "posthouse.toml").write_text('hostname = "tester.test"\ndata_dir = "data"\n')
    return tmp_path


def told(capsys, behaviour, *words):
    with serving_beside(behaviour) as world:
        status = run(["test", f"127.0.0.1:{world.port}", *words])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.mark.parametrize(
    ("behaviour", "status", "words"), [(Manners, 0, "closed:"), (Open, 1, "open:"), (Busy, 3, "no verdict:")]
)
def test_exit_status_and_verdict_agree(capsys, behaviour, status, words):
    found, out, _ = told(capsys, behaviour, "-q")
    assert found == status
    assert words in out
    assert len(out.splitlines()) == 1


def test_table_has_a_row_for_every_case_and_the_verdict_stands_below_it(capsys):
    _, out, _ = told(capsys, Manners)
    numbers = [int(line.split()[0]) for line in out.splitlines() if line.split()[0].isdecimal()]
    assert numbers == [case.number for case in CASES]
    assert out.splitlines()[-1].endswith("none relayed")


def test_open_host_is_told_in_the_words_of_the_contract_with_the_first_thing_to_do(capsys):
    _, out, err = told(capsys, Open, "--case", "101")
    assert "accepted, delivery not observed" in out
    assert "first of all:" in out
    assert "no collector takes part" in err


def test_json_is_one_document_by_the_published_schema(capsys):
    status, out, _ = told(capsys, Open, "--json", "--case", "101", "--case", "201")
    document = msgspec.json.decode(out.encode(), type=Document)
    assert status == 1
    assert document.verdict == "open"
    (report,) = document.reports
    assert [result.number for result in report.results] == [101, 201]
    assert report.transcripts[0].lines
    assert json.loads(out)["reports"][0]["results"][0]["said"][1].startswith("RCPT TO:<")


def test_transcript_shows_every_line_but_not_the_probe_itself(capsys):
    _, out, _ = told(capsys, Open, "--case", "101", "--transcript")
    assert "-> RCPT TO:<relay-test@example.com>" in out
    assert "the probe," in out
    assert "Where to complain" not in out


def test_change_of_verdict_is_told(capsys, home):
    class Changing(Manners):
        def is_let_through(self, path):
            return (home / "open").exists()

    with serving_beside(Changing) as world:
        host = f"127.0.0.1:{world.port}"
        assert run(["test", host, "--diff", "-q"]) == 0
        assert "no earlier result" in capsys.readouterr().err
        (home / "open").touch()
        assert run(["test", host, "--diff", "-q"]) == 1
        assert "changed: verdict: closed -> open" in capsys.readouterr().out


def test_probe_says_who_tests_and_where_to_complain(capsys):
    with serving_beside(Open) as world:
        run(["test", f"127.0.0.1:{world.port}", "--case", "101", "-q"])
    ((path, content),) = world.relayed
    text = content.decode()
    assert path == "<relay-test@example.com>"
    for words in ("Who tests:", "tester.test", "Where to complain:", "postmaster@tester.test", "Auto-Submitted:"):
        assert words in text


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["test"], 2, "needs a host"),
        (["test", "192.0.2.0/24"], 2, "is a network"),
        (["test", "192.0.2.1"], 2, "nobody has proved control"),
        (["test", "127.0.0.1", "--case", "9999"], 2, "there is no case 9999"),
        (["test", "127.0.0.1", "--source", "here"], 2, "is not an IP address"),
        (["test", "127.0.0.1", "--ports", "25,x"], 2, "write ports with commas"),
        (["test", "127.0.0.1", "--from", "nobody"], 2, "is not a mail address"),
        (["test", "127.0.0.1", "-6"], 3, "no address of that family"),
        (["scan", "no-such-list"], 2, "No such file"),
        (["scan", "."], 2, "is a directory"),
    ],
)
def test_what_cannot_be_is_one_sentence(capsys, words, status, sentence):
    assert run(words) == status
    assert sentence in capsys.readouterr().err


def test_port_on_which_nobody_listens_does_not_count_beside_one_that_answers(capsys):
    status, out, _ = told(capsys, Manners, "--ports", "1", "-q")
    assert status == 0
    assert "connection refused" in out


def test_table_of_cases_can_be_listed(capsys):
    assert run(["test", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(case.name in out for case in CASES)
    assert "\0" not in out


def test_scan_answers_each_line_and_sums_up(capsys, home):
    with serving_beside(Manners) as closed, serving_beside(Open) as opened:
        lines = [
            f"127.0.0.1:{closed.port} # ours",
            f"127.0.0.1:{opened.port}",
            "192.0.2.0/24",
            "192.0.2.7",
            "\x1b[31m",
            "127.0.0.1:1",
        ]
        (home / "list").write_text("\n".join(lines))
        assert run(["scan", "list"]) == 1
        out = capsys.readouterr().out
        assert run(["scan", "list", "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
    assert out.splitlines()[-1] == "3 hosts tested: 1 open, 1 closed, 1 without a verdict; 3 lines not tested"
    assert "\x1b[31m" not in out
    assert {row["verdict"] for row in document["hosts"]} == {"open", "closed", "unknown", "not-tested"}
    assert document["verdict"] == "open"


def test_list_without_a_host_is_refused(capsys, home):
    (home / "list").write_text("# nothing\n")
    assert run(["scan", "list"]) == 2
    assert "names no host" in capsys.readouterr().err


def test_reader_of_a_scan_that_has_had_enough_is_no_fault_of_the_list(home):
    (home / "list").write_text("10.0.0.0/8\n" * 3)
    command = [sys.executable, "-m", "posthouse", "scan", "list"]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as scan:
        assert scan.stdout is not None
        assert scan.stderr is not None
        scan.stdout.close()
        said = scan.stderr.read().decode()
        assert scan.wait(30) != 2  # no fault of usage
    assert "list:" not in said
