import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path as FilePath

import msgspec
import pytest

from posthouse.mail.outcome import Deferred, Failed, Relayed
from posthouse.mail.reason import Reason, Slug
from posthouse.relay.backoff import RetryPlan
from posthouse.relay.directions import Directions
from posthouse.relay.lease import Closing, Leased, Recall, Tenant
from posthouse.relay.route import NextHop, Route, parse_hop
from posthouse.relay.scheduler import Bounds
from posthouse.smtp.event import Notify
from posthouse.spool.api import ContentMissing, Fate, Verb
from posthouse.spool.memory import MemorySpool
from posthouse.spool.sqlite import SqliteSpool
from relaying import DEFERRED, REFUSED, RELAYED, Bench, Map
from spooling import SMALL

PLAN = RetryPlan(first=300, longest=3600, factor=2, give_up=86400, delay_notice=4 * 3600)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def test_accepted_mail_goes_out_at_once_and_leaves_the_queue() -> None:
    async def scene() -> None:
        bench = Bench()
        await bench.accept("b@there.test")
        await bench.until(lambda: bench.queued() == 0)
        assert len(bench.hop("site of there.test").attempts) == 1
        assert bench.scheduler.depth[0] == 0

    run(scene)


def test_recipients_of_one_domain_share_an_attempt_and_others_do_not() -> None:
    async def scene() -> None:
        bench = Bench()
        await bench.accept("a@one.test", "b@two.test", "c@one.test")
        await bench.until(lambda: bench.queued() == 0)
        assert [attempt.indices for attempt in bench.hop("site of one.test").attempts] == [(0, 2)]
        assert [attempt.indices for attempt in bench.hop("site of two.test").attempts] == [(1,)]

    run(scene)


def test_deferred_mail_waits_its_time_and_is_tried_again() -> None:
    async def scene() -> None:
        bench = Bench(plan=PLAN)
        hop = bench.hop("site of there.test")
        hop.answer = lambda _attempt, _index: DEFERRED
        envelope = await bench.accept("b@there.test")
        await bench.until(lambda: len(hop.attempts) == 1)
        await bench.pass_time(200)
        assert len(hop.attempts) == 1
        (waiting,) = bench.spool.pending(envelope.queue_id)
        assert waiting.attempts == 1
        assert 240_000 <= waiting.next_at - envelope.arrived_at <= 360_000
        await bench.pass_time(200)
        await bench.until(lambda: len(hop.attempts) == 2)
        hop.answer = lambda _attempt, _index: RELAYED
        await bench.pass_time(800)
        await bench.until(lambda: bench.queued() == 0)

    run(scene)


def test_mail_is_given_up_after_its_time_and_the_sender_is_told() -> None:
    async def scene() -> None:
        bench = Bench(plan=PLAN)
        bench.hop("site of there.test").answer = lambda _attempt, _index: DEFERRED
        await bench.accept("b@there.test")
        for _ in range(60):
            await bench.pass_time(1800)
        await bench.until(lambda: bench.queued() == 0)
        kinds = [type(outcome) for _, results in bench.notices.sent for _, outcome in results]
        assert kinds == [Deferred, Failed]  # one delay notice, one failure
        failed = bench.notices.sent[-1][1][0][1]
        assert failed.reason.slug is Slug.EXPIRED
        assert failed.status == "5.4.7"

    run(scene)


def test_a_refused_recipient_leaves_only_after_its_notice_is_durable() -> None:
    async def scene() -> None:
        bench = Bench()
        bench.notices.hold = True
        hop = bench.hop("site of there.test")
        hop.answer = lambda _attempt, _index: REFUSED
        await bench.accept("b@there.test")
        await bench.until(lambda: bench.notices.sent)
        await bench.pass_time(10)
        assert bench.queued() == 1
        assert len(hop.attempts) == 1  # it is not tried again meanwhile
        bench.notices.waiting.pop()()
        await bench.until(lambda: bench.queued() == 0)

    run(scene)


