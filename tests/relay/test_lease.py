"""The arithmetic of leases, by simulation: workers with pipes of any slowness, deaths, reloads, and connections that end when they like."""

import collections
import random

import pytest

from posthouse.relay.lease import TURN_SECONDS, Awaited, Leased, Lessor, Order, Orders, Recall, Report, Tenant

SITE = "site of there.test"


class Worker:
    """One worker, with a site of which only the numbers are left: what waits, what is open, what has been asked to end."""

    def __init__(self, most: int) -> None:
        self.to_supervisor: collections.deque[Report] = collections.deque()
        self.to_worker: collections.deque[Order] = collections.deque()
        self.tenant = Tenant(self.to_supervisor.append)
        self.most = most
        self.waiting = 0
        self.open = 0
        self.most_open = most
        self.served_at = 0.0
        self.is_awaited = False

    @property
    def wanted(self) -> int:
        return min(self.most, max(self.open, self.waiting))

    def kick(self) -> None:
        while self.open < self.wanted and self.tenant.take(SITE, self.most, self.wanted):
            self.open += 1

    def end_one(self) -> None:
        self.open -= 1
        self.tenant.release(SITE)
        self.kick()
        self.tenant.settle(SITE, self.wanted)

    def hear(self) -> None:
        order = self.to_worker.popleft()
        if isinstance(order, Leased):
            self.tenant.leased(order)
            self.kick()
        elif isinstance(order, Awaited):
            self.is_awaited = True
        else:
            self.most_open = order.keep if self.tenant.recalled(order) else self.most
        self.tenant.settle(SITE, self.wanted)

    def limit(self, most: int) -> None:
        self.most = most
        self.tenant.renounce()
        self.tenant.limit(SITE, most)
        self.kick()


class World:
    """The supervisor and its workers. `died` are connections whose sockets the kernel has not closed yet."""

    def __init__(self, workers: int, most: int) -> None:
        self.lessor = Lessor()
        self.most = most
        self.workers = [Worker(most) for _ in range(workers)]
        self.now = 0.0
        self.died: dict[int, int] = {}

    @property
    def open(self) -> int:
        return sum(worker.open for worker in self.workers) + sum(self.died.values())

    def send(self, orders: Orders) -> None:
        for number, order in orders:
            if number not in self.died:
                self.workers[number].to_worker.append(order)

    def hear(self, number: int) -> None:
        self.send(self.lessor.report(number, self.workers[number].to_supervisor.popleft(), self.now))

    def kill(self, number: int) -> None:
        self.died[number] = self.workers[number].open
        self.workers[number] = Worker(self.most)

    def bury(self, number: int) -> None:
        """The process has ended: the supervisor's wait says so."""
        del self.died[number]
        self.send(self.lessor.ended(number, self.now))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.lessor.next_at <= self.now:
            self.send(self.lessor.due(self.now))

    def talk(self) -> None:
        """Until nobody has anything more to say."""
        while any(worker.to_supervisor or worker.to_worker for worker in self.workers):
            for number, worker in enumerate(self.workers):
                while worker.to_supervisor:
                    self.hear(number)
                while worker.to_worker:
                    worker.hear()

    def step(self, dice: random.Random) -> None:
        """Something happens to somebody."""
        number = dice.randrange(len(self.workers))
        worker = self.workers[number]
        if number in self.died:
            self.bury(number)
            return
        match dice.choice("mmmeehhhssst"):
            case "m":
                worker.waiting += dice.randrange(4)
                worker.kick()
            case "e" if worker.open:
                worker.waiting = max(0, worker.waiting - dice.randrange(4))
                worker.end_one()
            case "h" if worker.to_worker:
                worker.hear()
            case "s" if worker.to_supervisor:
                self.hear(number)
            case "t":
                self.pass_time(dice.random() * TURN_SECONDS)


