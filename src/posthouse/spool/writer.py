"""The statements that change a queue, run in the loop inside one transaction that the commit thread ends."""

import sqlite3
import zlib
from collections.abc import Iterable, Sequence

from posthouse.mail.envelope import Envelope
from posthouse.mail.grant import Grant
from posthouse.mail.message import Message
from posthouse.spool.act import Act, Correction
from posthouse.spool.api import Fate, Retry
from posthouse.spool.content import ROW_MAX, Chunk, SharedFiles
from posthouse.spool.record import attempted_event, clean, encode_event, encode_rest, path_octets, seal
from posthouse.spool.rows import MultiInsert, id_list

_KNOWN_MAX = 50_000

_insert_messages = MultiInsert(
    "message",
    "id,arrived,reverse_path,envelope,size,recipients,form,checksum,content_file,content_offset,content_length,trace,content",
)
_insert_recipients = MultiInsert(
    "recipient",
    "message,n,forward_path,notify,original_recipient,grant_kind,grant_slug,grant_reason,destination,next_at",
)

_DEFER = """UPDATE recipient SET attempts=?, notices=?, last=?, next_at=CASE WHEN bounce THEN next_at ELSE ? END
WHERE message=? AND n=? AND state<>3"""
_SETTLE = "UPDATE recipient SET state=3, bounce=0, attempts=?, last=? WHERE message=? AND n=? AND state<>3"
_FINISHED = """SELECT value FROM json_each(?)
WHERE NOT EXISTS(SELECT 1 FROM recipient WHERE message=value AND state<>3)"""
_STORED = """SELECT content_file, content_length FROM message
WHERE id IN (SELECT value FROM json_each(?)) AND content_file IS NOT NULL"""

USED = """SELECT content_file, count(*), sum(content_length) FROM message
WHERE content_file IS NOT NULL GROUP BY content_file"""
"""(file, contents, octets) of every file that a row points into."""


class Prepared:
    """A message as rows, but for its content's place. Made when it is handed in, so that a fault falls on who did it."""

    __slots__ = ("head", "message", "queue_id", "recipients")

    def __init__(self, envelope: Envelope, message: Message) -> None:
        queue_id = self.queue_id = envelope.queue_id
        self.message = message
        arrived = envelope.arrived_at
        content = message.content
        rows: list[tuple[object, ...]] = []
        n = 0
        for recipient in envelope.recipients:
            path, grant = recipient.forward_path, recipient.grant
            if type(grant) is not Grant:
                raise TypeError(f"recipient {n} has no grant: nothing enters the queue without one")
            reason = grant.reason
            rows.append(
                (
                    queue_id,
                    n,
                    path_octets(path),
                    recipient.notify._value_,
                    clean(recipient.original_recipient),
                    grant.kind._value_,
                    reason.slug._value_,
                    clean(reason.words),
                    path.domain,
                    arrived,
                )
            )
            n += 1
        if not n:
            raise ValueError("a message needs a recipient")
        self.recipients = rows
        reverse_path = path_octets(envelope.reverse_path)
        form = content.dots | content.is_8bit << 2
        sealed = seal(encode_rest(envelope), (reverse_path, form, message.trace), [row[2:8] for row in rows])
        self.head: tuple[object, ...] = (queue_id, arrived, reverse_path, sealed, message.size_bytes, n, form)