def test_what_a_sender_is_told_of_is_recorded_at_once_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[type, bool]] = []
    record = MemorySpool.record

    def noting(spool: MemorySpool, fates: Sequence[Fate], *, at_once: bool = False) -> None:
        recorded.extend((type(fate.outcome), at_once) for fate in fates)
        record(spool, fates, at_once=at_once)

    monkeypatch.setattr(MemorySpool, "record", noting)
    outcomes = {"refused.test": REFUSED, "late.test": DEFERRED, "there.test": RELAYED}

    async def scene() -> None:
        bench = Bench(plan=PLAN)
        for domain, outcome in outcomes.items():
            bench.hop(f"site of {domain}").answer = lambda _attempt, _index, outcome=outcome: outcome
            await bench.accept(f"b@{domain}")
        await bench.accept("asked@there.test", notify=Notify.SUCCESS)
        await bench.until(lambda: len(recorded) == 4)
        assert sorted(recorded, key=str) == sorted(
            [(Failed, True), (Deferred, False), (Relayed, False), (Relayed, True)], key=str
        )

    run(scene)


def test_success_is_reported_only_where_asked() -> None:
    async def scene() -> None:
        bench = Bench()
        await bench.accept("b@there.test")
        await bench.accept("b@there.test", notify=Notify.SUCCESS)
        await bench.until(lambda: bench.queued() == 0)
        assert len(bench.notices.sent) == 1

    run(scene)


def test_mail_put_off_just_before_its_destination_is_looked_at_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: FilePath
) -> None:
    monkeypatch.setattr("posthouse.spool.sqlite.RECORD_WITHIN", 60.0)  # nothing is written before the flush
    monkeypatch.setattr(
        "relaying.MemorySpool",
        lambda shard, **options: SqliteSpool(tmp_path / "0", shard, settings=SMALL, **options),
    )

    async def scene() -> None:
        bench = Bench(plan=PLAN)
        hop = bench.hop("site of there.test")
        hop.answer = lambda _attempt, _index: DEFERRED
        await bench.accept("b@there.test")
        await bench.until(lambda: bench.scheduler.depth[0] == 0)  # put off by five minutes
        bench.scheduler.wake("there.test", bench.now + 50)  # another message of that destination is due before
        await bench.pass_time(0.05)
        bench.spool.flush()
        hop.answer = lambda _attempt, _index: RELAYED
        await bench.pass_time(400)
        await bench.until(lambda: bench.queued() == 0)
        assert len(hop.attempts) == 2
        bench.spool.close()

    run(scene)


def test_a_dead_destination_delays_no_other() -> None:
    async def scene() -> None:
        bench = Bench(plan=PLAN)
        bench.hop("site of dead.test").is_down = True
        for number in range(200):
            await bench.accept(f"b{number}@dead.test")
        await bench.accept("c@alive.test")
        await bench.until(lambda: len(bench.hop("site of alive.test").attempts) == 1)
        await bench.until(lambda: bench.scheduler.depth[0] == 0)
        assert bench.queued() == 200
        assert bench.hop("site of dead.test").connections <= 10  # refused a few times, then left alone

    run(scene)


def test_a_site_that_comes_back_gets_what_waited() -> None:
    async def scene() -> None:
        bench = Bench(plan=PLAN)
        hop = bench.hop("site of dead.test")
        hop.is_down = True
        for number in range(20):
            await bench.accept(f"b{number}@dead.test")
        await bench.until(lambda: bench.scheduler.depth[0] == 0)
        hop.is_down = False
        late = await bench.accept("late@dead.test")  # arrives while the site is closed: waits, no attempt counted
        await bench.until(lambda: bench.scheduler.depth[0] == 0)
        assert bench.spool.pending(late.queue_id)[0].attempts == 0
        await bench.pass_time(800)
        await bench.until(lambda: bench.queued() == 0)
        assert len(hop.attempts) == 21

    run(scene)


def test_domains_of_one_site_share_its_connections() -> None:
    async def scene() -> None:
        bench = Bench(where=Map({f"d{n}.test": "mx.shared.test" for n in range(50)}))
        hop = bench.hop("mx.shared.test")
        hop.gate = lambda: asyncio.sleep(0.001)
        for number in range(300):
            await bench.accept(f"b@d{number % 50}.test")
        await bench.until(lambda: bench.queued() == 0)
        assert hop.most_open <= 20
        assert list(bench.scheduler.sites) == ["mx.shared.test"]

    run(scene)


