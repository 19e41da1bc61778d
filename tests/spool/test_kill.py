"""A process killed at any moment loses nothing that it acknowledged."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posthouse.spool.api import Verb
from posthouse.spool.sqlite import SqliteSpool
from spool_victim import content_of
from spooling import SMALL

TESTS = Path(__file__).parents[1]


def _run_and_kill(directory: Path, after_seconds: float) -> tuple[set[int], set[int]]:
    """(acknowledged, about to be settled) of a process that is killed so long after it was ready."""
    victim = subprocess.Popen(
        [sys.executable, str(TESTS / "spool_victim.py"), str(directory), "12", "100000"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == b"ready\n"
    # The pipe holds what a fraction of a second acknowledges; a full one merely slows the victim down.
    time.sleep(after_seconds)
    victim.kill()
    lines = victim.stdout.read().decode().splitlines()
    victim.stdout.close()
    victim.wait()
    said = [line.split(" ", 1) for line in lines if line.count(" ")]
    assert not [rest for kind, rest in said if kind in "eb"]
    return {int(i) for kind, i in said if kind == "a"}, {int(i) for kind, i in said if kind == "s"}


def _check(directory: Path, acknowledged: set[int], settled: set[int]) -> int:
    started = time.monotonic()
    spool = SqliteSpool(directory, 1, settings=SMALL)
    assert time.monotonic() - started < 10
    try:
        stored = {w.queue_id for w in spool.due("example.net", 1 << 60, 1 << 30)}
        assert acknowledged - settled - stored == set(), "acknowledged mail is lost"
        for queue_id in stored:
            _, message = spool.load(queue_id)
            octets = b"".join(message.content.pieces)
            if message.content.file is not None:
                octets = Path(message.content.file.path).read_bytes()
            assert octets == content_of(queue_id)
        assert spool._batches.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert spool.act(Verb.DELETE, sorted(stored)) == sorted(stored)
    finally:
        spool.close()
    left = [path.name for path in (directory / "content").iterdir()]
    SqliteSpool(directory, 1, settings=SMALL).close()
    assert [path.name for path in (directory / "content").iterdir()] == [], left
    return len(acknowledged)


def _kill_often(directory: Path, times: int, seed: int) -> None:
    moments = random.Random(seed)
    total = 0
    for _ in range(times):
        acknowledged, settled = _run_and_kill(directory, moments.uniform(0.02, 0.25))
        total += _check(directory, acknowledged, settled)
    assert total > 0


def test_killed_process_loses_nothing_it_acknowledged(tmp_path):
    _kill_often(tmp_path / "1", 3, seed=1)


@pytest.mark.slow
def test_process_killed_many_times_loses_nothing_it_acknowledged(tmp_path):
    _kill_often(tmp_path / "1", int(os.environ.get("POSTHOUSE_KILLS", "25")), seed=2)
