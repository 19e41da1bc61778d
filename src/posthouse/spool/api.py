"""The durable queue's interface and its named errors. Acknowledged means on disk.

One contract suite (tests/spool/) holds for every implementation.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from posthouse.mail.envelope import Envelope, Recipient
from posthouse.mail.message import Content, Message
from posthouse.mail.outcome import Outcome
from posthouse.mail.reason import Slug
from posthouse.smtp.event import DotForm


class SpoolError(Exception):
    """The spool cannot do what was asked; the sentence says what to do."""


class SpoolFull(SpoolError):
    """Too little free space (octets or inodes): answer 452 4.3.1 and accept again when there is room."""


class SpoolBroken(SpoolError):
    """A write or sync failed: nothing may be acknowledged any more, the server stops (451 4.3.0), no sync is tried again."""


class SpoolDamaged(SpoolBroken):
    """The database is damaged: nothing can be acknowledged until it has been salvaged, which the next start does."""


class SpoolLocked(SpoolError):
    """Another process holds the shard; the message names its pid."""


class SpoolForeign(SpoolError):
    """The directory belongs to another user, or its schema is newer than this program."""


class ContentMissing(SpoolError):
    """The content of a message can't be read or is not what was written: set aside and report it."""


class Durable(Protocol):
    """Called once in the event loop's thread: with None when the message is on disk, else with why it isn't."""

    def __call__(self, error: SpoolError | None, /) -> None:
        """Takes the end of one accept."""


def destination_of(recipient: Recipient) -> str:
    """The key under which a recipient waits until it is rerouted: its domain ("" for `<postmaster>` alone)."""
    return recipient.forward_path.domain


class Waiting(msgspec.Struct, frozen=True):
    """One recipient that waits, as the scheduler sees it. Times are milliseconds since 1970.

    `destination` is the key under which it waits: the forward-path's domain, or a next hop's URL when rerouted.
    `notices` counts delay notices already sent. `bounce`: an operator wants it returned to its sender now (the outcome is
    Failed with BOUNCED_BY_OPERATOR), whether or not it was ever tried.
    """

    queue_id: int
    index: int
    destination: str
    attempts: int
    next_at: int
    arrived_at: int
    notices: int = 0
    bounce: bool = False

    @property
    def position(self) -> tuple[int, int, int]:
        """Where it stands among what is due."""
        return self.next_at, self.queue_id, self.index


class Retry(msgspec.Struct, frozen=True):
    """Keep the recipient and try again at `next_at` (milliseconds since 1970)."""

    next_at: int
    notices: int = 0


class Done(msgspec.Struct, frozen=True):
    """The recipient is settled (relayed, delivered, failed): it leaves the queue and stays in the history."""


class Fate(msgspec.Struct, frozen=True):
    """What to record of one recipient after an attempt."""

    queue_id: int
    index: int
    outcome: Outcome
    then: Retry | Done
    attempts: int
    ended_at: int


class Verb(enum.StrEnum):
    """What operators do with queued mail, as the command line and the history name it."""

    HOLD = "hold"
    """Out of `due` until released."""
    RELEASE = "release"
    """Held ones go back, due now."""
    RETRY = "retry"
    """Due now; held ones stay held."""
    REROUTE = "reroute"
    """Under a next hop's URL as their destination, due now; held ones stay held."""
    BOUNCE = "bounce"
    """To be returned to their sender: due now, held ones too, with `Waiting.bounce` set."""
    DELETE = "delete"
    """Settled without a word to their sender (Failed, DELETED_BY_OPERATOR)."""


class ContentSink(Protocol):
    """A large content on its way to disk, piece by piece, so that memory stays bounded."""

    def write(self, data: bytes) -> None:
        """Takes some octets; buffered, written off the event loop. SpoolFull or SpoolBroken may come from here or from finish."""

    @property
    def is_congested(self) -> bool:
        """More waits to be written than is healthy: stop reading the client until `drained`."""

    async def drained(self) -> None:
        """Returns when writing may go on."""

    async def finish(self, dots: DotForm, is_8bit: bool) -> Content:
        """All octets are written and synced; the Content to hand to accept."""

    def abandon(self) -> None:
        """The client went away or was refused: the file goes."""


class Spool(Protocol):
    """The queue of one shard."""

    def new_queue_id(self) -> int:
        """An id that no message of any shard has."""

    def room_for(self, size_bytes: int) -> SpoolError | None:
        """None when a message of that size may be taken now, else why not. No I/O: looks at the last free-space reading."""

    def open_sink(self, queue_id: int) -> ContentSink:
        """A place for a content too large to be held in memory."""

    def accept(self, envelope: Envelope, message: Message, durable: Durable) -> None:
        """Stores a message with each recipient's grant. `durable` is called after the sync. TypeError for a recipient without a Grant.

        The next_at of each recipient is its arrival: the caller may deliver from memory at once, or leave it to `due`.
        """

    def record(self, fates: Sequence[Fate], *, at_once: bool = False) -> None:
        """Notes outcomes; on disk within 100 ms. A settled recipient leaves, with the last one the message.

        `at_once`: with the next commit, which begins now. For what a sender is told of: a crash makes them hear it again.

        `due`, `pending` and `destinations` know of it at once. Fates of a message that is gone only enter the history.
        """

    def destinations(self) -> list[tuple[str, int, int]]:
        """(destination, earliest next_at, how many wait) of all that is queued and not held; read at start."""

    def due(self, destination: str, now: int, limit: int, after: tuple[int, int, int] = (0, 0, 0)) -> list[Waiting]:
        """What waits under `destination` with next_at <= now, oldest first, beyond the position (next_at, queue_id, index).

        Sees everything recorded so far, whether on disk yet or not: a recipient just put off is due at its new time, and at no other.
        A message is never due before its `durable` has been called: who accepted it may deliver it from memory.
        """

    def load(self, queue_id: int) -> tuple[Envelope, Message]:
        """A stored message; KeyError when it is gone, ContentMissing when damaged. Settled recipients keep their index."""

    def pending(self, queue_id: int) -> list[Waiting]:
        """The unsettled recipients of one message, held ones too; empty when it is gone."""

    def last_outcomes(self, queue_id: int) -> dict[int, Outcome]:
        """The last outcome of each recipient (by index) that was tried and is still stored."""

    def act(
        self, verb: Verb, queue_ids: Sequence[int], destination: str | None = None, next_hop: str = ""
    ) -> list[int]:
        """Does what an operator wants with all unsettled recipients of these messages, or with those under `destination` alone.

        Blocks for a commit, is recorded in the history, and returns the ids of the messages of which it changed something,
        in order. `next_hop`, the new destination's URL, is for REROUTE.
        """

    def correct_times(self, by: int, longest_wait: int) -> None:
        """After the clock was set `by` so many milliseconds: moves all stored times along, so that ages and waits stay what they were.

        Nothing has arrived in the future or waits more than `longest_wait` milliseconds afterwards; with 0 nothing else
        changes (at start: who knows what the clock was while the queue was filled). Blocks for a commit.
        """

    def note_refusal(self, client: str, login: str, slug: Slug) -> None:
        """Counts a refusal for `posthouse usage`; costs a dictionary entry, written with a later batch."""

    def flush(self) -> None:
        """Blocks until everything recorded so far is on disk (at shutdown)."""

    def close(self) -> None:
        """Ends the commit thread and gives up the lock."""


Clock = Callable[[], int]
"""Milliseconds since 1970."""