def test_the_window_grows_on_success_and_shrinks_on_trouble() -> None:
    async def scene() -> None:
        bench = Bench()
        hop = bench.hop("site of there.test")
        hop.gate = lambda: asyncio.sleep(0.001)
        for number in range(400):
            await bench.accept(f"b{number}@there.test")
        await bench.until(lambda: bench.queued() == 0)
        site = bench.scheduler.sites["site of there.test"]
        grown = site.window
        assert grown > 5
        hop.is_down = True
        await bench.until(lambda: site.connections == 0)
        await bench.accept("b@there.test")
        await bench.until(lambda: bench.scheduler.depth[0] == 0)
        assert site.window <= grown // 2

    run(scene)


def test_a_domain_that_does_not_exist_bounces_without_a_connection() -> None:
    async def scene() -> None:
        gone = Failed("5.1.2", Reason(Slug.NO_SUCH_DOMAIN, "the domain nowhere.test does not exist"))
        bench = Bench(where=Map({"nowhere.test": gone}))
        await bench.accept("b@nowhere.test")
        await bench.until(lambda: bench.queued() == 0)
        assert bench.notices.sent[0][1] == [(0, gone)]
        assert not bench.hops

    run(scene)


def test_more_mail_than_memory_may_hold_is_all_delivered() -> None:
    async def scene() -> None:
        bench = Bench(bounds=Bounds(parcels=50, body_bytes=400, connections=5))
        for number in range(500):
            await bench.accept(f"b{number}@d{number % 7}.test")
        assert bench.scheduler.depth[0] <= 50
        for _ in range(200):
            if bench.queued() == 0:
                break
            await bench.pass_time(6)
        assert bench.queued() == 0
        ids = [attempt.envelope.queue_id for hop in bench.hops.values() for attempt in hop.attempts]
        assert len(ids) == len(set(ids)) == 500

    run(scene)


def test_what_a_restart_finds_in_the_spool_is_delivered() -> None:
    async def scene() -> None:
        bench = Bench()
        for number in range(450):
            await bench.accept(f"b{number}@there.test", hand_over=False)
        bench.scheduler.start()
        for _ in range(20):
            await bench.pass_time(6)
        await bench.until(lambda: bench.queued() == 0)

    run(scene)


def test_a_transport_that_crashes_loses_nothing() -> None:
    async def scene() -> None:
        bench = Bench(plan=PLAN)
        hop = bench.hop("site of there.test")
        tries = itertools.count()

        async def crash_once() -> None:
            if next(tries) == 0:
                raise RuntimeError("a bug")

        hop.gate = crash_once
        await bench.accept("b@there.test")
        await bench.until(lambda: bench.scheduler.depth[0] == 0)
        assert bench.queued() == 1
        await bench.pass_time(1000)
        await bench.until(lambda: bench.queued() == 0)

    run(scene)


def test_held_mail_stays_and_released_mail_goes() -> None:
    async def scene() -> None:
        bench = Bench(plan=PLAN)
        hop = bench.hop("site of there.test")
        hop.answer = lambda _attempt, _index: DEFERRED
        envelope = await bench.accept("b@there.test")
        await bench.until(lambda: bench.scheduler.depth[0] == 0)
        bench.spool.act(Verb.HOLD, [envelope.queue_id])
        bench.scheduler.withdraw([envelope.queue_id])
        await bench.pass_time(1000)
        assert len(hop.attempts) == 1
        hop.answer = lambda _attempt, _index: RELAYED
        bench.spool.act(Verb.RELEASE, [envelope.queue_id])
        bench.scheduler.reopen(["there.test"])
        await bench.until(lambda: bench.queued() == 0)

    run(scene)


def test_with_relaying_off_mail_for_elsewhere_waits_until_it_is_on_again() -> None:
    async def scene() -> None:
        bench = Bench()
        bench.scheduler.may_leave = lambda destination: destination == "here.test"
        await bench.accept("b@there.test")
        await bench.accept("b@here.test")
        await bench.until(lambda: bench.queued() == 1)
        assert "site of there.test" not in bench.hops
        bench.scheduler.may_leave = lambda _destination: True
        bench.scheduler.rescan()
        await bench.until(lambda: bench.queued() == 0)

    run(scene)


