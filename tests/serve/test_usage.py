"""`posthouse usage`: who used the relay, who is new, who was refused; on screen, as JSON and as a mail."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posthouse.mail.envelope import Origin
from posthouse.serve.usage_report import compose, describe, gather
from posthouse.spool.history import History, HistoryLimits
from serve_fake import write_config

HOUR = 3_600_000
DAY = 24 * HOUR


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two shards: one user known for long, the same user from somewhere new, and refused strangers."""
    now = int(time.time() * 1000)
    for shard in (0, 1):
        directory = tmp_path / "data" / "spool" / str(shard)
        (directory / "history").mkdir(parents=True)
        for at, client in ((now - 10 * DAY, "192.0.2.7"), (now - DAY, "192.0.2.7"), (now - DAY, "203.0.113.9")):
            history = History(directory / "history", HistoryLimits(), at)
            origin = Origin(client, "ESMTPSA", login="alice")
            history.note_usage(at, origin, "authenticated-user", recipients=3, octets=1_500_000)
            history.note_refusal(at, "198.51.100.1", "evil\x1b[2J", "relay-denied")
            history.write()
            history.close()
    return tmp_path / "data"


def _report(data: Path, days: int = 7) -> list[str]:
    now = int(time.time() * 1000)
    return describe(gather(data, now - days * DAY, now + 1), most=10)


def test_usage_of_all_shards_is_added_and_newcomers_are_marked(data: Path) -> None:
    text = _report(data)
    assert any(line.split() == ["2", "6", "3.0", "MB", "192.0.2.7", "alice", "authenticated-user"] for line in text)
    assert any(
        line.split() == ["2", "6", "3.0", "MB", "203.0.113.9", "alice", "authenticated-user", "new"] for line in text
    )
    assert any(line.startswith("In all 4 messages to 12 recipients") for line in text)


def test_nobody_is_called_new_when_there_is_nothing_to_compare_with(data: Path) -> None:
    assert not any(line.endswith("new") for line in _report(data, days=14))


def test_refusals_are_counted_and_untrusted_logins_cannot_drive_a_terminal(data: Path) -> None:
    text = _report(data)
    assert any("198.51.100.1" in line and "relay-denied" in line and line.split()[0] == "4" for line in text)
    assert "\x1b" not in "".join(text)


def test_mail_says_in_its_subject_how_many_are_new_and_answers_nobody(data: Path) -> None:
    now = int(time.time() * 1000)
    mail = compose(gather(data, now - 7 * DAY, now + 1), "mx.example.org", "postmaster@example.org")
    assert mail["Subject"] == "Who relayed through mx.example.org: 1 new"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert "203.0.113.9" in mail.get_content()


def _usage(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "posthouse", "usage", "--config", str(config), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_command_prints_json_for_programs(data: Path) -> None:
    config = write_config(data.parent)
    document = json.loads(_usage(config, "--json", "--since", "7d").stdout)
    assert document["messages"] == 4
    assert {row["client"]: row["is_new"] for row in document["usage"]} == {"192.0.2.7": False, "203.0.113.9": True}
    assert document["refusals"][0]["reason"] == "relay-denied"
    assert document["refusals"][0]["times"] == 4


def test_command_says_nobody_where_there_is_no_history_yet(tmp_path: Path) -> None:
    done = _usage(write_config(tmp_path))
    assert done.returncode == 0
    assert "Nobody used it." in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--since", "soon"), "24h, 7d, 2w"),
        (("--since", "2999-01-01"), "future"),
        (("--mail",), '"postmaster"'),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_sentence(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = _usage(write_config(tmp_path), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_mail_without_a_server_says_so(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text('postmaster = "pm@example.org"\n' + config.read_text())
    done = _usage(config, "--mail")
    assert done.returncode == 2
    assert "could not be handed to the server" in done.stderr
