"""Final delivery, as Maildir and pipe share it (RFC 5321 4.4): no loops, Return-Path in front, local line ends, safe local parts."""

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from posthouse.mail.header import header_of_pieces, was_delivered_to
from posthouse.mail.message import Content
from posthouse.mail.outcome import Failed
from posthouse.mail.reason import Reason, Slug
from posthouse.mail.trace import delivered_to_field, mailbox_octets, return_path_field
from posthouse.smtp.address import Path
from posthouse.smtp.dots import unstuffer
from posthouse.smtp.event import DotForm
from posthouse.transports.api import Attempt

CHUNK_OCTETS: Final = 256 * 1024

_safe_local_part = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9._+-]*").fullmatch
_placeholder = re.compile(r"\{([a-z_]+)\}")


class ContentUnreadable(OSError):
    """The spool's file of a large content can't be read, or is too short or damaged."""


def safe_local_part(path: Path) -> str | None:
    """The local part when it may stand in a file name or an argument, else None: it can't be a path, an option, a pattern."""
    return path.local_part.decode("ascii") if _safe_local_part(path.local_part) else None


def fill(template: str, values: Mapping[str, str]) -> str:
    """`{name}` replaced by its value, in one pass: a value is never looked at again. Unknown names stay as they are."""
    return _placeholder.sub(lambda match: values.get(match[1], match[0]), template)


def find_loop(attempt: Attempt, forward_path: Path) -> Failed | None:
    """Failed when a Delivered-To field says that the message has been in this mailbox before. ContentUnreadable."""
    header = header_of_pieces(_stored_pieces(attempt.message.content))
    if not was_delivered_to(header, mailbox_octets(forward_path)):
        return None
    words = f"it has been delivered to {forward_path} before, so something sends it back here; look for a forwarding"
    return Failed("5.4.6", Reason(Slug.MAIL_LOOP, words))


def local_pieces(attempt: Attempt, forward_path: Path) -> Iterator[bytes]:
    """The message as it is stored: unstuffed, lines ended by LF, as Maildir readers and programs on Unix expect.

    Raises ContentUnreadable. Reads a large content chunk by chunk.
    """
    front = return_path_field(attempt.reverse_path) + delivered_to_field(forward_path) + attempt.message.trace
    yield front.replace(b"\r\n", b"\n")
    held = b""
    for plain in plain_pieces(attempt.message.content):
        piece = held + plain
        held = b"\r" if piece.endswith(b"\r") else b""
        yield (piece[:-1] if held else piece).replace(b"\r\n", b"\n")
    if held:
        yield held


def plain_pieces(content: Content) -> Iterator[bytes]:
    """The content as it was written, the dots that DATA adds taken off. ContentUnreadable."""
    turn = unstuffer().turn if content.dots is DotForm.STUFFED else bytes
    return map(turn, _stored_pieces(content))


def _stored_pieces(content: Content) -> Iterator[bytes]:
    if content.file is None:
        yield from content.pieces
        return
    offset, left = content.file.offset, content.file.length
    found = 0
    try:
        descriptor = os.open(content.file.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ContentUnreadable(error.errno, f"{content.file.path}: {error.strerror}") from error
    try:
        while left:
            piece = os.pread(descriptor, min(left, CHUNK_OCTETS), offset)
            if not piece:
                raise ContentUnreadable(0, f"{content.file.path} ends before octet {offset}")
            offset += len(piece)
            left -= len(piece)
            found = zlib.crc32(piece, found)
            if not left and content.file.checksum not in (-1, found):
                raise ContentUnreadable(0, f"{content.file.path} is damaged")
            yield piece
    finally:
        os.close(descriptor)
