"""Reading the header of a message in transit (RFC 5322 2.2), from its octets, without changing one.

Nothing here fails: what is no field is passed over. Whoever wrote the header was not asked to be well-behaved. Only the
first `HEADER_LIMIT` octets are looked at, so the work for one message is bounded; the engine refuses longer headers.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

HEADER_LIMIT: Final = 256 * 1024
"""Octets of a message in which its header must end; the SMTP engine refuses a longer one."""

_FOLD: Final = re.compile(rb"\r\n(?=[ \t])")  # RFC 5322 2.2.3: unfolding removes the CRLF, nothing else
_OBSOLETE_RECEIVED: Final = re.compile(rb"\nreceived[ \t]+:")  # RFC 5322 4.5: blanks before the colon


class Field(NamedTuple):
    """One header field: `name` as written, `value` unfolded and without the blanks around it."""

    name: bytes
    value: bytes


def header_of(octets: bytes) -> bytes:
    """The header of a message that begins with `octets`: its lines with their CRLF, without the empty line.

    Without an empty line within HEADER_LIMIT octets, what is there up to the last whole line.
    """
    if octets.startswith(b"\r\n"):
        return b""
    end = octets.find(b"\r\n\r\n", 0, HEADER_LIMIT)
    if end < 0:
        end = octets.rfind(b"\r\n", 0, HEADER_LIMIT)
    return octets[: end + 2] if end >= 0 else b""


def header_of_pieces(pieces: Iterable[bytes]) -> bytes:
    """The header of a content held in pieces; no more of them are joined than it takes."""
    gathered = bytearray()
    for piece in pieces:
        seen = max(0, len(gathered) - 3)
        gathered += piece[:HEADER_LIMIT]
        if gathered.find(b"\r\n\r\n", seen) >= 0 or len(gathered) >= HEADER_LIMIT or gathered.startswith(b"\r\n"):
            break
    return header_of(bytes(gathered))


def fields(header: bytes) -> Iterator[Field]:
    """The fields of a header in order; lines that are no field are passed over."""
    for entry in _FOLD.sub(b"", header).split(b"\r\n"):
        name, colon, value = entry.partition(b":")
        name = name.rstrip(b" \t")
        if colon and name and not name[:1].isspace():
            yield Field(name, value.strip(b" \t"))


def field(header: bytes, name: bytes) -> bytes | None:
    """The unfolded value of the first field called `name` (case does not matter); None when there is none."""
    wanted = name.lower()
    if wanted not in header.lower():  # the common no, at the speed of one search
        return None
    return next((found.value for found in fields(header) if found.name.lower() == wanted), None)


def count_received(header: bytes) -> int:
    """How many Received fields a header holds: the hops so far (RFC 5321 6.3)."""
    lowered = b"\n" + header.lower()
    count = lowered.count(b"\nreceived:")
    if lowered.count(b"\nreceived") != count:  # Received-SPF, mostly
        count += len(_OBSOLETE_RECEIVED.findall(lowered))
    return count


def was_delivered_to(header: bytes, mailbox: bytes) -> bool:
    """A Delivered-To field names `mailbox`: this message has been here before, delivering it again would be a loop.

    Domains and local parts are compared without regard to case; a false yes takes a message that names the same mailbox
    in two spellings, a false no a loop.
    """
    wanted = mailbox.lower()
    lowered = header.lower()
    if b"delivered-to" not in lowered or wanted not in lowered:
        return False
    return any(
        found.name.lower() == b"delivered-to" and found.value.strip(b"<>").lower() == wanted for found in fields(header)
    )
