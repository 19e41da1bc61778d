"""What every spool promises. One suite for the SQLite and the in-memory spool."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path as FilePath

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posthouse.mail.envelope import Origin, Recipient
from posthouse.mail.message import Content, Message
from posthouse.mail.reason import Slug
from posthouse.smtp.address import NULL_PATH, Path
from posthouse.smtp.event import BodyType, DotForm, Notify, Ret
from posthouse.spool.api import Fate, Retry, Spool, Verb, destination_of
from posthouse.spool.memory import MemorySpool
from spooling import NOW, accept, accept_many, deferred, envelope, failed, message, path, relayed, sqlite_spool

LATER = NOW + 10 * 86_400_000


@contextlib.contextmanager
def _memory(_: FilePath) -> Iterator[Spool]:
    spool = MemorySpool(1, loop=asyncio.get_running_loop(), clock=lambda: NOW)
    yield spool
    spool.close()


@contextlib.contextmanager
def _sqlite(directory: FilePath) -> Iterator[Spool]:
    with sqlite_spool(directory / "1", clock=lambda: NOW) as spool:
        yield spool


Scene = Callable[[Spool], Awaitable[None]]


@pytest.fixture(params=[_memory, _sqlite], ids=["memory", "sqlite"])
def play(request: pytest.FixtureRequest, tmp_path: FilePath) -> Callable[[Scene], None]:
    """Plays a scene on a fresh spool."""
    count = itertools.count()

    def _play(scene: Scene) -> None:
        async def run() -> None:
            with request.param(tmp_path / str(next(count))) as spool:
                await scene(spool)

        asyncio.run(run())

    return _play


def test_message_comes_back_as_it_was_accepted(play):
    origin = Origin("2001:db8::7", "UTF8SMTPSA", "client.example", "alice", "TLSv1.3", "[::]:465", -1, 465)

    async def scene(spool: Spool) -> None:
        plain = envelope(spool.new_queue_id(), "one@example.net", origin=origin)
        given = msgspec.structs.replace(
            plain,
            reverse_path=Path(b'odd "@" %local', "xn--bcher-kva.example"),
            recipients=(
                Recipient(Path(b"postmaster", ""), plain.recipients[0].grant, Notify.NEVER),
                Recipient(
                    Path("jürgen".encode(), "[IPv6:2001:db8::1]"),
                    plain.recipients[0].grant,
                    Notify.SUCCESS | Notify.DELAY,
                    "utf-8;jürgen@example.net",
                ),
            ),
            body=BodyType.EIGHT_BIT_MIME,
            smtputf8=True,
            ret=Ret.HEADERS,
            envelope_id="id+1",
        )
        sent = Message(b"Received: x\r\n", Content(11, DotForm.STUFFED, True, (b"..a\r\n", b"\xff\xfe\r\n\r\n")))
        await accept(spool, (given, sent))
        got, stored = spool.load(given.queue_id)
        assert got == given
        assert stored.trace == sent.trace
        assert b"".join(stored.content.pieces) == b"..a\r\n\xff\xfe\r\n\r\n"
        assert (stored.content.dots, stored.content.is_8bit, stored.size_bytes) == (DotForm.STUFFED, True, 24)

    play(scene)


def test_null_reverse_path_comes_back(play):
    async def scene(spool: Spool) -> None:
        given = envelope(spool.new_queue_id(), reverse_path="@")
        assert given.reverse_path == NULL_PATH
        await accept(spool, (given, message()))
        assert spool.load(given.queue_id)[0].reverse_path.is_null

    play(scene)


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 63_000, 200_000])
def test_content_of_any_size_comes_back(play, size):
    async def scene(spool: Spool) -> None:
        octets = bytes(range(256)) * (size // 256 + 1)
        content = Content(size, DotForm.NONE, True, (octets[: size // 2], octets[size // 2 : size]))
        one, two = envelope(spool.new_queue_id()), envelope(spool.new_queue_id())
        await accept(spool, (one, Message(b"", content)), (two, message(b"other")))
        assert b"".join(spool.load(one.queue_id)[1].content.pieces) == octets[:size]
        assert b"".join(spool.load(two.queue_id)[1].content.pieces) == b"other"

    play(scene)


def test_streamed_content_comes_back(play):
    async def scene(spool: Spool) -> None:
        given = envelope(spool.new_queue_id())
        sink = spool.open_sink(given.queue_id)
        for n in range(40):
            sink.write(bytes([n]) * 65_000)
            if sink.is_congested:
                await sink.drained()
        content = await sink.finish(DotForm.PLAIN, is_8bit=True)
        await accept(spool, (given, Message(b"t\r\n", content)))
        stored = spool.load(given.queue_id)[1].content
        assert (stored.size_bytes, stored.dots, stored.is_8bit) == (40 * 65_000, DotForm.PLAIN, True)
        assert _octets(stored) == b"".join(bytes([n]) * 65_000 for n in range(40))

    play(scene)


def _octets(content: Content) -> bytes:
    if content.file is None:
        return b"".join(content.pieces)
    octets = FilePath(content.file.path).read_bytes()
    return octets[content.file.offset : content.file.offset + content.file.length]


def test_recipient_without_a_grant_is_a_type_error_and_nothing_enters(play):
    async def scene(spool: Spool) -> None:
        given = envelope(spool.new_queue_id())
        for impostor in (None, True, "trusted-network", object()):
            bare = msgspec.structs.replace(
                given, recipients=(Recipient(path("a@b.example"), impostor), *given.recipients)
            )
            with pytest.raises(TypeError, match="grant"):
                spool.accept(bare, message(), lambda _: None)
        spool.flush()
        assert spool.destinations() == []

    play(scene)


def test_message_without_recipients_is_refused(play):
    async def scene(spool: Spool) -> None:
        with pytest.raises(ValueError, match="recipient"):
            spool.accept(
                msgspec.structs.replace(envelope(spool.new_queue_id()), recipients=()), message(), lambda _: None
            )

    play(scene)


def test_ids_are_new_and_growing(play):
    async def scene(spool: Spool) -> None:
        ids = [spool.new_queue_id() for _ in range(5000)]
        assert ids == sorted(set(ids))

    play(scene)


def test_callers_hear_in_the_loops_thread_and_once(play):
    async def scene(spool: Spool) -> None:
        import threading

        heard: list[tuple[object, str]] = []
        ids = [spool.new_queue_id() for _ in range(30)]
        for queue_id in ids:
            spool.accept(
                envelope(queue_id), message(), lambda error: heard.append((error, threading.current_thread().name))
            )
        assert heard == []  # never from within accept
        while len(heard) < 30:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert heard == [(None, threading.current_thread().name)] * 30

    play(scene)


def test_accepted_recipients_wait_by_destination_from_their_arrival(play):
    async def scene(spool: Spool) -> None:
        given = envelope(spool.new_queue_id(), "a@one.example", "b@two.example", "c@one.example")
        await accept(spool, (given, message()))
        assert [destination_of(r) for r in given.recipients] == ["one.example", "two.example", "one.example"]
        assert sorted(spool.destinations()) == [("one.example", NOW, 2), ("two.example", NOW, 1)]
        assert [(w.queue_id, w.index, w.next_at, w.attempts) for w in spool.due("one.example", NOW, 10)] == [
            (given.queue_id, 0, NOW, 0),
            (given.queue_id, 2, NOW, 0),
        ]
        assert spool.due("one.example", NOW - 1, 10) == []
        assert spool.due("three.example", NOW, 10) == []

    play(scene)


def test_due_pages_by_key_oldest_first(play):
    async def scene(spool: Spool) -> None:
        ids = await accept_many(spool, 25, "a@one.example", "b@one.example")
        found, after = [], (0, 0, 0)
        while page := spool.due("one.example", NOW, 7, after):
            assert len(page) <= 7
            found += [(w.queue_id, w.index) for w in page]
            after = (page[-1].next_at, page[-1].queue_id, page[-1].index)
        assert found == [(i, n) for i in ids for n in (0, 1)]

    play(scene)


def test_deferred_recipient_waits_until_its_time_with_its_last_outcome(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, "a@one.example", "b@one.example")
        fate = deferred(queue_id, 1, next_at=NOW + 1000, attempts=3)
        spool.record([fate])
        for _ in range(2):  # before it is on disk, and after
            assert [w.index for w in spool.due("one.example", NOW, 10)] == [0]
            assert [(w.index, w.attempts, w.next_at) for w in spool.pending(queue_id)] == [
                (0, 0, NOW),
                (1, 3, NOW + 1000),
            ]
            spool.flush()
        assert [(w.index, w.attempts) for w in spool.due("one.example", NOW + 1000, 10)] == [(0, 0), (1, 3)]
        assert spool.last_outcomes(queue_id) == {1: fate.outcome}

    play(scene)


def _positions(found):
    return [(w.next_at - NOW, w.index) for w in found]


def test_recipients_just_put_off_are_due_at_their_new_time_in_their_place(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, *["a@one.example"] * 6, "b@two.example")
        # Put off are 1, 2 and 4; 3 is settled; 0 and 5 are not tried yet.
        spool.record([deferred(queue_id, 1, next_at=NOW + 9), deferred(queue_id, 2, next_at=NOW + 5)])
        spool.record([deferred(queue_id, 6, next_at=NOW + 1), relayed(queue_id, 3)])
        spool.record([deferred(queue_id, 4, next_at=NOW + 5)])
        beyond_now = (NOW, 1 << 62, 0)  # as the scheduler asks when to look next
        for _ in range(2):  # before it is on disk, and after
            for now, limit, after, expected in (
                (NOW, 10, (0, 0, 0), [(0, 0), (0, 5)]),
                (NOW + 5, 10, (0, 0, 0), [(0, 0), (0, 5), (5, 2), (5, 4)]),
                (NOW + 5, 3, (0, 0, 0), [(0, 0), (0, 5), (5, 2)]),
                (NOW + 9, 3, (NOW, queue_id, 0), [(0, 5), (5, 2), (5, 4)]),
                (NOW + 9, 10, (NOW + 5, queue_id, 2), [(5, 4), (9, 1)]),
                (LATER, 1, beyond_now, [(5, 2)]),
                (LATER, 10, beyond_now, [(5, 2), (5, 4), (9, 1)]),
                (LATER, 0, (0, 0, 0), []),
            ):
                assert _positions(spool.due("one.example", now, limit, after)) == expected
            assert _positions(spool.due("two.example", LATER, 1, beyond_now)) == [(1, 6)]
            assert sorted(spool.destinations()) == [("one.example", NOW, 5), ("two.example", NOW + 1, 1)]
            spool.flush()

    play(scene)


def test_recipient_just_put_off_comes_with_its_attempts_and_notices(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, "a@one.example")
        first = deferred(queue_id, next_at=NOW + 1, attempts=1)
        again = msgspec.structs.replace(first, then=Retry(NOW + 2, notices=1), attempts=2)
        spool.record([first])
        assert [(w.next_at, w.attempts, w.notices) for w in spool.due("one.example", LATER, 10)] == [(NOW + 1, 1, 0)]
        spool.record([again])
        for _ in range(2):
            assert [(w.next_at, w.attempts, w.notices) for w in spool.due("one.example", LATER, 10)] == [
                (NOW + 2, 2, 1)
            ]
            spool.flush()
        spool.record([first])
        assert [w.next_at for w in spool.due("one.example", LATER, 10)] == [NOW + 1]
        spool.record([relayed(queue_id)])
        assert spool.due("one.example", LATER, 10) == []
        assert spool.destinations() == []

    play(scene)


def test_what_is_put_off_while_held_or_to_be_bounced_stays_so(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, "a@one.example", "b@two.example")
        spool.act(Verb.HOLD, [queue_id], "one.example")
        spool.act(Verb.BOUNCE, [queue_id], "two.example")
        spool.record([deferred(queue_id, 0, next_at=NOW + 5), deferred(queue_id, 1, next_at=LATER)])
        for _ in range(2):
            assert spool.due("one.example", LATER, 10) == []
            assert [(w.index, w.next_at, w.bounce, w.attempts) for w in spool.due("two.example", NOW, 10)] == [
                (1, NOW, True, 1)
            ]
            assert spool.destinations() == [("two.example", NOW, 1)]
            spool.flush()

    play(scene)


def test_settled_recipients_leave_and_the_last_takes_the_message_along(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, "a@one.example", "b@two.example", "c@one.example")
        spool.record([relayed(queue_id, 0)])
        assert [w.index for w in spool.due("one.example", NOW, 10)] == [2]
        spool.flush()
        assert [w.index for w in spool.pending(queue_id)] == [1, 2]
        assert [p.forward_path.domain for p in spool.load(queue_id)[0].recipients] == [
            "one.example",
            "two.example",
            "one.example",
        ]
        spool.record([failed(queue_id, 2), relayed(queue_id, 1)])
        spool.flush()
        assert spool.pending(queue_id) == []
        assert spool.destinations() == []
        with pytest.raises(KeyError):
            spool.load(queue_id)

    play(scene)


def test_fates_of_what_is_gone_or_settled_change_nothing(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, "a@one.example", "b@one.example")
        spool.record([relayed(queue_id, 0), relayed(queue_id, 0), deferred(queue_id, 0)])
        for _ in range(2):  # before it is on disk, and after
            assert [w.index for w in spool.pending(queue_id)] == [1]
            assert [w.index for w in spool.due("one.example", LATER, 10)] == [1]
            spool.flush()
        spool.record([relayed(queue_id, 1)])
        spool.flush()
        spool.record([relayed(queue_id, 1), deferred(queue_id, 0), relayed(12345, 0)])
        spool.flush()
        assert spool.destinations() == []

    play(scene)


def test_outcomes_are_on_disk_soon_without_anybody_asking(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1)
        spool.record([relayed(queue_id)])
        deadline = asyncio.get_running_loop().time() + 2
        with contextlib.suppress(KeyError):
            while asyncio.get_running_loop().time() < deadline:
                spool.load(queue_id)
                await asyncio.sleep(0.005)
        with pytest.raises(KeyError):
            spool.load(queue_id)

    play(scene)


def test_held_mail_is_not_due_until_released(play):
    async def scene(spool: Spool) -> None:
        one, two = await accept_many(spool, 2, "a@one.example", "b@two.example")
        assert spool.act(Verb.HOLD, [one, 999]) == [one]
        assert spool.act(Verb.HOLD, [one]) == []
        assert [w.queue_id for w in spool.due("one.example", LATER, 10)] == [two]
        assert [w.index for w in spool.pending(one)] == [0, 1]
        spool.record([deferred(one, 0, next_at=NOW + 1)])  # an attempt that was under way
        spool.flush()
        assert [w.queue_id for w in spool.due("one.example", LATER, 10)] == [two]
        assert spool.act(Verb.RETRY, [one]) == []
        assert spool.act(Verb.RELEASE, [one, two]) == [one]
        assert {w.queue_id for w in spool.due("one.example", LATER, 10)} == {one, two}

    play(scene)


def test_acts_can_be_kept_to_one_destination(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, "a@one.example", "b@two.example")
        assert spool.act(Verb.HOLD, [queue_id], "one.example") == [queue_id]
        assert spool.act(Verb.HOLD, [queue_id], "three.example") == []
        assert spool.due("one.example", LATER, 10) == []
        assert len(spool.due("two.example", LATER, 10)) == 1

    play(scene)


def test_retry_makes_due_at_once(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, "a@one.example")
        spool.record([deferred(queue_id, next_at=LATER)])
        assert spool.due("one.example", NOW, 10) == []
        assert spool.act(Verb.RETRY, [queue_id]) == [queue_id]
        assert [w.attempts for w in spool.due("one.example", NOW, 10)] == [1]

    play(scene)


def test_rerouted_mail_waits_under_its_next_hop(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, "a@one.example", "b@two.example")
        assert spool.act(Verb.REROUTE, [queue_id], "one.example", "smtp://10.0.0.5:25") == [queue_id]
        assert spool.due("one.example", LATER, 10) == []
        assert [w.index for w in spool.due("smtp://10.0.0.5:25", NOW, 10)] == [0]
        assert [w.destination for w in spool.pending(queue_id)] == ["smtp://10.0.0.5:25", "two.example"]

    play(scene)


def test_mail_to_be_bounced_says_so_at_once_even_when_held(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, "a@one.example", "b@two.example")
        spool.act(Verb.HOLD, [queue_id])
        assert spool.act(Verb.BOUNCE, [queue_id], "one.example") == [queue_id]
        assert spool.act(Verb.BOUNCE, [queue_id], "one.example") == []
        spool.record([deferred(queue_id, 0, next_at=LATER)])
        spool.flush()
        assert [(w.index, w.bounce) for w in spool.due("one.example", NOW, 10)] == [(0, True)]
        assert spool.due("two.example", LATER, 10) == []

    play(scene)


def test_deleted_mail_is_gone(play):
    async def scene(spool: Spool) -> None:
        (queue_id,) = await accept_many(spool, 1, "a@one.example", "b@two.example")
        assert spool.act(Verb.DELETE, [queue_id], "one.example") == [queue_id]
        assert [w.index for w in spool.pending(queue_id)] == [1]
        assert spool.act(Verb.DELETE, [queue_id]) == [queue_id]
        assert spool.act(Verb.DELETE, [queue_id]) == []
        with pytest.raises(KeyError):
            spool.load(queue_id)

    play(scene)


def test_times_move_along_when_the_clock_is_set(play):
    async def scene(spool: Spool) -> None:
        waiting, held = await accept_many(spool, 2, "a@one.example")
        spool.record([deferred(waiting, next_at=NOW + 300_000)])
        spool.act(Verb.HOLD, [held])
        spool.correct_times(-3_600_000, 400_000)
        (one,) = spool.pending(waiting)
        assert (one.arrived_at, one.next_at) == (NOW - 3_600_000, NOW - 3_300_000)
        assert spool.load(waiting)[0].arrived_at == NOW - 3_600_000
        assert spool.pending(held)[0].next_at == NOW - 3_600_000
        spool.correct_times(3_600_000 + 200_000, 400_000)
        (one,) = spool.pending(waiting)
        assert (one.arrived_at, one.next_at) == (NOW, NOW + 400_000)  # nothing arrives in the future or waits too long
        assert spool.due("one.example", NOW, 10) == []

    play(scene)


def test_times_in_the_future_are_put_right_without_a_jump(play):
    async def scene(spool: Spool) -> None:
        ahead = envelope(spool.new_queue_id(), "a@one.example", arrived_at=NOW + 9_000_000)
        fine = envelope(spool.new_queue_id(), "b@one.example", arrived_at=NOW - 5000)
        await accept(spool, (ahead, message()), (fine, message()))
        spool.record([deferred(fine.queue_id, next_at=NOW + 100_000)])
        spool.correct_times(0, 400_000)
        (one,) = spool.pending(ahead.queue_id)
        assert (one.arrived_at, one.next_at) == (NOW, NOW)
        (two,) = spool.pending(fine.queue_id)
        assert (two.arrived_at, two.next_at) == (NOW - 5000, NOW + 100_000)

    play(scene)


def test_refusals_can_be_counted_without_end(play):
    async def scene(spool: Spool) -> None:
        for n in range(12_000):
            spool.note_refusal(f"198.51.{n // 256}.{n % 256}", "", Slug.RELAY_DENIED)
        spool.flush()

    play(scene)


def test_abandoned_content_leaves_nothing(play, tmp_path):
    async def scene(spool: Spool) -> None:
        for is_finished in (False, True):
            sink = spool.open_sink(spool.new_queue_id())
            sink.write(b"x" * 100_000)
            if is_finished:
                await sink.finish(DotForm.NONE, is_8bit=False)
            sink.abandon()
            sink.abandon()

    play(scene)
    assert [p for p in tmp_path.rglob("m*") if p.is_file()] == []


# What is recorded is seen at once, whatever else goes on: every look before a flush is the same as after it.

_MESSAGES = 2
_FORWARD_PATHS = ("a@one.example", "b@two.example", "c@one.example")
_NEXT_HOP = "smtp://10.0.0.5:25"
_DESTINATIONS = ("one.example", "two.example", _NEXT_HOP)
_TIMES = (NOW - 1, NOW, NOW + 1, NOW + 2, LATER)

_messages = st.integers(0, _MESSAGES - 1)
_fates = st.tuples(
    _messages,
    st.integers(0, len(_FORWARD_PATHS) - 1),
    st.sampled_from([NOW, NOW + 1, NOW + 2, NOW + 3, None]),  # None: settled
    st.integers(0, 2),
)
_records = st.tuples(st.just("record"), st.lists(_fates, min_size=1, max_size=5), st.booleans())
_acts = st.tuples(
    st.just("act"),
    st.sampled_from(Verb),
    st.lists(_messages, min_size=1, max_size=2),
    st.sampled_from([None, "one.example", "two.example"]),
)
_mail = st.tuples(st.just("mail"), st.sampled_from([10, 30_000]))  # the larger is written by the thread
_turns = st.tuples(st.just("turns"), st.integers(1, 3))
_steps = st.lists(st.one_of(_records, _records, _acts, _mail, _turns), max_size=12)


def _fate(ids: Sequence[int], message_number: int, index: int, next_at: int | None, notices: int) -> Fate:
    if next_at is None:
        return relayed(ids[message_number], index)
    fate = deferred(ids[message_number], index, attempts=notices + 3)
    return msgspec.structs.replace(fate, then=Retry(next_at, notices))


async def _do(spool: Spool, ids: Sequence[int], step) -> None:
    match step:
        case ("record", fates, at_once):
            spool.record([_fate(ids, *fate) for fate in fates], at_once=at_once)
        case ("act", verb, numbers, destination):
            next_hop = _NEXT_HOP if verb is Verb.REROUTE else ""
            spool.act(verb, [ids[number] for number in numbers], destination, next_hop)
        case ("mail", size):  # a commit begins, with what is recorded or without
            spool.accept(envelope(spool.new_queue_id(), "e@noise.example"), message(b"x" * size), lambda error: None)
        case ("turns", count):
            for _ in range(count):
                await asyncio.sleep(0)


def _looks(spool: Spool, ids: Sequence[int]):
    found = []
    for destination in _DESTINATIONS:
        every = spool.due(destination, LATER, 100)
        positions = [(0, 0, 0), (NOW, 1 << 62, 0), *[(w.next_at, w.queue_id, w.index) for w in every]]
        found.append((destination, every))
        found += [
            (destination, now, limit, after, spool.due(destination, now, limit, after))
            for now, limit, after in itertools.product(_TIMES, (1, 2, 100), positions)
        ]
    waiting = [one for one in spool.destinations() if one[0] != "noise.example"]
    return found, sorted(waiting), [spool.pending(queue_id) for queue_id in ids]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps)
def test_what_is_recorded_is_seen_at_once_as_it_will_be_on_disk(play, steps):
    async def scene(spool: Spool) -> None:
        model = MemorySpool(1, loop=asyncio.get_running_loop(), clock=lambda: NOW)
        ids = await accept_many(spool, _MESSAGES, *_FORWARD_PATHS)
        await accept(model, *[(envelope(i, *_FORWARD_PATHS), message()) for i in ids])
        for step in steps:
            await _do(spool, ids, step)
            if step[0] != "mail":
                await _do(model, ids, step)
            assert _looks(spool, ids) == _looks(model, ids)
        seen = _looks(spool, ids)
        spool.flush()
        assert _looks(spool, ids) == seen

    play(scene)
