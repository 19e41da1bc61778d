"""Which cases the next session says: pure, and told the time.

Servers bear few errors of one client: Postfix slows down after ten and hangs up after twenty, Exim hangs up after three
errors of syntax or ten commands that send no mail. A refused case is such an error. So a session says few cases, and fewer
still where the host has shown to bear less; what is spread over many short sessions costs no waiting.
"""

import enum
from collections.abc import Iterable, Sequence

from posthouse.tester.case import Case, Way


class Sharing(enum.Enum):
    """With whom a smuggled case shares one mail to the host's postmaster."""

    ALL = "all"
    KIND = "kind"
    """Those with a bare LF, or those without: many servers refuse a mail for that, and take the others as one."""
    NONE = "none"


class Pending:
    """A case that has no answer yet.

    `lost` counts sessions that ended under it, `deferred` the answers that said "later", `unheard` the sessions that ended
    before it could be said. `sharing` is with whom it shares one mail: each time that did not tell, with fewer.
    """

    __slots__ = ("case", "deferred", "lost", "not_before", "sharing", "unheard")

    def __init__(self, case: Case) -> None:
        self.case = case
        self.sharing = Sharing.ALL if case.way is Way.SMUGGLED else Sharing.NONE
        self.lost = 0
        self.deferred = 0
        self.unheard = 0
        self.not_before = 0.0

    @property
    def is_together(self) -> bool:
        """It is said in one mail with its like: what goes to the host's postmaster shall be as little as can be."""
        return self.sharing is not Sharing.NONE and self.lost == 0

    def shares_with(self, other: "Pending") -> bool:
        """Both are said in the same mail."""
        if not (self.is_together and other.is_together and self.sharing is other.sharing):
            return False
        return self.sharing is Sharing.ALL or self.case.has_bare_line_feed == other.case.has_bare_line_feed

    def share_less(self) -> None:
        """What was said together did not tell."""
        self.sharing = Sharing.KIND if self.sharing is Sharing.ALL else Sharing.NONE

    @property
    def is_alone(self) -> bool:
        """It gets a session for itself: it needs one, or one ended under it."""
        return self.case.has_own_session or self.lost > 0


class Plan:
    """What is still to be said. `errors_borne`: refusals that one session may gather; `most` bounds its cases."""

    def __init__(self, cases: Iterable[Case], errors_borne: int, most: int = 20) -> None:
        self.errors_borne = errors_borne
        self.most = most
        self._waiting = [Pending(case) for case in cases]

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, now: float) -> Sequence[Pending]:
        """The cases of one session: one that needs it for itself, those that share one mail, or up to `most` others. Empty when
        none is due."""
        due = [pending for pending in self._waiting if pending.not_before <= now]
        if not due:
            return ()
        if due[0].is_together:
            batch = [pending for pending in due if pending.shares_with(due[0])]
        else:
            batch = due[:1] if due[0].is_alone else [pending for pending in due if not pending.is_alone][: self.most]
        for pending in batch:
            self._waiting.remove(pending)
        return batch

    def put_back(self, pending: Iterable[Pending], not_before: float = 0.0) -> None:
        """Not said, or to be said again, in front of the others; not before that time."""
        returned = list(pending)
        for one in returned:
            one.not_before = not_before
        self._waiting[:0] = returned

    def drain(self) -> Sequence[Pending]:
        """All that is left, taken out: time is over."""
        left, self._waiting = self._waiting, []
        return left

    def next_due(self) -> float | None:
        """When the next case may be said; None when there is none."""
        return min((pending.not_before for pending in self._waiting), default=None)

    def bear_less(self, errors: int) -> None:
        """The host ended or slowed a session after so many errors."""
        self.errors_borne = max(1, min(self.errors_borne, errors))