def test_stopping_lets_a_running_attempt_end_and_starts_no_other() -> None:
    async def scene() -> None:
        bench = Bench()
        gate = asyncio.Event()
        hop = bench.hop("site of there.test")
        hop.gate = gate.wait
        for number in range(100):
            await bench.accept(f"b{number}@there.test")
        await bench.until(lambda: hop.open_now > 0)
        open_now = hop.open_now
        asyncio.get_running_loop().call_later(0.05, gate.set)
        await bench.scheduler.stop(5)
        assert len(hop.attempts) == open_now
        assert bench.queued() == 100 - open_now

    run(scene)


def test_hundreds_of_silent_destinations_leave_room_for_those_that_answer() -> None:
    async def scene() -> None:
        bench = Bench(bounds=Bounds(connections=20))
        await bench.accept("b@alive.test")
        await bench.until(lambda: bench.queued() == 0)
        for number in range(100):
            bench.hop(f"site of silent{number}.test").gate = asyncio.Event().wait
            await bench.accept(f"b@silent{number}.test")
        await bench.until(lambda: bench.scheduler.depth[1] >= 15)
        await bench.accept("c@alive.test")
        await bench.until(lambda: len(bench.hop("site of alive.test").attempts) == 2)
        await bench.scheduler.stop(0)

    run(scene)


def test_a_damaged_message_is_held_and_the_listing_says_why() -> None:
    async def scene() -> None:
        bench = Bench(bounds=Bounds(body_bytes=0))

        def damaged(_queue_id: int) -> None:
            raise ContentMissing("its octets are not what was written")

        bench.spool.load = damaged  # type: ignore[method-assign,assignment]
        envelope = await bench.accept("b@there.test")
        await bench.until(lambda: bench.queued() == 0)
        assert len(bench.spool.pending(envelope.queue_id)) == 1
        assert bench.spool.last_outcomes(envelope.queue_id)[0].reason.slug is Slug.CONTENT_DAMAGED

    run(scene)


class Moving(Map):
    """A pathfinder whose site keeps its name while its host and its limit change."""

    host, concurrency = "old host", 4

    async def find(self, destination: str) -> Directions:
        route = Route((destination,), (parse_hop("smtp://127.0.0.1:25"),), concurrency=self.concurrency)
        return Directions("the site", (NextHop(route.hops[0], route, ((self.host, "127.0.0.1", 25),)),), route)


def test_a_site_in_use_follows_the_dns_and_its_route() -> None:
    async def scene() -> None:
        where = Moving()
        bench = Bench(where=where)
        await bench.accept("a@there.test")
        await bench.until(lambda: bench.queued() == 0)
        await bench.until(lambda: bench.hop("old host").open_now == 0)
        where.host, where.concurrency = "new host", 2
        await bench.pass_time(100_000)
        await bench.accept("b@there.test")
        await bench.until(lambda: bench.queued() == 0)
        assert len(bench.hop("old host").attempts) == len(bench.hop("new host").attempts) == 1
        site = bench.scheduler.sites["the site"]
        assert (site.concurrency, site.window) == (2, 2)
        where.concurrency = 9
        await bench.pass_time(100_000)
        await bench.accept("c@there.test")
        await bench.until(lambda: bench.queued() == 0)
        assert site.concurrency == 2  # of routes that lead to one site the strictest counts
        bench.scheduler.rescan()  # a reload
        await bench.accept("d@there.test")
        await bench.until(lambda: bench.queued() == 0)
        assert bench.scheduler.sites["the site"].concurrency == 9

    run(scene)


