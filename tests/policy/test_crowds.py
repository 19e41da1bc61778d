"""Connections of one client over several workers, by simulation: pipes of any slowness, and clients that call all at once."""

import collections
import random

import pytest

from posthouse.policy.crowds import Count, CrowdOrders, Crowds, EndNewest, Watch, share

CLIENT = "192.0.2.1"


class Worker:
    """What `net.server.Server` does, in numbers."""

    def __init__(self, most: int, workers: int) -> None:
        self.up: collections.deque[Count] = collections.deque()
        self.down: collections.deque[Watch | EndNewest] = collections.deque()
        self.most, self.share = most, share(most, workers)
        self.count = 0
        self.is_watched = self.is_full = False

    def admit(self) -> bool:
        if self.count >= self.most or self.is_full:
            return False
        self._set(self.count + 1)
        return True

    def end(self) -> None:
        if self.count:
            self._set(self.count - 1)

    def hear(self) -> None:
        order = self.down.popleft()
        if isinstance(order, EndNewest):
            for _ in range(order.count):
                self.end()
            return
        self.is_full = order.is_full
        was, self.is_watched = self.is_watched, order.is_watched
        if was != order.is_watched:
            self._set(self.count)

    def _set(self, count: int) -> None:
        was, self.count = self.count, count
        if self.is_watched or (count >= self.share and count >= was):
            self.up.append(Count(CLIENT, count, self.most))


class World:
    def __init__(self, workers: int, most: int) -> None:
        self.crowds = Crowds(workers)
        self.workers = [Worker(most, workers) for _ in range(workers)]
        self.most = most

    @property
    def count(self) -> int:
        return sum(worker.count for worker in self.workers)

    def send(self, orders: CrowdOrders) -> None:
        for number, order in orders:
            self.workers[number].down.append(order)

    def hear(self, number: int) -> None:
        self.send(self.crowds.report(number, self.workers[number].up.popleft()))

    def talk(self) -> None:
        for _ in range(1000):
            for number, worker in enumerate(self.workers):
                while worker.up:
                    self.hear(number)
                while worker.down:
                    worker.hear()
            if not any(worker.up or worker.down for worker in self.workers):
                return
        raise AssertionError("they never stop talking")

    def replace(self, number: int) -> None:
        self.workers[number] = Worker(self.most, len(self.workers))
        self.send(self.crowds.ended(number))
        self.workers[number].down.clear()
        self.send(self.crowds.started(number))


@pytest.mark.parametrize("seed", range(60))
def test_when_all_is_said_no_client_has_more_than_the_limit_and_none_is_refused_below_it(seed: int) -> None:
    dice = random.Random(seed)
    world = World(dice.randint(2, 5), dice.choice([1, 2, 5, 20, 50]))
    for _ in range(20):
        for _ in range(dice.randint(1, 150)):
            number = dice.randrange(len(world.workers))
            worker = world.workers[number]
            match dice.choice("aaaeud"):
                case "a":
                    worker.admit()
                case "e":
                    worker.end()
                case "u" if worker.up:
                    world.hear(number)
                case "d" if worker.down:
                    worker.hear()
        if dice.random() < 0.2:
            world.replace(dice.randrange(len(world.workers)))
        world.talk()
        assert world.count <= world.most
        has_room = world.count < world.most
        assert any(worker.admit() for worker in world.workers) == has_room
        world.talk()
        assert world.count <= world.most


def test_calls_that_come_all_at_once_are_cut_to_the_limit_exactly() -> None:
    world = World(3, 20)
    for worker in world.workers:
        for _ in range(20):
            assert worker.admit()
    world.talk()
    assert world.count == 20
    assert not any(worker.admit() for worker in world.workers)


def test_an_ordinary_client_costs_no_word_and_a_small_one_is_forgotten() -> None:
    world = World(2, 20)
    for worker in world.workers:
        for _ in range(9):
            worker.admit()
        assert not worker.up
    world.workers[0].admit()
    world.talk()
    assert len(world.crowds) == 1
    for worker in world.workers:
        while worker.count:
            worker.end()
    world.talk()
    assert len(world.crowds) == 0
    assert not any(worker.is_watched or worker.is_full for worker in world.workers)
