"""Transparency: the dots that DATA adds and BDAT doesn't (RFC 5321 4.5.2), on whole pieces, never line by line.

Content that crosses in pieces is turned piece by piece; a line may begin in one and go on in the next.
"""

from posthouse.smtp.event import DotForm

_LINE_START = b"\r\n"


class _Piecewise:
    """Replaces at the start of lines; remembers the last two octets, in which a line start may begin."""

    __slots__ = ("_new", "_old", "_tail")

    def __init__(self, old: bytes, new: bytes) -> None:
        self._old = old
        self._new = new
        self._tail = _LINE_START  # content begins at the start of a line

    def turn(self, piece: bytes) -> bytes:
        """The next piece, turned."""
        tail = self._tail
        joined = tail + piece
        self._tail = joined[-2:]
        # No replacement reaches into the tail: both forms begin with the two octets that may stand in it.
        return joined.replace(self._old, self._new)[len(tail) :]


def stuffer() -> _Piecewise:
    """Doubles the dot that a line begins with: from plain form to what DATA sends."""
    return _Piecewise(b"\r\n.", b"\r\n..")


def unstuffer() -> _Piecewise:
    """Takes the first dot from each line that begins with one: from what DATA brought to plain form."""
    return _Piecewise(b"\r\n.", b"\r\n")


def stuffed(content: bytes, dots: DotForm) -> bytes:
    """A whole content as DATA sends it."""
    return stuffer().turn(content) if dots is DotForm.PLAIN else content


def plain(content: bytes, dots: DotForm) -> bytes:
    """A whole content as it was written, for BDAT and final delivery."""
    return unstuffer().turn(content) if dots is DotForm.STUFFED else content
