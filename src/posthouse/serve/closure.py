"""Could a stranger relay by these rules, on this machine? The proof over the rules, and a look at the machine's gateways.

One verdict for `check`, for the start and for a reload, so that none of them is kinder than another.
"""

import msgspec

from posthouse.policy.doubts import find_doubts
from posthouse.policy.gateways import Masked, masked_openings
from posthouse.policy.proof import Opening, find_opening
from posthouse.policy.rules import Rules
from posthouse.serve.machine import Surroundings, look_around


class Closure(msgspec.Struct, frozen=True):
    """The verdict. `doubts` are sentences about what is closed but surely not meant, or could not be looked at."""

    opening: Opening | None
    masked: tuple[Masked, ...]
    doubts: tuple[str, ...]

    @property
    def is_closed(self) -> bool:
        """No stranger can relay, as far as client addresses are real."""
        return self.opening is None and not self.masked

    @property
    def sentences(self) -> tuple[str, ...]:
        """Why it is open, each with its counterexample and remedy; empty when it is closed."""
        opening = (self.opening.sentence,) if self.opening else ()
        return (*opening, *(masked.sentence for masked in self.masked))


def examine(rules: Rules, surroundings: Surroundings | None = None) -> Closure:
    """The verdict on rules about to be put in force; `surroundings` None: look now."""
    around = look_around() if surroundings is None else surroundings
    return Closure(
        find_opening(rules),
        tuple(masked_openings(rules, around.gateways)),
        (*find_doubts(rules), *around.unread),
    )
