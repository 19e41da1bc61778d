"""Opens the spool in every state that the model finds and holds it to its promise."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fault_model import Op, Recording, Said, State, build, points, states_at
from fault_oracle import content_of as octets_of
from fault_sabotage import python_path
from fault_scene import content_of, kind_of
from fault_syscalls import strace_command
from posthouse.spool.api import SpoolError
from posthouse.spool.sqlite import SqliteSpool
from spooling import SMALL

_TRACED = (
    "openat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,fdatasync,fsync,rename,renameat2,unlink,mkdir"
)


class Checked(msgspec.Struct):
    """What was found. `problems` must be empty."""

    ops: int = 0
    points: int = 0
    states: int = 0
    distinct: int = 0
    problems: list[str] = []


def record(directory: Path) -> tuple[list[Op], Path]:
    """A spool's life as ops, and the directory in which it was lived."""
    root = directory / "data"
    trace = directory / "trace"
    subprocess.run(
        [*strace_command(), "-f", "-qq", "-xx", "-y", "-s", "4000000", "-o", str(trace), "-e", f"trace={_TRACED},io_setup",
         "-e", "inject=io_setup:error=EPERM",  # the commit thread syncs: the order of its calls can be seen
         sys.executable, str(Path(__file__).with_name("fault_scene.py")), str(root / "1")],
        check=True, capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": python_path()},
    )  # fmt: skip
    ops = Recording(root).read(trace).ops
    assert Said("over", 0) in ops
    return ops, root


def check_states(
    ops: Sequence[Op], root: Path, sample: int = 0, seed: int = 0, progress: Callable[[Checked], None] = lambda _: None
) -> Checked:
    """Every state at every point (or at `sample` of them), each opened once."""
    checked = Checked(len(ops))
    seen: set[tuple[str, int]] = set()
    place = Path(
        tempfile.mkdtemp(prefix="posthouse-states-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    )
    try:
        for point in points(ops, sample, seed):
            checked.points += 1
            for state in states_at(ops, point):
                checked.states += 1
                digest = build(ops, state, root, place / "data")
                said = sum(isinstance(op, Said) for op in ops[:point])
                if (digest, said) in seen:
                    continue
                seen.add((digest, said))
                checked.distinct += 1
                checked.problems += [
                    f"after op {point} ({state.words}): {problem}"
                    for problem in _look(ops, state, place / "data" / "1")
                ]
            progress(checked)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return checked


def _look(ops: Sequence[Op], state: State, directory: Path) -> list[str]:
    said: dict[str, set[int]] = {word: set() for word in ("sends", "acknowledged", "settles", "settled")}
    for op in ops[: state.point]:
        if isinstance(op, Said) and op.word in said:
            said[op.word].add(op.queue_id)
    try:
        stored, problems = _open_and_read(directory)
    except (SpoolError, sqlite3.Error, OSError) as error:
        return [f"the queue does not open: {error!r}"]
    lost = said["acknowledged"] - said["settles"] - stored
    if lost:
        problems.append(f"lost {sorted(lost)}")
    if phantoms := stored - said["sends"]:
        problems.append(f"never sent {sorted(phantoms)}")
    if risen := stored & said["settled"]:
        problems.append(f"was settled and is back {sorted(risen)}")
    return problems


def _open_and_read(directory: Path) -> tuple[set[int], list[str]]:
    """Ids of the messages that are there unharmed; what else is wrong."""
    problems: list[str] = []
    stored: set[int] = set()
    spool = SqliteSpool(directory, 1, settings=SMALL)
    try:
        rows = spool._reader.execute(
            "SELECT DISTINCT message FROM recipient WHERE state<>3"
        ).fetchall()  # held ones too
        for (queue_id,) in rows:
            try:
                _, message = spool.load(queue_id)
                octets = octets_of(message)
            except (SpoolError, KeyError, OSError) as error:
                problems.append(f"{queue_id} can't be read: {error!r}")
                continue
            if octets == content_of(queue_id, kind_of(octets) or "row"):
                stored.add(queue_id)
            else:
                problems.append(f"{queue_id} is altered")
        found = spool._batches.connection.execute("PRAGMA integrity_check").fetchone()
        if found != ("ok",):
            problems.append(f"the database is damaged: {found}")
        spool.flush()
    finally:
        spool.close()
    return stored, problems


def tally(ops: Sequence[Op]) -> str:
    """What a recording holds, in words."""
    counts = Counter(type(op).__name__.lower() for op in ops)
    return ", ".join(f"{count} {name}s" for name, count in sorted(counts.items()))
