"""`posthouse check --mta` for people and for programs; the statuses."""

import json
from pathlib import Path

import pytest

from posthouse.cli.program import run

MASTER = "smtp inet n - y - - smtpd\n"
MAIN = "compatibility_level = 3.6\nmyhostname = mx.ours.test\nmydestination = ours.test\nmynetworks = 127.0.0.0/8\nalias_maps =\n"


def written(directory: Path, more: str = "") -> str:
    (directory / "main.cf").write_text(MAIN + more)
    (directory / "master.cf").write_text(MASTER)
    return str(directory)


def test_a_closed_server_is_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--mta", "postfix", written(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("closed: no stranger can relay through this Postfix")
    assert "main.cf" in out


def test_an_open_server_is_1_with_the_mail_and_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "relay_domains = dept.test,\n  static:all\n")
    assert run(["check", "--mta", "postfix", path]) == 1
    out = capsys.readouterr().out
    for words in ("OPEN", "203.0.113.9", "<someone@third-party.example>", "main.cf, line 7", "static:all"):
        assert words in out
    assert run(["check", "--mta", "postfix", "--json", path]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "open"
    assert document["openings"][0]["line"] == 7
    assert document["openings"][0]["forward_path"] == "someone@third-party.example"
    assert set(document) == {"verdict", "mta", "configuration", "openings", "unknown", "doubts", "rests_on"}


def test_what_cannot_be_told_is_3_with_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "relay_domains = mysql:/etc/postfix/domains.cf\n")
    assert run(["check", "--mta", "postfix", "--json", path]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "unknown"
    assert document["openings"] == []
    assert document["unknown"][0]["line"] == 6
    assert run(["check", "--mta", "postfix", path]) == 3
    assert "can't tell" in capsys.readouterr().out
