"""Where something stands in Postfix's files, and why something could not be learned."""

import msgspec


class Place(msgspec.Struct, frozen=True, order=True):
    """A line of a file; line 0 is a built-in default, or the file as a whole."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}" if self.line else self.file


class Stop(msgspec.Struct, frozen=True):
    """An answer that could not be had: what stands at the place, and how to learn it. It may be anything."""

    place: Place
    words: str


class Unopened(Stop, frozen=True):
    """The table's type is not there: Postfix can't open it, and what asks it gets an error (dict_open(3))."""


class ServerError(Exception):
    """smtpd answers 451 "Server configuration error", or "Temporary lookup failure"."""


class Hit(msgspec.Struct, frozen=True):
    """What a look-up found, and where it stands."""

    value: str
    place: Place
