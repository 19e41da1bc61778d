"""What the SQLite spool promises besides the contract: one writer, one sync for many, recovery, room, upkeep."""

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from posthouse.mail.message import Content, ContentFile, Message
from posthouse.mail.reason import Slug
from posthouse.smtp.event import DotForm
from posthouse.spool import content as content_module
from posthouse.spool import space as space_module
from posthouse.spool.api import ContentMissing, SpoolBroken, SpoolError, SpoolForeign, SpoolFull, SpoolLocked, Verb
from posthouse.spool.batch import SpoolSettings
from posthouse.spool.history import HistoryLimits
from posthouse.spool.operate import act_without_server
from posthouse.spool.recall import events_of, refusals, usage
from posthouse.spool.space import SpaceLimits
from posthouse.spool.sqlite import SqliteSpool
from spooling import NOW, SMALL, accept, accept_many, deferred, envelope, failed, message, relayed, sqlite_spool


def _play(scene):
    return asyncio.run(scene())


def _statements(spool: SqliteSpool) -> list[str]:
    seen: list[str] = []
    spool._batches.connection.set_trace_callback(seen.append)
    return seen


def test_all_that_arrives_in_one_turn_of_the_loop_shares_one_commit(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            seen = _statements(spool)
            await accept_many(spool, 50)
            assert seen.count("COMMIT") == 1

    _play(scene)


def test_what_arrives_while_clients_go_on_talking_shares_one_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("posthouse.spool.commit.COMPANY_SECONDS", 60.0)

    async def scene():
        heard = [0]
        with sqlite_spool(tmp_path / "1", heard=lambda: heard[0]) as spool:
            seen = _statements(spool)
            accepting = []
            for _ in range(10):  # turns of the loop, in each of which something comes
                heard[0] += 1
                accepting.append(asyncio.ensure_future(accept_many(spool, 1)))
                await asyncio.sleep(0)
            assert "COMMIT" not in seen
            await asyncio.gather(*accepting)
            assert seen.count("COMMIT") == 1

    _play(scene)


def test_clients_that_never_pause_hold_up_no_commit(tmp_path):
    async def scene():
        heard = iter(range(1 << 60))
        with sqlite_spool(tmp_path / "1", heard=lambda: next(heard)) as spool:
            async with asyncio.timeout(30):
                await accept_many(spool, 1)

    _play(scene)


def test_lone_message_waits_for_no_company(tmp_path, monkeypatch):
    monkeypatch.setattr("posthouse.spool.commit.COMPANY_SECONDS", 60.0)

    async def scene():
        with sqlite_spool(tmp_path / "1", heard=lambda: 7) as spool:
            seen = _statements(spool)
            accepting = asyncio.ensure_future(accept_many(spool, 1))
            for _ in range(3):  # turns: the task begins, the batch begins, and nothing more
                await asyncio.sleep(0)
            assert seen.count("COMMIT") == 1
            await accepting

    _play(scene)


def test_what_arrives_while_a_commit_runs_shares_the_next(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            batches = spool._batches
            spool._commit._kernel = None  # the thread can be held up, the kernel can't
            goes_on = threading.Event()
            is_committing = asyncio.Event()
            loop = asyncio.get_running_loop()
            commit = batches.commit

            def slow(batch):
                loop.call_soon_threadsafe(is_committing.set)
                goes_on.wait(5)
                commit(batch)

            batches.commit = slow
            seen = _statements(spool)
            first = asyncio.ensure_future(accept_many(spool, 1))
            await is_committing.wait()
            others = [asyncio.ensure_future(accept_many(spool, 2)) for _ in range(5)]
            await asyncio.sleep(0)
            assert not first.done()
            goes_on.set()
            await asyncio.gather(first, *others)
            assert seen.count("COMMIT") == 2

    _play(scene)


def test_message_is_not_due_before_whoever_accepted_it_is_told(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            batches = spool._batches
            spool._commit._kernel = None  # the thread can be held up, the kernel can't
            goes_on = threading.Event()
            is_committed = asyncio.Event()
            loop = asyncio.get_running_loop()
            commit = batches.commit

            def slow_to_tell(batch):
                commit(batch)
                loop.call_soon_threadsafe(is_committed.set)
                goes_on.wait(5)

            batches.commit = slow_to_tell
            telling = asyncio.ensure_future(accept_many(spool, 3))
            await is_committed.wait()
            assert len(spool.destinations()) == 1  # on disk
            assert spool.due("example.net", 1 << 60, 10) == []
            goes_on.set()
            await telling
            assert [w.queue_id for w in spool.due("example.net", 1 << 60, 10)] == telling.result()

    _play(scene)


@pytest.mark.parametrize("is_committed", [False, True])
def test_recipient_put_off_is_seen_at_its_new_time_while_the_commit_runs(tmp_path, is_committed):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            first, second, again, done = await accept_many(spool, 4, "a@one.example")
            batches = spool._batches
            goes_on = threading.Event()
            is_held_up = asyncio.Event()
            loop = asyncio.get_running_loop()
            commit = batches.commit

            def slow(batch):
                if is_committed:
                    commit(batch)
                loop.call_soon_threadsafe(is_held_up.set)
                goes_on.wait(5)
                if not is_committed:
                    commit(batch)

            batches.commit = slow
            spool.record(
                [deferred(first, next_at=NOW + 7), deferred(again, next_at=NOW + 1), relayed(done)], at_once=True
            )
            looks = []

            def look(_):
                every = spool.due("one.example", 1 << 60, 10)
                looks.append([(w.queue_id, w.next_at) for w in every])
                looks.append([w.queue_id for w in spool.due("one.example", 1 << 60, 1, (NOW + 6, 1 << 62, 0))])
                looks.append([one for one in spool.destinations() if one[0] == "one.example"])
                looks.append(spool.pending(done))

            # A content that goes into a file: its batch is committed by the thread.
            spool.accept(envelope(spool.new_queue_id()), message(b"x" * 30_000), look)
            await is_held_up.wait()
            spool.record(
                [deferred(second, next_at=NOW + 6), deferred(again, next_at=NOW + 8)]
            )  # these wait for the next
            look(None)
            goes_on.set()
            spool.flush()
            look(None)
            expected = [
                [(second, NOW + 6), (first, NOW + 7), (again, NOW + 8)],
                [first],
                [("one.example", NOW + 6, 3)],
                [],
            ]
            assert looks == expected * 3  # while it runs, when it has ended, and when all is on disk

    _play(scene)


def test_recipient_put_off_is_seen_where_an_act_moved_it_while_its_outcome_still_waits(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            first, second = await accept_many(spool, 2, "a@one.example")
            spool.record([deferred(first, next_at=NOW + 6), deferred(second, next_at=NOW + 7)])
            assert [w.queue_id for w in spool.due("one.example", 1 << 60, 10)] == [first, second]
            spool._batches._most_fates = 1  # as after a full disk: the second waits for one more batch
            seen = []

            def look(_):
                assert len(spool._batches.fates) == 1
                seen.append([w.queue_id for w in spool.due("one.example", 1 << 60, 10)])
                seen.append([(w.queue_id, w.next_at) for w in spool.due("smtp://10.0.0.5:25", 1 << 60, 10)])

            spool.accept(envelope(spool.new_queue_id()), message(), look)
            assert spool.act(Verb.REROUTE, [second], None, "smtp://10.0.0.5:25") == [second]
            assert seen == [[first], [(second, NOW + 7)]]

    _play(scene)


def test_recipients_put_off_are_looked_up_once(tmp_path, monkeypatch):
    monkeypatch.setattr("posthouse.spool.sqlite.RECORD_WITHIN", 60.0)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            ids = await accept_many(spool, 100, "a@one.example")
            spool.record([deferred(one, next_at=NOW + 5) for one in ids])
            seen: list[str] = []
            spool._reader.set_trace_callback(seen.append)
            assert spool.due("other.example", 1 << 60, 10) == []
            assert len(seen) == 2
            for _ in range(3):
                assert [w.queue_id for w in spool.due("one.example", 1 << 60, 1)] == ids[:1]
            spool.due("other.example", 1 << 60, 10)
            assert len([text for text in seen if "json_each" in text]) == 1

    _play(scene)


def test_outcomes_that_have_waited_ride_with_the_next_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("posthouse.spool.batch.FATES_AFTER", 0.0)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            (one,) = await accept_many(spool, 1)
            seen = _statements(spool)
            spool.record([relayed(one)])
            await accept_many(spool, 1)
            assert seen.count("COMMIT") == 1
            with pytest.raises(KeyError):
                spool.load(one)

    _play(scene)


@pytest.mark.parametrize("is_mail_coming", [True, False])
def test_outcomes_that_a_sender_is_told_of_go_with_the_next_commit(tmp_path, monkeypatch, is_mail_coming):
    monkeypatch.setattr("posthouse.spool.batch.FATES_AFTER", 60.0)
    monkeypatch.setattr("posthouse.spool.sqlite.RECORD_WITHIN", 60.0)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            (one,) = await accept_many(spool, 1)
            seen = _statements(spool)
            spool.record([relayed(one)], at_once=True)
            if is_mail_coming:
                await accept_many(spool, 1)
            async with asyncio.timeout(30):
                while spool._batches.running is not None or not seen:
                    await asyncio.sleep(0.001)
            assert seen.count("COMMIT") == 1
            with pytest.raises(KeyError):
                spool.load(one)

    _play(scene)


def test_young_outcomes_wait_for_company_while_mail_comes_in(tmp_path, monkeypatch):
    monkeypatch.setattr("posthouse.spool.batch.FATES_AFTER", 60.0)
    monkeypatch.setattr("posthouse.spool.batch.FATES_TOGETHER", 3)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            first, second, third = await accept_many(spool, 3)
            spool.record([relayed(first), relayed(second)])
            await accept_many(spool, 1)
            assert spool.load(first)
            spool.record([relayed(third)])
            await accept_many(spool, 1)
            for one in (first, second, third):
                with pytest.raises(KeyError):
                    spool.load(one)

    _play(scene)


def test_outcomes_are_on_record_in_time_however_much_mail_comes_in(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            (one,) = await accept_many(spool, 1)
            spool.record([relayed(one)])
            async with asyncio.timeout(20):
                while (
                    one in {waiting.queue_id for waiting in spool.pending(one)}
                    or len(events_of(tmp_path / "1", one)) < 2
                ):
                    await accept_many(spool, 1)

    _play(scene)


def test_timer_for_outcomes_does_not_delay_mail(tmp_path, monkeypatch):
    monkeypatch.setattr("posthouse.spool.sqlite.RECORD_WITHIN", 60.0)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            async with asyncio.timeout(50):  # less than one wait for the timer
                for _ in range(20):
                    (one,) = await accept_many(spool, 1)
                    spool.record([relayed(one)])

    _play(scene)


def test_restart_finds_everything_where_it_was(tmp_path):
    async def before():
        with sqlite_spool(tmp_path / "1") as spool:
            one, two = await accept_many(spool, 2, "a@one.example", "b@two.example")
            spool.record([relayed(one, 0), deferred(one, 1, next_at=NOW + 5), relayed(two, 0), relayed(two, 1)])
            return one, two

    one, two = _play(before)

    async def after():
        with sqlite_spool(tmp_path / "1") as spool:
            assert spool.destinations() == [("two.example", NOW + 5, 1)]
            assert [w.index for w in spool.pending(one)] == [1]
            assert len(spool.load(one)[0].recipients) == 2
            assert spool.new_queue_id() > two
            spool.record([relayed(one, 1)])
            spool.flush()
            assert spool.pending(one) == []
            assert spool.state.messages == 0

    _play(after)


def test_ids_grow_over_a_restart_though_the_clock_went_back(tmp_path):
    async def one(now: int) -> int:
        with sqlite_spool(tmp_path / "1", clock=lambda: now) as spool:
            (queue_id,) = await accept_many(spool, 1)
            spool.record([relayed(queue_id)])
            return queue_id

    assert asyncio.run(one(NOW - 3_600_000)) > 0
    assert asyncio.run(one(NOW)) < asyncio.run(one(NOW - 600_000))


def test_second_process_is_told_who_holds_the_queue(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1"), pytest.raises(SpoolLocked, match=f"process {os.getpid()}"):
            SqliteSpool(tmp_path / "1", 1)

    _play(scene)
    SqliteSpool(tmp_path / "1", 1).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_directory_of_another_user_is_refused(tmp_path):
    (tmp_path / "1").mkdir()
    os.chown(tmp_path / "1", 65534, 65534)
    with pytest.raises(SpoolForeign, match="uid 65534"):
        SqliteSpool(tmp_path / "1", 1)
    assert list((tmp_path / "1").iterdir()) == []


def test_newer_schema_is_refused_and_left_alone(tmp_path):
    SqliteSpool(tmp_path / "1", 1).close()
    with sqlite3.connect(tmp_path / "1" / "queue.db") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(SpoolForeign, match="newer"):
        SqliteSpool(tmp_path / "1", 1)
    with pytest.raises(SpoolForeign, match="newer"):  # the lock was given up
        SqliteSpool(tmp_path / "1", 1)


@pytest.mark.parametrize(
    ("column", "value"),
    [("grant_kind", None), ("grant_kind", "anybody"), ("grant_reason", None), ("grant_reason", ""), ("state", 7)],
)
def test_database_itself_refuses_a_recipient_without_a_grant(tmp_path, column, value):
    row = {
        "message": 1,
        "n": 0,
        "forward_path": b"a@b",
        "notify": 0,
        "original_recipient": "",
        "grant_kind": "trusted-network",
        "grant_slug": "trusted-network",
        "grant_reason": "because",
        "destination": "b",
        "next_at": 0,
        "state": 1,
    }
    SqliteSpool(tmp_path / "1", 1).close()
    connection = sqlite3.connect(tmp_path / "1" / "queue.db")
    insert = f"INSERT INTO recipient({','.join(row)}) VALUES ({','.join(f':{name}' for name in row)})"
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(insert, row | {column: value})
    connection.execute(insert, row)
    connection.close()


def test_message_that_cannot_be_stored_fails_alone(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            (taken,) = await accept_many(spool, 1)
            ends: dict[int, object] = {}
            fresh = [spool.new_queue_id() for _ in range(3)]
            for queue_id in [fresh[0], taken, fresh[1], fresh[2]]:
                spool.accept(envelope(queue_id), message(), lambda error, i=queue_id: ends.__setitem__(i, error))
            spool.flush()
            assert [ends[i] for i in fresh] == [None] * 3
            assert type(ends[taken]) is SpoolError
            assert {w.queue_id for w in spool.due("example.net", NOW, 10)} == {taken, *fresh}
            assert len(events_of(tmp_path / "1", taken)) == 1

    _play(scene)


def test_texts_that_are_no_utf8_are_kept_readable(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            given = envelope(spool.new_queue_id())
            odd = msgspec.structs.replace(
                given,
                origin=msgspec.structs.replace(given.origin, hello_name="h\udcff"),
                recipients=(msgspec.structs.replace(given.recipients[0], original_recipient="rfc822;\udcfe"),),
            )
            await accept(spool, (odd, message()))
            stored = spool.load(odd.queue_id)[0]
            assert stored.origin.hello_name == "h\\udcff"
            assert stored.recipients[0].original_recipient == "rfc822;\\udcfe"

    _play(scene)


def test_waiter_that_fails_does_not_silence_the_others(tmp_path):
    async def scene():
        reported: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        with sqlite_spool(tmp_path / "1") as spool:

            def fails(_):
                raise LookupError("a fault of the caller")

            heard: list[object] = []
            spool.accept(envelope(spool.new_queue_id()), message(), fails)
            spool.accept(envelope(spool.new_queue_id()), message(), heard.append)
            spool.flush()
            assert heard == [None]
        assert [type(context["exception"]) for context in reported] == [LookupError]

    _play(scene)


def test_middling_contents_share_a_file_that_goes_with_the_last_of_them(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            spool._batches.files._file_max = 100_000
            ids = [spool.new_queue_id() for _ in range(6)]
            octets = {i: bytes([n]) * 40_000 for n, i in enumerate(ids)}
            for i in ids:
                await accept(spool, (envelope(i), message(octets[i])))
            files = sorted(p.name for p in (tmp_path / "1" / "content").iterdir())
            assert files == ["c00000001", "c00000002"]
            spool.record([relayed(i) for i in ids[:2]])
            spool.flush()
            assert len(list((tmp_path / "1" / "content").iterdir())) == 2
            assert [spool.load(i)[1].content.pieces[0] == octets[i] for i in ids[2:]] == [True] * 4
            spool.record([relayed(ids[2])])
            spool.flush()
            spool._commit.tend()
            spool._commit.quiesce()
            assert [p.name for p in (tmp_path / "1" / "content").iterdir()] == ["c00000002"]

    _play(scene)


def test_sparse_file_is_emptied_and_goes(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            spool._batches.files._file_max = 200_000
            ids = [spool.new_queue_id() for _ in range(8)]
            octets = {i: bytes([n]) * 30_000 for n, i in enumerate(ids)}
            await accept(spool, *[(envelope(i), message(octets[i])) for i in ids])
            spool.record([relayed(i) for i in ids[:6]])
            spool.flush()
            assert spool._batches.compact()
            spool.flush()
            assert not spool._batches.compact()
            spool._commit.tend()
            spool._commit.quiesce()
            assert "c00000001" not in [p.name for p in (tmp_path / "1" / "content").iterdir()]
            for i in ids[6:]:
                assert spool.load(i)[1].content.pieces[0] == octets[i]
            return ids[6:], octets

    left, octets = _play(scene)

    async def after():
        with sqlite_spool(tmp_path / "1") as spool:
            for i in left:
                assert spool.load(i)[1].content.pieces[0] == octets[i]
            spool.record([relayed(i) for i in left])
            spool.flush()
        assert list((tmp_path / "1" / "content").iterdir()) == []

    _play(after)


def test_start_clears_what_a_crash_left(tmp_path):
    content = tmp_path / "1" / "content"
    SqliteSpool(tmp_path / "1", 1).close()
    (content / "m123").write_bytes(b"half a mess")
    (content / "c00000007").write_bytes(b"never committed")
    SqliteSpool(tmp_path / "1", 1).close()
    assert list(content.iterdir()) == []


def test_content_file_must_be_the_spools_own_and_finished(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            stranger = Content(3, DotForm.NONE, False, file=ContentFile("/etc/passwd", 0, 3))
            with pytest.raises(ValueError, match="open_sink"):
                spool.accept(envelope(spool.new_queue_id()), Message(b"", stranger), lambda _: None)
            queue_id = spool.new_queue_id()
            sink = spool.open_sink(queue_id)
            sink.write(b"abc")
            content = await sink.finish(DotForm.NONE, is_8bit=False)
            await accept(spool, (envelope(queue_id), Message(b"", content)))
            sink.abandon()
            with pytest.raises(ValueError, match="open_sink"):
                spool.accept(envelope(spool.new_queue_id()), Message(b"", content), lambda _: None)
            assert Path(spool.load(queue_id)[1].content.file.path).read_bytes() == b"abc"

    _play(scene)


def _damage_shared(directory: Path) -> None:
    with next(directory.glob("content/c*")).open("r+b") as file:
        file.seek(20_000)
        file.write(b"!")


def _damage_own(directory: Path) -> None:
    os.truncate(next(directory.glob("content/m*")), 5)


def _damage_row(directory: Path) -> None:
    connection = sqlite3.connect(directory / "queue.db")
    connection.execute("UPDATE message SET content = x'00' WHERE content IS NOT NULL")
    connection.commit()
    connection.close()


def _damage_envelope(directory: Path) -> None:
    connection = sqlite3.connect(directory / "queue.db")
    connection.execute("UPDATE message SET envelope = '{'")
    connection.commit()
    connection.close()


def _lose(directory: Path) -> None:
    for file in directory.glob("content/*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "size"),
    [
        (_damage_shared, 40_000),
        (_damage_own, 200_000),
        (_damage_row, 500),
        (_damage_envelope, 500),
        (_lose, 40_000),
        (_lose, 200_000),
    ],
)
def test_damaged_message_is_noticed_when_it_is_loaded(tmp_path, damage, size):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            queue_id = spool.new_queue_id()
            content = Content(size, DotForm.NONE, False, (b"x" * size,))
            if size > 65_536:
                sink = spool.open_sink(queue_id)
                sink.write(b"x" * size)
                content = await sink.finish(DotForm.NONE, is_8bit=False)
            await accept(spool, (envelope(queue_id), Message(b"", content)))
            damage(tmp_path / "1")
            with pytest.raises(ContentMissing):
                spool.load(queue_id)

    _play(scene)


def test_no_room_is_said_beforehand_and_mail_is_taken_again_by_itself(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    free = [100]

    class Found:
        f_frsize = 1_000_000
        f_files = real.f_files
        f_favail = 1_000_000

        @property
        def f_bavail(self):
            return free[0]

    monkeypatch.setattr("posthouse.spool.sqlite._TICK", 0.05)
    monkeypatch.setattr(space_module.os, "statvfs", lambda _: Found())
    settings = SpoolSettings(space=SpaceLimits(free_bytes=50_000_000, free_inodes=100))

    async def scene():
        with sqlite_spool(tmp_path / "1", settings=settings) as spool:
            assert spool.room_for(40_000_000) is None
            assert isinstance(spool.room_for(60_000_000), SpoolFull)
            free[0] = 40
            spool._tick()
            spool._commit.quiesce()
            assert isinstance(spool.room_for(1000), SpoolFull)
            free[0] = 60
            deadline = asyncio.get_running_loop().time() + 5
            while spool.room_for(1000) is not None:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.05)
            spool._commit.quiesce()  # a reading under way would not see the change
            Found.f_favail = 99
            spool._commit.tend()
            spool._commit.quiesce()
            assert isinstance(spool.room_for(1000), SpoolFull)

    _play(scene)


def test_reader_that_holds_a_snapshot_makes_the_log_grow_and_then_stops_doing_so(tmp_path, monkeypatch):
    monkeypatch.setattr("posthouse.spool.batch.CHECKPOINT_PAGES", 200)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:

            async def burst() -> int:
                for _ in range(15):
                    ids = [spool.new_queue_id() for _ in range(20)]
                    await accept(spool, *[(envelope(i), message(b"x" * 4000)) for i in ids])
                    spool.record([relayed(i) for i in ids])
                return spool.state.log_bytes

            usual = await burst()
            assert await burst() < usual * 1.5  # checkpoints keep the log short
            reader = sqlite3.connect(f"file:{tmp_path}/1/queue.db?mode=ro", uri=True, isolation_level=None)
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM message").fetchone()
            grown = await burst()
            grown = await burst()
            assert grown > usual * 1.5
            reader.close()
            await burst()
            after = spool.state.log_bytes
            await burst()
            assert spool.state.log_bytes == after

    _play(scene)


def test_free_pages_are_given_back_while_nothing_else_is_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("posthouse.spool.batch._VACUUM_ABOVE", 100)
    monkeypatch.setattr("posthouse.spool.batch.CHECKPOINT_PAGES", 100)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            ids = [spool.new_queue_id() for _ in range(300)]
            await accept(spool, *[(envelope(i), message(b"x" * 16_000)) for i in ids])
            spool.record([relayed(i) for i in ids])
            spool.flush()
            database = tmp_path / "1" / "queue.db"
            deadline = asyncio.get_running_loop().time() + 10
            while database.stat().st_size > 1_000_000 or spool._batches.has_idle_work:
                assert asyncio.get_running_loop().time() < deadline, database.stat().st_size
                spool._commit.tend()
                await asyncio.sleep(0.01)

    _play(scene)


def test_large_content_waits_for_the_disk_in_bounded_memory(tmp_path, monkeypatch):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            goes_on = threading.Event()
            write = content_module._write_all

            def slow(*arguments):
                goes_on.wait(5)
                write(*arguments)

            monkeypatch.setattr(content_module, "_write_all", slow)
            sink = spool.open_sink(spool.new_queue_id())
            sink.write(b"x" * 1000)
            assert not sink.is_congested
            sink.write(b"x" * 400_000)
            assert sink.is_congested
            waiting = asyncio.ensure_future(sink.drained())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            goes_on.set()
            await waiting
            assert not sink.is_congested
            assert (await sink.finish(DotForm.NONE, is_8bit=False)).size_bytes == 401_000
            sink.abandon()
            assert spool._batches.own.octets_in_flight == 0

    _play(scene)


def test_history_counts_who_used_and_who_was_refused(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "data" / "spool" / "1", clock=lambda: NOW) as spool:
            await accept_many(spool, 3, "a@one.example", "b@two.example")
            local = msgspec.structs.replace(envelope(1).origin, client="", local_uid=1000, login="")
            await accept(spool, (envelope(spool.new_queue_id(), origin=local), message()))
            for _ in range(5):
                spool.note_refusal("198.51.100.9", "", Slug.RELAY_DENIED)
            spool.flush()
            await accept_many(spool, 1)

    _play(scene)
    rows = usage(tmp_path / "data", NOW, NOW + 1)
    assert [(u.client, u.login, u.grant, u.messages, u.recipients) for u in rows] == [
        ("192.0.2.7", "alice", "trusted-network", 4, 7),
        ("uid 1000", "", "trusted-network", 1, 1),
    ]
    assert sum(u.size_bytes for u in rows) == 5 * 44
    assert [(r.client, r.slug, r.times) for r in refusals(tmp_path / "data", NOW, NOW + 1)] == [
        ("198.51.100.9", "relay-denied", 5)
    ]
    assert usage(tmp_path / "data", NOW + 3_600_000, NOW + 7_200_000) == []


def test_history_forgets_days_and_stays_in_size(tmp_path):
    day = 86_400_000
    now = [NOW]
    settings = SpoolSettings(space=SMALL.space, history=HistoryLimits(days=3, size_bytes=600_000))

    async def scene():
        with sqlite_spool(tmp_path / "1", settings=settings, clock=lambda: now[0]) as spool:
            history = tmp_path / "1" / "history"
            (first,) = await accept_many(spool, 1)
            spool.flush()
            for n in range(5):
                now[0] = NOW + n * day
                spool._commit.tend()
                spool._commit.quiesce()
                await accept_many(spool, 1)
                spool.flush()
            assert len(list(history.glob("*.db"))) == 3
            assert events_of(tmp_path / "1", first) == []
            for _ in range(25):  # a day that is busier than the size allows
                await accept_many(spool, 100)
                spool.flush()
                spool._batches.history._since_checkpoint = 1 << 20
                spool._commit.tend()
                spool._commit.quiesce()
            total = sum(p.stat().st_size for p in history.glob("*.db"))
            assert total < 900_000
            assert len(list(history.glob("*.db"))) > 3

    _play(scene)


def test_damaged_history_is_set_aside_and_refuses_no_mail(tmp_path):
    SqliteSpool(tmp_path / "1", 1).close()
    (day,) = (tmp_path / "1" / "history").glob("*.db")
    day.write_bytes(b"this is no database" * 1000)

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            (one,) = await accept_many(spool, 1)
            spool.flush()
            assert len(events_of(tmp_path / "1", one)) == 1
            assert spool.state.history_errors == 1

    _play(scene)
    assert [p.name for p in (tmp_path / "1" / "history").glob("damaged-*")] == [f"damaged-{day.name}"]


def test_history_that_cannot_be_written_refuses_no_mail(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "history").write_text("a file where the directory should be")

    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            (one,) = await accept_many(spool, 1)
            assert spool.load(one)
            assert spool.state.history_errors > 0

    _play(scene)


def test_acts_without_a_server_span_shards(tmp_path):
    async def scene():
        ids = []
        for shard in (1, 2):
            spool = SqliteSpool(tmp_path / "spool" / str(shard), shard, loop=asyncio.get_running_loop(), settings=SMALL)
            ids += await accept_many(spool, 2)
            spool.close()
        return ids

    ids = _play(scene)
    assert sorted(act_without_server(tmp_path, Verb.HOLD, [*ids, 3 << 12])) == sorted(ids)
    assert act_without_server(tmp_path, Verb.HOLD, ids) == []


@pytest.mark.parametrize("seed", range(3))
def test_count_of_what_waits_is_kept_without_looking(tmp_path, seed):
    dice = random.Random(seed)

    async def scene():
        for _ in range(2):  # the second time over what the first has left
            with sqlite_spool(tmp_path / "1") as spool:
                ids = []
                for _ in range(25):
                    ids += await accept_many(spool, 2, *(f"{n}@{n % 3}.example" for n in range(dice.randint(1, 4))))
                    one, index = dice.choice(ids), dice.randrange(4)
                    end = dice.choice((relayed, failed, deferred))
                    known = [waiting.index for waiting in spool.pending(one)]
                    if index in known:
                        spool.record([end(one, index)])
                    verb = dice.choice((Verb.HOLD, Verb.RELEASE, Verb.RETRY, Verb.BOUNCE, Verb.DELETE, None))
                    if verb is not None:
                        spool.act(verb, dice.sample(ids, 1), dice.choice((None, "1.example")))
                spool.flush()
                assert spool.state.queued == sum(count for _, _, count in spool.destinations())
                assert spool.state.held > 0

    _play(scene)


def test_figures_for_metrics(tmp_path):
    async def scene():
        with sqlite_spool(tmp_path / "1") as spool:
            assert (spool.state.messages, spool.state.held, spool.state.oldest_at) == (0, 0, 0)
            ids = await accept_many(spool, 3, "a@one.example", "b@one.example")
            spool.act(Verb.HOLD, ids[:1])
            assert spool.state.queued == 4
            assert (spool.state.messages, spool.state.held, spool.state.oldest_at) == (3, 2, NOW)
            spool.act(Verb.DELETE, ids[1:])
            assert spool.state.messages == 1
            assert spool.state.free_bytes > 0

    _play(scene)
    spool = SqliteSpool(tmp_path / "1", 1, settings=SMALL)
    assert spool.state.messages == 1
    spool.close()


def test_damaged_database_is_said_in_plain_words(tmp_path):
    SqliteSpool(tmp_path / "1", 1).close()
    (tmp_path / "1" / "queue.db").write_bytes(b"this was a database once" * 1000)
    with pytest.raises(SpoolBroken, match=r"queue\.db: the database is damaged"):
        SqliteSpool(tmp_path / "1", 1)


_FIFTY = """
import asyncio, pathlib, sys
from spooling import SMALL, envelope
from posthouse.mail.message import Message
from posthouse.smtp.event import DotForm
from posthouse.spool.sqlite import SqliteSpool

async def one(spool):
    queue_id = spool.new_queue_id()
    sink = spool.open_sink(queue_id)
    for _ in range(400):
        sink.write(bytes(65536))  # a new piece each, as a socket brings them
        if sink.is_congested:
            await sink.drained()
        await asyncio.sleep(0)
    content = await sink.finish(DotForm.NONE, False)
    end = asyncio.get_running_loop().create_future()
    spool.accept(envelope(queue_id), Message(b"", content), end.set_result)
    assert await end is None

async def main():
    spool = SqliteSpool(pathlib.Path(sys.argv[1]), 1, loop=asyncio.get_running_loop(), settings=SMALL)
    await asyncio.gather(*[one(spool) for _ in range(50)])
    spool.close()

asyncio.run(main())
# Not ru_maxrss: that remembers the size of the process that forked this one.
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1000)
"""


@pytest.mark.slow
def test_fifty_large_messages_at_once_stay_in_bounded_memory(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", _FIFTY, str(tmp_path / "1")],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert int(found.stdout) < 100  # MB
