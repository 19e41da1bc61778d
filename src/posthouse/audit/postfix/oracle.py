"""What can't be read may be anything: an answer is sure only when it is the same under every reading.

One `Oracle` is one reading. `readings` goes through all of them that an evaluation asks for, depth first.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from posthouse.audit.postfix.place import Hit, ServerError, Stop, Unopened
from posthouse.audit.postfix.table import Found

Answer = TypeVar("Answer")
_MOST_READINGS = 512


class Oracle:
    """Answers for what is not known, by a script of choices; beyond its end always the first."""

    def __init__(self, script: list[int]) -> None:
        self._script = script
        self._known: dict[tuple[Stop, str], int] = {}
        self.taken: list[tuple[int, int]] = []
        self.stops: list[Stop] = []

    def choose(self, stop: Stop, key: str, options: int) -> int:
        """One of 0 ... options - 1; the same again for the same stop and key."""
        memo = (stop, key)
        if memo not in self._known:
            at = len(self.taken)
            choice = self._script[at] if at < len(self._script) else 0
            self.taken.append((choice, options))
            self.stops.append(stop)
            self._known[memo] = choice
        return self._known[memo]

    def settle(self, found: Found, key: str) -> Hit | None:
        """A look-up's result; one that isn't known is taken for a hit first, then for none. ServerError from no table."""
        if isinstance(found, Unopened):
            raise ServerError
        if isinstance(found, Stop):
            return Hit("", found.place) if self.choose(found, key, 2) == 0 else None
        return found


class TooManyReadings(Exception):
    """Not all of them were looked at."""


def deciding(evaluate: Callable[[Oracle], object], oracle: Oracle) -> list[Stop]:
    """Those unknowns of a reading that comes out true which alone can make it come out otherwise; all, when none can alone."""
    choices = [choice for choice, _ in oracle.taken]
    found = []
    for at, (choice, options) in enumerate(oracle.taken):
        others = ([*choices[:at], other, *choices[at + 1 :]] for other in range(options) if other != choice)
        if not all(evaluate(Oracle(script)) for script in others):
            found.append(oracle.stops[at])
    return found or oracle.stops


def readings(evaluate: Callable[[Oracle], Answer]) -> Iterator[tuple[Answer, Oracle]]:
    """The answer under each reading. TooManyReadings after some hundred of them."""
    script: list[int] = []
    for _ in range(_MOST_READINGS):
        oracle = Oracle(script)
        yield evaluate(oracle), oracle
        taken = list(oracle.taken)
        while taken and taken[-1][0] + 1 >= taken[-1][1]:
            taken.pop()
        if not taken:
            return
        script = [choice for choice, _ in taken[:-1]] + [taken[-1][0] + 1]
    raise TooManyReadings