class Writer:
    """Runs statements on the writing connection and knows what they leave to be done with files.

    It remembers which recipients of recent messages are still unsettled (a bit each), so that the common end, a message
    whose only recipient is settled, is a delete without a look into the table. For older messages the table is asked.
    """

    def __init__(self, connection: sqlite3.Connection, files: SharedFiles) -> None:
        self._connection = connection
        self._files = files
        self._unsettled: dict[int, int] = {}
        self._places: dict[int, tuple[str, int]] = {}
        self.messages_added = 0
        """Messages inserted less those deleted, since the start, committed."""
        self.unsettled_added = 0
        """Recipients inserted less those settled, since the start, committed."""
        self._delta = 0
        self._unsettled_delta = 0
        self.octets = 0
        """Octets of rows written since the last checkpoint, for judging the log's length."""
        self.chunks: list[Chunk] = []
        """Contents to be written and synced before this transaction commits."""
        self.orphans: list[str] = []
        """Files to be removed after it has."""

    def begin(self) -> None:
        """Opens the transaction."""
        self.chunks = []
        self.orphans = self._files.take_empty()
        self._delta = self._unsettled_delta = 0
        self._connection.execute("BEGIN IMMEDIATE")

    def rollback(self) -> None:
        """Ends the transaction as if nothing had been; what was reserved in files stays unused."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._delta = self._unsettled_delta = self.octets = 0
        self._files.recount(self._connection.execute(USED))
        self._unsettled.clear()
        self._places.clear()
        self.chunks = []
        self.orphans = []

    def insert(self, prepared: Iterable[Prepared], own: dict[str, tuple[int, int]]) -> None:
        """Adds messages. `own` maps the names of finished files of one content to (length, CRC-32)."""
        messages: list[tuple[object, ...]] = []
        recipients: list[tuple[object, ...]] = []
        for one in prepared:
            messages.append(one.head + self._place(one.queue_id, one.message, own))
            recipients += one.recipients
            self._unsettled[one.queue_id] = (1 << len(one.recipients)) - 1
        _insert_messages.run(self._connection, messages)
        _insert_recipients.run(self._connection, recipients)
        self._delta += len(messages)
        self._unsettled_delta += len(recipients)
        self._forget_surplus()

    def _place(self, queue_id: int, message: Message, own: dict[str, tuple[int, int]]) -> tuple[object, ...]:
        """Where a content goes: (checksum, file, offset, length, trace, content)."""
        content = message.content
        pieces = content.pieces
        if content.file is None and content.size_bytes <= ROW_MAX:
            octets = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self.octets += len(octets)
            return zlib.crc32(octets), None, None, len(octets), message.trace, octets
        if content.file is not None:
            name = content.file.path.rpartition("/")[2]
            length, checksum = own[name]
            self._places[queue_id] = (name, length)
            return checksum, name, 0, length, message.trace, None
        length = content.size_bytes
        file, offset = self._files.reserve(length)
        self.chunks.append(Chunk(file, offset, pieces, length))
        self._places[queue_id] = (file, length)
        return None, file, offset, length, message.trace, None

    def apply(self, fates: Sequence[Fate], texts: Sequence[str]) -> None:
        """Notes outcomes; `texts` are their events as JSON. Whatever concerns a message that is gone has no effect."""
        deferred: list[tuple[object, ...]] = []
        settled: list[tuple[object, ...]] = []
        gone: list[int] = []
        unknown: set[int] = set()
        for fate, last in zip(fates, texts, strict=True):
            queue_id, then = fate.queue_id, fate.then
            if isinstance(then, Retry):
                deferred.append((fate.attempts, then.notices, last, then.next_at, queue_id, fate.index))
                continue
            left = self._unsettled.get(queue_id)
            if left is not None:
                left &= ~(1 << fate.index)
                if not left:
                    del self._unsettled[queue_id]
                    gone.append(queue_id)
                    continue
                self._unsettled[queue_id] = left
            else:
                unknown.add(queue_id)
            settled.append((fate.attempts, last, queue_id, fate.index))
        if deferred:
            self._connection.executemany(_DEFER, deferred)
        if settled:
            self._unsettled_delta -= self._connection.executemany(_SETTLE, settled).rowcount
        if gone:
            self._unsettled_delta -= len(gone)  # the last one of each
            self._delete(gone)
        if unknown:
            self._delete_finished(unknown)

    def act(self, act: Act | Correction) -> None:
        """Does what an operator asked for."""
        fates = act.run(self._connection)
        if fates:
            self.apply(fates, [encode_event(attempted_event(fate)) for fate in fates])

    def forget(self, queue_id: int) -> None:
        """A message was not inserted after all."""
        self._unsettled.pop(queue_id, None)
        self._places.pop(queue_id, None)

    def move(self, queue_id: int, old_file: str, content: bytes) -> None:
        """Copies a content to the end of the current shared file, so that the sparse one it is in may go."""
        file, offset = self._files.reserve(len(content))
        updated = self._connection.execute(
            "UPDATE message SET content_file=?, content_offset=? WHERE id=?", (file, offset, queue_id)
        )
        if not updated.rowcount:
            self._files.release(file, len(content))
            return
        self.chunks.append(Chunk(file, offset, (content,), len(content)))
        self._release(old_file, len(content))
        if queue_id in self._places:
            self._places[queue_id] = (file, len(content))

    def committed(self) -> int:
        """The transaction is on disk. About how many pages of log it cost."""
        self.messages_added += self._delta
        self.unsettled_added += self._unsettled_delta
        pages = int(self.octets / 4096 * 1.3) + 8
        self.octets = 0
        return pages

    def _delete_finished(self, ids: Iterable[int]) -> None:
        finished = [row[0] for row in self._connection.execute(_FINISHED, (id_list(list(ids)),))]
        if finished:
            listed = id_list(finished)
            for file, length in self._connection.execute(_STORED, (listed,)).fetchall():
                self._release(file, length)
            self._delete_rows(listed)

    def _delete(self, ids: list[int]) -> None:
        if self._places:
            for queue_id in ids:
                place = self._places.pop(queue_id, None)
                if place is not None:
                    self._release(*place)
        self._delete_rows(id_list(ids))

    def _delete_rows(self, listed: str) -> None:
        self._connection.execute("DELETE FROM recipient WHERE message IN (SELECT value FROM json_each(?))", (listed,))
        deleted = self._connection.execute(
            "DELETE FROM message WHERE id IN (SELECT value FROM json_each(?))", (listed,)
        )
        self._delta -= deleted.rowcount

    def _release(self, file: str, length: int) -> None:
        if file.startswith("m"):
            self.orphans.append(file)
        elif (orphan := self._files.release(file, length)) is not None:
            self.orphans.append(orphan)

    def _forget_surplus(self) -> None:
        surplus = len(self._unsettled) - _KNOWN_MAX
        if surplus > 0:
            for queue_id in list(self._unsettled)[:surplus]:
                del self._unsettled[queue_id]
                self._places.pop(queue_id, None)