@pytest.mark.parametrize("order", ["the recall first", "the reload first"])
def test_a_route_that_allows_less_takes_no_recall_back(order: str) -> None:
    """The other worker's lookup was quicker: the recall it brought about is here before this worker has the new limit."""

    async def scene() -> None:
        where = Moving()
        bench = Bench(where=where)
        tenant = bench.scheduler.outgoing.leases = Tenant(lambda _report: None)
        tenant.leased(Leased("the site", 3))
        hop, first, later = bench.hop("old host"), asyncio.Event(), asyncio.Event()
        hop.gate = first.wait
        for number in range(30):
            await bench.accept(f"b{number}@there.test")
        await bench.until(lambda: hop.open_now == 3)
        site, where.concurrency = bench.scheduler.sites["the site"], 2

        async def reload() -> None:
            bench.scheduler.rescan()
            await bench.until(lambda: site.concurrency == 2)

        async def recall() -> None:
            assert tenant.recalled(Recall("the site", 1))
            bench.scheduler.outgoing.recalled(Recall("the site", 1))

        for happens in (recall, reload) if order == "the recall first" else (reload, recall):
            await happens()
        hop.gate = later.wait
        first.set()
        await bench.until(lambda: len(hop.attempts) == 3 and not site.surplus and not site.leaving)
        assert hop.open_now == 1
        later.set()
        await bench.until(lambda: bench.queued() == 0)
        assert hop.open_now == 1

    run(scene)


