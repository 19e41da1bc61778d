"""What the server's and the queue's faults make of the exit status: one rule for all commands that meet them."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from peer_programs import server_directory
from posthouse.cli.program import run
from posthouse.net.listen import listen_unix

QUEUE_ID = "0" * 13
NO = {"error": "not today"}
UNDECIDED = {"error": "a worker did not answer in time", "is_refusal": False}
ACTS = [["relay", "off"], ["relay", "status"], ["reload"], ["queue", "hold", "--all"]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data.toml").write_text('data_dir = "data"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def answering(place: Path) -> Iterator[Callable[[object], None]]:
    """A server that answers `status`, and all else with what the test says: bytes as they are."""
    listening = listen_unix(place / "data" / "control.sock", 0o600)
    listening.setblocking(True)
    answers: list[object] = []

    def serve() -> None:
        while True:
            one, _ = listening.accept()
            with one, one.makefile("rb") as lines:
                verb = json.loads(lines.readline() or b'{"verb": "end"}')["verb"]
                if verb == "end":
                    return
                known = {"result": {"config": str(place / "data.toml")}}
                answer = known if verb == "status" else answers[0]
                one.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield answers.append
    with listening, socket.socket(socket.AF_UNIX) as last:
        last.connect(str(place / "data" / "control.sock"))
        last.shutdown(socket.SHUT_WR)
        thread.join(5)


def _one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("act", ACTS, ids=" ".join)
@pytest.mark.parametrize(("answer", "status"), [(NO, 1), (UNDECIDED, 3), (b'{"resu', 3)])
def test_a_no_is_1_and_a_silence_is_3(answering, capsys, monkeypatch, act, answer, status):
    monkeypatch.setattr("posthouse.spool.inspect.matching_ids", lambda *_: [1])
    answering(answer)
    assert run([*act, "--config", "data.toml"]) == status
    _one_sentence(capsys)


@pytest.mark.parametrize(
    "words",
    [["queue", "list"], ["queue", "show", QUEUE_ID], ["queue", "hold", "--all"], ["why", QUEUE_ID], ["why"], ["usage"]],
    ids=" ".join,
)
def test_a_queue_that_cannot_be_read_is_2(place, capsys, words):
    shard = place / "data" / "spool" / "0"
    (shard / "history").mkdir(parents=True)
    today = datetime.now(UTC).strftime("%Y%m%d")
    for name in ("queue.db", f"history/{today}-000.db"):
        (shard / name).write_bytes(b"no database " * 100)
    assert run([*words, "--config", "data.toml"]) == 2
    assert "can't be read" in _one_sentence(capsys)


AS_NOBODY = """import os, sys
from posthouse.cli import program, queue, relay, reload
from posthouse.serve import data_dir
os.setresuid(65534, 65534, 65534)
sys.exit(program.run(sys.argv[1:]))
"""


@pytest.mark.parametrize("act", ACTS, ids=" ".join)
def test_another_user_is_2(act):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with server_directory("faults") as directory:
        (directory / "data" / "spool").mkdir(parents=True)
        (directory / "data" / "spool").chmod(0o700)
        (directory / "data.toml").write_text('data_dir = "data"\n')
        with listen_unix(directory / "data" / "control.sock", 0o600):
            done = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, *act, "--config", str(directory / "data.toml")],
                capture_output=True, text=True, timeout=30, check=False, cwd="/",
            )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "closed to this user" in done.stderr
