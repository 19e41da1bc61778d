"""Syncs by the kernel: their end, their errors, and what happens where they are not to be had."""

import asyncio
import os

import pytest

from posthouse.spool import commit, kernel_sync
from posthouse.spool.kernel_sync import KernelSync
from posthouse.spool.sqlite import SqliteSpool
from spooling import SMALL, accept_many, sqlite_spool


def test_a_sync_ends_in_the_loop_or_where_it_is_waited_for(tmp_path):
    async def scene():
        kernel = KernelSync(asyncio.get_running_loop())
        fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x" * 10_000)
        ended = asyncio.get_running_loop().create_future()
        kernel.begin(fd, ended.set_result)
        assert kernel.is_busy
        assert await ended is None
        seen = []
        kernel.begin(fd, seen.append)
        kernel.wait()
        assert seen == [None]
        await asyncio.sleep(0.01)  # the eventfd still says so: that end is not told twice
        assert seen == [None]
        kernel.close()
        os.close(fd)

    asyncio.run(scene())


def test_what_cannot_be_synced_is_refused_where_it_is_asked_for():
    async def scene():
        kernel = KernelSync(asyncio.get_running_loop())
        reading, writing = os.pipe()
        with pytest.raises(OSError, match="no asynchronous sync"):
            kernel.begin(writing, lambda _error: None)
        assert not kernel.is_busy
        kernel.close()
        os.close(reading)
        os.close(writing)

    asyncio.run(scene())


def test_where_the_kernel_does_not_sync_the_commit_thread_does(tmp_path, monkeypatch):
    class Refused:
        def __init__(self, _loop):
            raise OSError("no asynchronous I/O")

    monkeypatch.setattr(commit, "KernelSync", Refused)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            assert spool._commit._kernel is None
            assert len(await accept_many(spool, 3)) == 3

    asyncio.run(scene())


def test_a_file_that_the_kernel_will_not_sync_is_left_to_the_thread(tmp_path, monkeypatch):
    def refuse(_self, _fd, _done):
        raise OSError("no asynchronous sync")

    monkeypatch.setattr(kernel_sync.KernelSync, "begin", refuse)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            assert len(await accept_many(spool, 3)) == 3
            assert spool._commit._kernel is None

    asyncio.run(scene())


def test_a_log_laid_out_beforehand_holds_nothing_and_takes_everything(tmp_path):
    log = tmp_path / "1" / "queue.db-wal"

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            spool.lay_out_log()
            assert log.stat().st_size == 17 * 1024 * 1024
            stored = await accept_many(spool, 3)
            (tmp_path / "2").mkdir()
            for path in (tmp_path / "1").glob("queue.db*"):  # as a crash would leave it
                (tmp_path / "2" / path.name).write_bytes(path.read_bytes())
            return stored

    stored = asyncio.run(scene())
    spool = SqliteSpool(tmp_path / "2", 1, settings=SMALL)
    assert {waiting.queue_id for waiting in spool.due("example.net", 1 << 60, 10)} == set(stored)
    spool.close()


def test_no_log_is_laid_out_where_there_is_little_room(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            spool._batches.space.free_bytes = 500_000_000
            spool.lay_out_log()
            assert (tmp_path / "1" / "queue.db-wal").stat().st_size < 1024 * 1024

    asyncio.run(scene())