class Slow(Map):
    """A pathfinder that answers when `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def find(self, destination: str) -> Directions | Deferred | Failed:
        await self.gate.wait()
        return await super().find(destination)


def test_mail_that_waits_for_a_lease_while_its_destination_is_looked_up_outlives_a_reload() -> None:
    async def scene() -> None:
        where = Slow()
        bench = Bench(where=where)
        tenant = bench.scheduler.outgoing.leases = Tenant(lambda _report: None)
        where.gate.set()
        await bench.accept("a@there.test")
        await bench.until(lambda: bench.scheduler.sites)
        where.gate.clear()
        await bench.pass_time(400)  # the directions are too old now
        await bench.accept("b@there.test")
        bench.scheduler.rescan()
        where.gate.set()
        await bench.until(lambda: any(site.waiting for site in bench.scheduler.sites.values()))
        leased = Leased("site of there.test", 1)
        tenant.leased(leased)
        bench.scheduler.outgoing.leased(leased)
        await bench.until(lambda: bench.queued() == 0)
        assert bench.scheduler.depth[0] == 0

    run(scene)


def test_what_another_worker_learnt_of_a_site_counts_here() -> None:
    async def scene() -> None:
        bench = Bench(plan=PLAN)
        closing = Closing("site of dead.test", 300, 1, "4.4.1", Slug.NEXT_HOP_UNREACHABLE, "nobody is there")
        bench.scheduler.closed_elsewhere(closing)
        first = await bench.accept("a@dead.test")
        await bench.until(lambda: bench.scheduler.depth[0] == 0)
        assert bench.hop("site of dead.test").connections == 0
        assert bench.spool.pending(first.queue_id)[0].attempts == 0
        bench.scheduler.opened_elsewhere("site of dead.test")
        await bench.accept("b@dead.test")
        await bench.until(lambda: bench.queued() == 1)

    run(scene)


@pytest.mark.parametrize("found", [Failed("5.1.2", DEFERRED.reason), Deferred("4.4.3", DEFERRED.reason)])
def test_mail_withdrawn_during_a_lookup_does_not_share_its_end(found: Failed | Deferred) -> None:
    async def scene() -> None:
        where = Slow()
        where.sites["there.test"] = found
        bench = Bench(where=where)
        envelope = await bench.accept("a@there.test")
        bench.scheduler.withdraw([envelope.queue_id])
        bench.spool.act(Verb.HOLD, [envelope.queue_id])
        where.gate.set()
        await bench.pass_time(0)
        assert [one.attempts for one in bench.spool.pending(envelope.queue_id)] == [0]
        assert bench.notices.sent == []
        assert bench.scheduler._body_bytes == 0

    run(scene)


def test_mail_that_is_looked_up_when_relaying_is_turned_off_stays() -> None:
    async def scene() -> None:
        where = Slow()
        bench = Bench(where=where)
        await bench.accept("a@there.test")
        bench.scheduler.may_leave = lambda _destination: False
        bench.scheduler.rescan()
        where.gate.set()
        await bench.pass_time(0)
        assert bench.hops == {}
        assert bench.scheduler.depth == (0, 0)
        bench.scheduler.may_leave = lambda _destination: True
        bench.scheduler.rescan()
        await bench.until(lambda: bench.queued() == 0)

    run(scene)


def test_mail_that_found_memory_full_does_not_wait_for_older_mail_of_its_destination() -> None:
    async def scene() -> None:
        bench = Bench(plan=PLAN, bounds=Bounds(parcels=1))
        hop, gate = bench.hop("site of there.test"), asyncio.Event()
        hop.answer = lambda _attempt, _index: DEFERRED
        await bench.accept("a@there.test")
        await bench.until(lambda: bench.scheduler.depth[0] == 0)  # put off by five minutes
        bench.hop("site of full.test").gate = gate.wait
        await bench.accept("a@full.test")
        await bench.accept("b@there.test")
        gate.set()
        await bench.until(lambda: bench.scheduler.depth[0] == 0)
        assert len(hop.attempts) == 1
        await bench.pass_time(2)
        await bench.until(lambda: len(hop.attempts) == 2)

    run(scene)


def test_a_look_that_is_due_again_when_the_clock_is_put_right_is_made_at_once() -> None:
    day = 86_400_000

    async def scene() -> None:
        bench = Bench()
        envelope = await bench.accept("a@there.test", hand_over=False)
        bench.spool.act(Verb.HOLD, [envelope.queue_id])
        bench.scheduler.reopen(["there.test"])  # as every act does: a look is due now
        for by in (-day, day):
            bench.now += by
            bench.spool.correct_times(by, day)
            bench.scheduler.clock_was_set(by)
            await asyncio.sleep(0.01)  # the timer
        bench.spool.act(Verb.RELEASE, [envelope.queue_id])
        bench.scheduler.reopen(["there.test"])
        await bench.until(lambda: bench.queued() == 0)

    run(scene)


def test_a_reload_while_a_notice_waits_for_room_bounces_nothing_twice() -> None:
    async def scene() -> None:
        bench = Bench(where=Map({"there.test": REFUSED}))
        bench.notices.hold = True
        await bench.accept("a@there.test")
        await bench.until(lambda: bench.notices.sent)
        bench.scheduler.rescan()
        await bench.pass_time(1)
        assert len(bench.notices.sent) == 1
        bench.notices.waiting.pop()()
        assert bench.queued() == 0

    run(scene)


def test_mail_rerouted_during_an_attempt_goes_the_new_way_after_it() -> None:
    elsewhere = "smtp://10.0.0.9:25"

    async def scene() -> None:
        bench = Bench(plan=PLAN)
        gate = asyncio.Event()
        hop = bench.hop("site of there.test")
        hop.gate, hop.answer = gate.wait, lambda _attempt, _index: DEFERRED
        envelope = await bench.accept("a@there.test")
        await bench.until(lambda: hop.open_now)
        await asyncio.sleep(0.01)
        bench.scheduler.withdraw([envelope.queue_id])
        bench.spool.act(Verb.REROUTE, [envelope.queue_id], None, elsewhere)
        bench.scheduler.reopen([elsewhere])
        await bench.pass_time(1)
        gate.set()
        await bench.until(lambda: bench.scheduler.depth[0] == 0)
        await bench.pass_time(400)
        await bench.until(lambda: bench.queued() == 0)
        assert len(bench.hop(f"site of {elsewhere}").attempts) == 1

    run(scene)


def test_mail_whose_delay_notice_waits_longer_than_the_next_attempt_is_tried_after_it() -> None:
    async def scene() -> None:
        bench = Bench(plan=msgspec.structs.replace(PLAN, delay_notice=1))
        bench.notices.hold = True
        hop = bench.hop("site of there.test")
        hop.answer = lambda _attempt, _index: DEFERRED
        await bench.accept("a@there.test")
        await bench.until(lambda: bench.scheduler.depth[0] == 0)
        await bench.pass_time(400)
        await bench.until(lambda: bench.notices.waiting)
        await bench.pass_time(1000)  # another attempt is due
        assert len(hop.attempts) == 2
        bench.notices.waiting.pop()()
        await bench.until(lambda: len(hop.attempts) == 3)

    run(scene)
