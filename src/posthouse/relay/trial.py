"""Suspects on trial: messages that were under way when a worker died are tried again, one at a time.

Whoever kills the worker is then alone in the dock, and the innocent are acquitted by living (spool.under_way counts). The line does
not wait for a next hop that hangs: after a while the next suspect has its turn.
"""

import asyncio
import collections
from collections.abc import Callable, Iterator

import msgspec

from posthouse.mail.envelope import queue_id_text, shard_of
from posthouse.mail.outcome import Deferred
from posthouse.mail.reason import Reason, Slug
from posthouse.observe import log, metrics
from posthouse.relay.site import Parcel, ParcelState
from posthouse.spool.api import Clock, Fate, Retry, Spool, Verb
from posthouse.spool.under_way import BLAME_MS, UnderWay

TURN_SECONDS = 1.2 * BLAME_MS / 1000
"""How long a suspect has the line to itself: until it would no longer be blamed."""


class Trials:
    """The journals of a worker's shards, where one is needed, and who waits for a turn. Without journals nothing costs anything."""

    def __init__(self, dispatch: Callable[[Parcel], None]) -> None:
        self.journals: dict[int, UnderWay] = {}
        """Shard → its journal; none in normal life."""
        self._dispatch = dispatch
        self._line: collections.deque[Parcel] = collections.deque()
        self._in_dock: Parcel | None = None
        self._timer: asyncio.Handle | None = None

    def watch(self, shard: int, journal: UnderWay) -> None:
        """From now on a shard goes by this journal, if there is reason to."""
        if journal.is_needed:
            self.journals[shard] = journal

    def begins(self, parcel: Parcel) -> None:
        """A parcel is about to be read from the queue and tried."""
        journal = self.journals.get(shard_of(parcel.queue_id))
        if journal is not None:
            journal.begins((parcel.queue_id, parcel.indices[0]))

    def ended(self, parcel: Parcel) -> None:
        """All is recorded, or memory has let go of it otherwise."""
        journal = self.journals.get(shard_of(parcel.queue_id))
        if journal is not None:
            journal.ended((parcel.queue_id, parcel.indices[0]))
        if parcel is self._in_dock:
            self._next()

    def is_suspect(self, parcel: Parcel) -> bool:
        """It must wait for its turn."""
        journal = self.journals.get(shard_of(parcel.queue_id))
        return journal is not None and journal.is_suspect((parcel.queue_id, parcel.indices[0]))

    def queue(self, parcel: Parcel) -> None:
        """Takes its place in the line."""
        self._line.append(parcel)
        if self._in_dock is None:
            self._take_turn()

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_soon(self._take_turn)
        self._in_dock = None

    def _take_turn(self) -> None:
        while self._line and self._in_dock is None:
            parcel = self._line.popleft()
            if parcel.state is ParcelState.WAITING:
                self._in_dock = parcel
                self._timer = asyncio.get_running_loop().call_later(TURN_SECONDS, self._next)
                self._dispatch(parcel)

    # Setting aside

    def set_aside(self, spools: dict[int, Spool], clock: Clock) -> None:
        """Holds whatever has had its deaths, with a reason that says so."""
        for shard, journal in self.journals.items():
            for (queue_id, index), deaths in journal.condemned():
                recipients = list(_tried_together(spools[shard], queue_id, index))
                if recipients:
                    _hold(spools[shard], queue_id, recipients, deaths, clock())
                    journal.set_aside((queue_id, index))
                else:
                    journal.forget((queue_id, index))


class _Recipient(msgspec.Struct, frozen=True):
    index: int
    destination: str
    attempts: int
    notices: int


def _tried_together(spool: Spool, queue_id: int, index: int) -> Iterator[_Recipient]:
    rows = spool.pending(queue_id)
    destination = next((row.destination for row in rows if row.index == index), None)
    for row in rows:
        if row.destination == destination:
            yield _Recipient(row.index, row.destination, row.attempts, row.notices)


def _hold(spool: Spool, queue_id: int, recipients: list[_Recipient], deaths: int, now: int) -> None:
    text = queue_id_text(queue_id)
    destination = recipients[0].destination
    words = (
        f"the worker died {deaths} times while this was being sent to {destination or 'its mailbox'}, so it is set aside: "
        f"look into the log (worker-ended) and at the message, then `posthouse queue release {text}` gives it one more try"
    )
    log.error("set-aside", queue_id=text, destination=destination, reason=Slug.POISONED, words=words)
    metrics.outcomes.inc(Slug.POISONED)
    outcome = Deferred("4.3.0", Reason(Slug.POISONED, words))
    spool.record([Fate(queue_id, one.index, outcome, Retry(now, one.notices), one.attempts, now) for one in recipients])
    spool.act(Verb.HOLD, [queue_id], destination)
