"""What a restriction answers, and what comes of a mail by all of them."""

import enum

import msgspec

from posthouse.audit.postfix.place import Hit
from posthouse.audit.postfix.resolver import Resolved
from posthouse.audit.postfix.smtpd import Restriction, Stage


class Status(enum.Enum):
    """What a restriction answers."""

    DUNNO = 0
    OK = 1
    REJECT = 2


class Permit(msgspec.Struct, frozen=True):
    """What let a stranger past the rest of a list: the restriction, and for a table the entry found."""

    stage: Stage
    restriction: Restriction
    entry: Hit | None = None


class Outcome(msgspec.Struct, frozen=True):
    """Whether the mail was taken, and by which permits. `is_dropped`: taken and thrown away, or sent to a fixed address."""

    is_accepted: bool
    permits: tuple[Permit, ...] = ()
    is_dropped: bool = False
    recipient: Resolved | None = None
