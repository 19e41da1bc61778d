"""Disks that fail and disks that are full: nothing is acknowledged that may not be there, no sync is tried twice."""

import asyncio
import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posthouse.mail.message import Message
from posthouse.smtp.event import DotForm
from posthouse.spool import content as content_module
from posthouse.spool.api import SpoolBroken, SpoolError, SpoolFull, Verb
from posthouse.spool.batch import SPACE_SECONDS, SpoolSettings
from posthouse.spool.recall import events_of
from posthouse.spool.space import SpaceLimits
from posthouse.spool.sqlite import SqliteSpool
from spooling import NOW, SMALL, accept, accept_many, deferred, envelope, message, relayed, sqlite_spool

TESTS = Path(__file__).parents[1]


class Faulty:
    """A connection on which some statements fail the way SQLite says it."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self.real = real
        self.fails: dict[str, int] = {}
        self.seen: list[str] = []

    def execute(self, text: str, *values: object) -> sqlite3.Cursor:
        self.seen.append(text.split("(", maxsplit=1)[0])
        for start, code in self.fails.items():
            if text.startswith(start):
                error = sqlite3.OperationalError(
                    "database or disk is full" if code == sqlite3.SQLITE_FULL else "disk I/O error"
                )
                error.sqlite_errorcode = code
                raise error
        return self.real.execute(text, *values)

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


def _make_faulty(spool: SqliteSpool) -> Faulty:
    faulty = Faulty(spool._batches.connection)
    spool._batches.connection = spool._batches.writer._connection = faulty  # type: ignore[assignment]
    return faulty


def _ends(spool: SqliteSpool, count: int) -> list[SpoolError | None]:
    ends: list[SpoolError | None] = []
    for _ in range(count):
        spool.accept(envelope(spool.new_queue_id()), message(), ends.append)
    return ends


async def _until(condition) -> None:
    deadline = asyncio.get_running_loop().time() + 5
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.002)


@contextlib.contextmanager
def _doomed(directory: Path, broken: list[SpoolError]) -> Iterator[SqliteSpool]:
    """A spool that is expected to break; the process would leave by os._exit, so nothing is closed properly."""
    spool = SqliteSpool(directory, 1, loop=asyncio.get_running_loop(), settings=SMALL, on_broken=broken.append)
    yield spool
    spool.close()
    real = spool._batches.connection
    (real.real if isinstance(real, Faulty) else real).close()
    spool._batches.history.close()
    spool._reader.close()


@pytest.mark.parametrize("statement", ["COMMIT", "INSERT INTO message", "BEGIN IMMEDIATE"])
def test_failed_write_or_sync_ends_everything_and_is_not_tried_again(tmp_path, statement):
    async def scene():
        broken: list[SpoolError] = []
        with _doomed(tmp_path / "1", broken) as spool:
            (kept,) = await accept_many(spool, 1)
            faulty = _make_faulty(spool)
            faulty.fails[statement] = sqlite3.SQLITE_IOERR_FSYNC
            ends = _ends(spool, 3)
            await _until(lambda: len(ends) == 3 and broken)
            assert [type(end) for end in ends] == [SpoolBroken] * 3
            assert len(broken) == 1
            faulty.fails.clear()
            faulty.seen.clear()
            late = _ends(spool, 2)
            spool.record([relayed(kept)])
            assert isinstance(spool.room_for(1), SpoolBroken)
            await asyncio.sleep(0.12)
            assert [type(end) for end in late] == [SpoolBroken] * 2
            with pytest.raises(SpoolBroken):
                spool.flush()
            with pytest.raises(SpoolBroken):
                spool.act(Verb.HOLD, [kept])
            assert faulty.seen == []  # not a statement, not a commit, not a checkpoint
            assert len(broken) == 1

    asyncio.run(scene())


def test_failed_checkpoint_ends_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("posthouse.spool.batch.CHECKPOINT_PAGES", 1)

    async def scene():
        broken: list[SpoolError] = []
        with _doomed(tmp_path / "1", broken) as spool:
            _make_faulty(spool).fails["PRAGMA wal_checkpoint"] = sqlite3.SQLITE_IOERR_FSYNC
            await accept_many(spool, 1)  # durable by then: the log is synced
            await _until(lambda: broken)
            assert isinstance(spool.room_for(1), SpoolBroken)

    asyncio.run(scene())


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["fdatasync", "fsync"])  # of the file, of its directory
@pytest.mark.parametrize("size", [40_000, 200_000])
def test_failed_sync_of_a_content_file_ends_everything(tmp_path, monkeypatch, size, call, number):
    def fails(_: int) -> None:
        raise OSError(number, os.strerror(number))

    async def scene():
        broken: list[SpoolError] = []
        with _doomed(tmp_path / "1", broken) as spool:
            monkeypatch.setattr(content_module.os, call, fails)
            queue_id = spool.new_queue_id()
            if size > 65_536:
                sink = spool.open_sink(queue_id)
                sink.write(b"x" * size)
                with pytest.raises(SpoolBroken):
                    await sink.finish(DotForm.NONE, is_8bit=False)
            else:
                with pytest.raises(SpoolBroken):
                    await accept(spool, (envelope(queue_id), message(b"x" * size)))
            assert len(broken) == 1
            ends = _ends(spool, 1)
            await _until(lambda: ends)
            assert isinstance(ends[0], SpoolBroken)

    asyncio.run(scene())


@pytest.mark.parametrize("statement", ["COMMIT", "INSERT INTO message"])
def test_full_disk_takes_a_batch_back_whole_and_mail_is_taken_again(tmp_path, statement, monkeypatch):
    monkeypatch.setattr("posthouse.spool.sqlite._TICK", 0.05)
    monkeypatch.setattr("posthouse.spool.batch.SPACE_SECONDS", 0.1)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            one, two = await accept_many(spool, 2, "a@one.example", "b@two.example")
            faulty = _make_faulty(spool)
            faulty.fails[statement] = sqlite3.SQLITE_FULL
            spool.record([relayed(one, 0), deferred(one, 1, next_at=NOW + 9)])
            ends: dict[int, SpoolError | None] = {}
            fresh = [spool.new_queue_id() for _ in range(3)]
            for i in fresh:
                spool.accept(envelope(i), message(b"x" * 30_000), lambda error, i=i: ends.__setitem__(i, error))
            await _until(lambda: len(ends) == 3)
            assert [type(end) for end in ends.values()] == [SpoolFull] * 3
            # The outcomes are not forgotten, and known to whoever asks.
            assert [w.index for w in spool.pending(one)] == [1]
            assert [(w.queue_id, w.next_at) for w in spool.due("two.example", NOW + 9, 10)] == [
                (two, NOW),
                (one, NOW + 9),
            ]
            spool.flush()
            faulty.fails.clear()
            await _until(lambda: not spool._batches.fates and spool._batches.running is None)
            assert [(w.index, w.next_at) for w in spool.pending(one)] == [(1, NOW + 9)]
            await _until(lambda: spool.room_for(1) is None)
            again = await accept_many(spool, 2)
            assert {w.queue_id for w in spool.due("example.net", NOW, 10)} == set(again)
            assert spool.state.messages == 4
            spool.record([relayed(i, n) for i in (one, two) for n in (0, 1)] + [relayed(i) for i in again])
            spool.flush()
            assert spool.state.messages == 0
            events = events_of(tmp_path / "1", fresh[0])
            assert type(events[-1]).__name__ == "Withdrawn"
            spool._batches.connection = faulty.real

    asyncio.run(scene())


def test_full_disk_in_a_content_file_takes_the_batch_back(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            with monkeypatch.context() as patch:
                patch.setattr(content_module.os, "pwritev", full)
                with pytest.raises(SpoolFull):
                    await accept(spool, (envelope(spool.new_queue_id()), message(b"x" * 40_000)))
            with monkeypatch.context() as patch:
                patch.setattr(content_module.os, "writev", full)
                sink = spool.open_sink(spool.new_queue_id())
                sink.write(b"x" * 100)
                with pytest.raises(SpoolFull):
                    await sink.finish(DotForm.NONE, is_8bit=False)
                sink.abandon()
            assert spool._batches.own.octets_in_flight == 0
            queue_id = spool.new_queue_id()
            await accept(spool, (envelope(queue_id), message(b"y" * 40_000)))
            assert spool.load(queue_id)[1].content.pieces == (b"y" * 40_000,)

    asyncio.run(scene())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 6 MB and 40 inodes."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("not run: only root may mount a small filesystem to fill it")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,nr_inodes=40", "none", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"not run: the kernel refuses a small mount ({mounted.stderr.strip()})")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def _stream(spool: SqliteSpool, blocks: int) -> None:
    sink = spool.open_sink(spool.new_queue_id())
    try:
        for _ in range(blocks):
            sink.write(b"z" * 65_536)
            await sink.drained()
        await sink.finish(DotForm.NONE, is_8bit=False)
    finally:
        sink.abandon()


def test_disk_that_really_fills_refuses_mail_keeps_what_it_has_and_goes_on(small_disk, monkeypatch):
    monkeypatch.setattr("posthouse.spool.sqlite._TICK", 0.05)
    monkeypatch.setattr("posthouse.spool.batch.SPACE_SECONDS", 0.1)
    limits = SpaceLimits(free_bytes=0, free_inodes=0, reserve_bytes=700_000)

    async def scene():
        with sqlite_spool(small_disk / "1", settings=SpoolSettings(space=limits)) as spool:
            stored: list[int] = []
            refused = 0
            for size in (3000, 30_000, 3000) * 200:
                queue_id = spool.new_queue_id()
                try:
                    await accept(spool, (envelope(queue_id), Message(b"", message(bytes([size & 255]) * size).content)))
                    stored.append(queue_id)
                except SpoolFull:
                    refused += 1
                    if refused > 20:
                        break
            assert refused > 20
            assert len(stored) > 20
            assert {w.queue_id for w in spool.due("example.net", 1 << 60, 10_000)} == set(stored)
            with pytest.raises(SpoolFull):
                await _stream(spool, 80)
            for queue_id in stored:
                assert spool.load(queue_id)[1].size_bytes in (3000, 30_000)
            spool.record([relayed(i) for i in stored])
            await _until(lambda: not spool._batches.fates and spool._batches.running is None)
            assert spool.destinations() == []
            await _until(lambda: spool.room_for(1000) is None)
            assert len(await accept_many(spool, 5)) == 5
            assert (small_disk / "1" / "reserve").stat().st_size == 700_000

    asyncio.run(scene())


def test_disk_without_inodes_refuses_large_mail_and_goes_on(small_disk):
    async def scene():
        with sqlite_spool(small_disk / "1") as spool:
            fillers = []
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(small_disk / f"filler{len(fillers)}")
                    fillers[-1].touch()
            sink = spool.open_sink(spool.new_queue_id())
            sink.write(b"z" * 100_000)
            with pytest.raises(SpoolFull):
                await sink.finish(DotForm.NONE, is_8bit=False)
            sink.abandon()
            with pytest.raises(SpoolFull):
                await accept(spool, (envelope(spool.new_queue_id()), message(b"x" * 40_000)))
            assert len(await accept_many(spool, 3)) == 3
            fillers[0].unlink()
            await accept(spool, (envelope(spool.new_queue_id()), message(b"x" * 40_000)))

    asyncio.run(scene())


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_process_whose_sync_fails_acknowledges_nothing_after_it(tmp_path, call, nth):
    if shutil.which("strace") is None:
        pytest.skip("not run: strace is not installed")
    directory = tmp_path / "1"
    SqliteSpool(directory, 1, settings=SMALL).close()
    trace = tmp_path / "trace"
    victim = subprocess.run(
        ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={call},io_setup", "-e", f"inject={call}:error=EIO:when={nth}+",
         "-e", "inject=io_setup:error=EPERM",  # the commit thread syncs
         sys.executable, str(TESTS / "spool_victim.py"), str(directory), "4", "200"],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    failed = sum("EIO" in line and "INJECTED" in line for line in trace.read_text().splitlines())
    if failed == 0:
        assert victim.returncode == 0, victim.stderr
        return
    assert victim.returncode != 0
    acknowledged = {int(line[2:]) for line in victim.stdout.splitlines() if line.startswith("a ")}
    settled = {int(line[2:]) for line in victim.stdout.splitlines() if line.startswith("s ")}
    spool = SqliteSpool(directory, 1, settings=SMALL)
    stored = {w.queue_id for w in spool.due("example.net", 1 << 60, 1 << 30)}
    spool.close()
    assert acknowledged - settled - stored == set()


def test_many_outcomes_on_a_full_disk_are_not_tried_without_a_pause(tmp_path, monkeypatch):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            ids = await accept_many(spool, 40, "a@one.example")
            spool.record([deferred(one) for one in ids])
            batches = spool._batches
            waits: list[float] = []

            def full() -> None:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(batches, "_later", waits.append)
                patch.setattr(batches.writer, "begin", full)
                assert [batches.stage() for _ in range(3)] == [None] * 3
            assert waits == [SPACE_SECONDS] * 3

    asyncio.run(scene())