@pytest.mark.parametrize("seed", range(60))
def test_there_are_never_more_connections_than_the_route_allows(seed: int) -> None:
    dice = random.Random(seed)
    world = World(dice.randint(2, 5), dice.randint(1, 7))
    for _ in range(1500):
        world.step(dice)
        if dice.random() < 0.01:
            number = dice.randrange(len(world.workers))
            if number not in world.died:
                world.kill(number)
        assert world.open <= world.most


@pytest.mark.parametrize("seed", range(30))
def test_a_reload_that_allows_less_lets_no_new_connection_through(seed: int) -> None:
    dice = random.Random(seed)
    world = World(3, 8)
    for _ in range(8):
        world.most = most = dice.randint(1, 8)
        for worker in world.workers:
            worker.limit(most)
        world.talk()
        open_before = max(world.open, most)
        for _ in range(100):
            world.step(dice)
            assert world.open <= open_before
            open_before = max(min(open_before, world.open), most)


@pytest.mark.parametrize("seed", range(30))
def test_leases_that_nobody_uses_are_given_back(seed: int) -> None:
    dice = random.Random(seed)
    world = World(3, 4)
    for _ in range(500):
        world.step(dice)
    for number in list(world.died):
        world.bury(number)
    for worker in world.workers:
        worker.waiting = 0
    for _ in range(20):
        world.talk()
        for worker in world.workers:
            if worker.open:
                worker.end_one()
        world.pass_time(TURN_SECONDS)
    world.talk()
    assert len(world.lessor) == 0
    assert world.open == 0


@pytest.mark.parametrize(("workers", "most"), [(2, 1), (3, 1), (5, 2), (3, 3), (4, 7), (2, 20)])
def test_workers_that_never_run_out_of_mail_share_fairly_and_none_waits_long(workers: int, most: int) -> None:
    """A connection ends only where another worker waits for it; a message takes a tenth of a second."""
    world = World(workers, most)
    for worker in world.workers:
        worker.waiting = 1000
        worker.kick()
    world.talk()
    for _ in range(400):
        world.pass_time(0.1)
        world.talk()
        for worker in world.workers:
            while worker.open > worker.most_open:
                worker.end_one()
            worker.most_open = most
            worker.served_at = world.now if worker.open else worker.served_at
        world.talk()
        assert world.open == most
        assert all(world.now - worker.served_at <= workers * (TURN_SECONDS + 0.3) for worker in world.workers)
    if most >= workers:
        counts = [worker.open for worker in world.workers]
        assert max(counts) - min(counts) <= 1


def test_a_worker_that_comes_late_gets_its_part_of_what_another_holds() -> None:
    world = World(2, 6)
    first, second = world.workers
    first.waiting = 100
    first.kick()
    world.talk()
    assert first.open == 6
    second.waiting = 100
    second.kick()
    world.talk()
    assert first.most_open == 3
    assert second.open == 0
    for _ in range(3):
        first.end_one()
        world.talk()
    assert (first.open, second.open) == (3, 3)


def test_a_worker_with_an_idle_connection_hears_at_once_that_another_waits() -> None:
    world = World(2, 1)
    first, second = world.workers
    first.waiting = 1
    first.kick()
    world.talk()
    first.waiting = 0
    second.waiting = 1
    second.kick()
    world.talk()
    assert first.is_awaited
    first.end_one()
    world.talk()
    assert (first.open, second.open) == (0, 1)


def test_a_dead_workers_leases_are_free_only_when_its_process_has_ended() -> None:
    world = World(2, 2)
    first, second = world.workers
    first.waiting = second.waiting = 2
    first.kick()
    world.talk()
    world.kill(0)
    second.kick()
    world.talk()
    assert second.open == 0
    world.bury(0)
    world.talk()
    assert second.open == 2


def test_a_site_in_use_costs_no_word() -> None:
    said: list[Report] = []
    tenant = Tenant(said.append)
    assert not tenant.take(SITE, 20, 1)
    tenant.leased(Leased(SITE, 1))
    assert tenant.take(SITE, 20, 1)
    tenant.settle(SITE, 1)
    assert said == [Report(SITE, 0, 1, 20)]
    assert not tenant.recalled(Recall(SITE, 1))  # nothing to give back
