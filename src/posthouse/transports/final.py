"""Final delivery, as Maildir and pipe share it (RFC 5321 4.4): Return-Path in front, local line ends, a safe local part."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Final

from posthouse.mail.message import Content
from posthouse.smtp.address import Path
from posthouse.smtp.dots import unstuffer
from posthouse.smtp.event import DotForm
from posthouse.transports.api import Attempt

CHUNK_OCTETS: Final = 256 * 1024

_safe_local_part = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9._+-]*").fullmatch
_placeholder = re.compile(r"\{([a-z_]+)\}")


class ContentUnreadable(OSError):
    """The spool's file of a large content can't be read, or is too short."""


def safe_local_part(path: Path) -> str | None:
    """The local part when it may stand in a file name or an argument, else None: it can't be a path, an option, a pattern."""
    return path.local_part.decode("ascii") if _safe_local_part(path.local_part) else None


def fill(template: str, values: Mapping[str, str]) -> str:
    """`{name}` replaced by its value, in one pass: a value is never looked at again. Unknown names stay as they are."""
    return _placeholder.sub(lambda match: values.get(match[1], match[0]), template)


def delivery_header(attempt: Attempt, forward_path: Path) -> bytes:
    """What final delivery puts in front, lines ended by CRLF: Return-Path (RFC 5321 4.4) and Delivered-To."""
    return b"Return-Path: <%s>\r\nDelivered-To: %s\r\n" % (attempt.reverse_path.encode(), forward_path.encode())


def local_pieces(attempt: Attempt, forward_path: Path) -> Iterator[bytes]:
    """The message as it is stored: unstuffed, lines ended by LF, as Maildir readers and programs on Unix expect.

    Raises ContentUnreadable. Reads a large content chunk by chunk.
    """
    content = attempt.message.content
    yield (delivery_header(attempt, forward_path) + attempt.message.trace).replace(b"\r\n", b"\n")
    turn = unstuffer().turn if content.dots is DotForm.STUFFED else None
    held = b""
    for stored in _stored_pieces(content):
        piece = held + (turn(stored) if turn else stored)
        held = b"\r" if piece.endswith(b"\r") else b""
        yield (piece[:-1] if held else piece).replace(b"\r\n", b"\n")
    if held:
        yield held


def _stored_pieces(content: Content) -> Iterator[bytes]:
    if content.file is None:
        yield from content.pieces
        return
    offset, left = content.file.offset, content.file.length
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
            yield piece
    finally:
        os.close(descriptor)
