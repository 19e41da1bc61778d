"""What the server engine knows of one transaction, from MAIL to the reply to the content (RFC 5321 3.3)."""

from posthouse.smtp.command import Bdat
from posthouse.smtp.content import ContentReader
from posthouse.smtp.driving import LocalProtocolError
from posthouse.smtp.line import Inbox
from posthouse.smtp.reply import Reply

SMALL_CHUNK_OCTETS = 512


class Transaction:
    """One transaction. `refusal` is what the content will get at its end, when its octets are only swallowed any more."""

    __slots__ = (
        "_reader",
        "chunk",
        "chunk_left",
        "declared",
        "recipients",
        "refusal",
        "small_chunks",
        "smtputf8",
        "tried",
    )

    def __init__(self, declared: int, *, smtputf8: bool) -> None:
        self.declared = declared
        self.smtputf8 = smtputf8
        self.tried = 0
        self.recipients = 0
        self.refusal: Reply | None = None
        self.chunk: Bdat | None = None  # None: the content comes by DATA
        self.chunk_left = 0
        self.small_chunks = 0
        self._reader: ContentReader | None = None

    @property
    def reader(self) -> ContentReader:
        """The reader of the content, once there is content to read."""
        if self._reader is None:
            raise LocalProtocolError("no content is being read")
        return self._reader

    @property
    def has_content(self) -> bool:
        """The content, or its first chunk, was welcome."""
        return self._reader is not None

    @property
    def octets_read(self) -> int:
        """How much of the content has come."""
        return self._reader.size_bytes if self._reader else 0

    @property
    def is_last(self) -> bool:
        """Nothing follows what is being read: it comes by DATA, or it is the chunk that says LAST."""
        return self.chunk is None or self.chunk.last

    def begin_content(self, reader: ContentReader) -> None:
        """The content is welcome."""
        self._reader = reader

    def begin_chunk(self, chunk: Bdat) -> None:
        """A BDAT was read; its octets come next."""
        self.chunk = chunk
        self.chunk_left = chunk.size_bytes
        if chunk.size_bytes < SMALL_CHUNK_OCTETS and not chunk.last:
            self.small_chunks += 1

    def read_chunk(self, inbox: Inbox) -> bool:
        """Takes what has come of the chunk; True when that was all of it."""
        octets = min(len(inbox), self.chunk_left)
        self.reader.read_chunk(inbox.buffer[inbox.at : inbox.at + octets])
        inbox.at += octets
        self.chunk_left -= octets
        if self.chunk_left:
            return False
        if self.is_last:
            self.reader.finish()
        return True


NO_TRANSACTION = Transaction(0, smtputf8=False)
"""Stands where no transaction is under way."""
