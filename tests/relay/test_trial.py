"""Suspects are tried one at a time, set aside when they have had their deaths, and acquitted by living."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from posthouse.relay import trial
from posthouse.spool.api import Verb
from posthouse.spool.under_way import MOST_DEATHS, UnderWay
from relaying import DEFERRED, Bench


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def suspected(directory: Path, deaths: int, *queue_ids: int) -> UnderWay:
    """A journal by which these messages were under way at so many deaths."""
    UnderWay(directory)
    for _ in range(deaths):
        life = UnderWay(directory)
        for queue_id in queue_ids:
            life.begins((queue_id, 0))
    return UnderWay(directory)


def test_suspects_are_tried_alone_and_acquitted_while_other_mail_flows(tmp_path: Path) -> None:
    async def scene() -> None:
        bench = Bench()
        ids = [(await bench.accept("b@there.test", hand_over=False)).queue_id for _ in range(4)]
        await bench.accept("c@elsewhere.test", hand_over=False)
        gate = asyncio.Event()
        hop, other = bench.hop("site of there.test"), bench.hop("site of elsewhere.test")
        hop.gate = gate.wait
        journal = suspected(tmp_path, 1, *ids)
        bench.scheduler.trials.watch(0, journal)
        bench.scheduler.start()
        await bench.pass_time(0)
        await bench.until(lambda: hop.open_now == 1 and other.attempts)
        await asyncio.sleep(0.02)
        assert journal._begun.keys() == {(ids[0], 0)}
        gate.set()
        await bench.until(lambda: bench.queued() == 0)
        assert [attempt.envelope.queue_id for attempt in hop.attempts] == ids
        assert not any(journal.is_suspect((one, 0)) for one in ids)

    run(scene)


def test_a_suspect_that_hangs_does_not_hold_up_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TURN_SECONDS", 0.02)

    async def scene() -> None:
        bench = Bench()
        hanging = (await bench.accept("b@hang.test", hand_over=False)).queue_id
        other = (await bench.accept("b@there.test", hand_over=False)).queue_id
        bench.hop("site of hang.test").gate = asyncio.Event().wait
        bench.scheduler.trials.watch(0, suspected(tmp_path, 1, hanging, other))
        bench.scheduler.start()
        await bench.pass_time(0)
        await bench.until(lambda: bench.hop("site of there.test").attempts)
        await bench.scheduler.stop(0.01)

    run(scene)


def test_what_has_had_its_deaths_is_held_with_a_reason_and_released_for_one_more_try(tmp_path: Path) -> None:
    async def scene() -> None:
        bench = Bench()
        envelope = await bench.accept("b@there.test", "c@elsewhere.test", hand_over=False)
        journal = suspected(tmp_path, MOST_DEATHS + 1, envelope.queue_id)
        bench.scheduler.trials.watch(0, journal)
        bench.scheduler.start()
        await bench.pass_time(0)
        await bench.until(lambda: bench.hop("site of elsewhere.test").attempts)
        outcome = bench.spool.last_outcomes(envelope.queue_id)[0]
        assert outcome.reason.slug == "poisoned"
        assert f"queue release {envelope.id_text}" in outcome.reason.words
        assert not bench.hop("site of there.test").attempts
        bench.scheduler.rescan()
        await bench.pass_time(1)
        assert not bench.hop("site of there.test").attempts
        bench.hop("site of there.test").answer = lambda _attempt, _index: DEFERRED
        assert bench.spool.act(Verb.RELEASE, [envelope.queue_id]) == [envelope.queue_id]
        bench.scheduler.reopen(["there.test"])
        await bench.until(lambda: bench.hop("site of there.test").attempts)
        await bench.until(lambda: not journal.is_suspect((envelope.queue_id, 0)))  # it lived

    run(scene)


def test_what_left_the_queue_meanwhile_is_forgotten(tmp_path: Path) -> None:
    async def scene() -> None:
        bench = Bench()
        journal = suspected(tmp_path, MOST_DEATHS + 1, 1 << 30)
        bench.scheduler.trials.watch(0, journal)
        bench.scheduler.start()
        assert journal.condemned() == []

    run(scene)
