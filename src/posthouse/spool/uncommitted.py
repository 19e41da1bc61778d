"""Outcomes that are recorded and not in the tables yet, for whoever looks into the queue meanwhile.

They wait for a commit, or are in one that is under way: then the tables may show them already or not. Laid over what the tables
say, both come to the same. A settled recipient is left out, one that was put off comes at its new time.

Of those put off the tables know the destination, a fate does not. So each is looked up once, when somebody next asks what is due,
and kept by destination: a look costs by what waits there, not by all that is recorded. An operator's act may change any row; after
it they are looked up again.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from posthouse.spool.api import Done, Fate, Retry, Waiting

Key = tuple[int, int]
"""A message, and the index of one of its recipients."""


class Uncommitted:
    """Belongs to the loop's thread."""

    def __init__(self) -> None:
        self.fates: dict[Key, Fate] = {}
        """The last one of each recipient, or the one that settled it: after that none has an effect."""
        self._unplaced: set[Key] = set()
        self._destinations: dict[Key, str] = {}
        self._put_off: dict[str, dict[Key, Waiting]] = {}

    def add(self, fates: Iterable[Fate]) -> None:
        """These were recorded."""
        for fate in fates:
            key = (fate.queue_id, fate.index)
            known = self.fates.get(key)
            if known is not None:
                if isinstance(known.then, Done):
                    continue
                self._drop(key)
            self.fates[key] = fate
            if isinstance(fate.then, Retry):
                self._unplaced.add(key)

    def committed(self, fates: Iterable[Fate]) -> None:
        """These are in the tables, for good."""
        for fate in fates:
            key = (fate.queue_id, fate.index)
            if self.fates.get(key) is fate:
                del self.fates[key]
                if isinstance(fate.then, Retry):
                    self._drop(key)

    def rows_changed(self) -> None:
        """Something else than a fate has changed the tables."""
        self._unplaced = {key for key, fate in self.fates.items() if isinstance(fate.then, Retry)}
        self._destinations.clear()
        self._put_off.clear()

    def seen(self, waiting: Waiting) -> Waiting | None:
        """What a row of the tables comes to; None when it is settled. The same rule as in `writer`."""
        fate = self.fates.get((waiting.queue_id, waiting.index))
        if fate is None:
            return waiting
        if isinstance(fate.then, Done):
            return None
        return msgspec.structs.replace(
            waiting,
            attempts=fate.attempts,
            next_at=waiting.next_at if waiting.bounce else fate.then.next_at,
            notices=fate.then.notices,
        )

    def put_off(self, look_up: Callable[[Sequence[Key]], Iterable[Waiting]]) -> dict[str, dict[Key, Waiting]]:
        """By destination, who was put off, in no order. `look_up` finds the rows of those that are queued and not held."""
        if self._unplaced:
            for row in look_up(list(self._unplaced)):
                waiting = self.seen(row)
                if waiting is not None:
                    key = (waiting.queue_id, waiting.index)
                    self._destinations[key] = waiting.destination
                    self._put_off.setdefault(waiting.destination, {})[key] = waiting
            self._unplaced.clear()
        return self._put_off

    def _drop(self, key: Key) -> None:
        self._unplaced.discard(key)
        destination = self._destinations.pop(key, None)
        if destination is not None:
            there = self._put_off[destination]
            del there[key]
            if not there:
                del self._put_off[destination]
