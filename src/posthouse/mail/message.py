"""The message: a prefix of trace fields of ours, and the content as it came."""

import msgspec

from posthouse.smtp.event import DotForm


class ContentFile(msgspec.Struct, frozen=True):
    """Where the octets of a large content lie: a file, an offset and a length in octets.

    Who reads them holds them against `checksum`, their CRC-32, before they are anybody else's; -1: it is not known.
    """

    path: str
    offset: int
    length: int
    checksum: int = -1


class Content(msgspec.Struct, frozen=True):
    """The octets a client sent, in wire form, lines ended by CRLF, never regenerated.

    Either `pieces` holds them in memory, or `file` says where they lie; `size_bytes` counts the stored octets.
    """

    size_bytes: int
    dots: DotForm
    is_8bit: bool
    pieces: tuple[bytes, ...] = ()
    file: ContentFile | None = None

    @property
    def is_in_memory(self) -> bool:
        """The pieces are at hand; otherwise the content must be read from its file."""
        return self.file is None


class Message(msgspec.Struct, frozen=True):
    """`trace` (our Received field and what else we put in front, CRLF-ended lines that never begin with a dot), then `content`."""

    trace: bytes
    content: Content

    @property
    def size_bytes(self) -> int:
        """Octets to transmit, stuffing included."""
        return len(self.trace) + self.content.size_bytes
