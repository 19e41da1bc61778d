"""What became of one recipient in one attempt. Answers are values: a 550 is a Failed, not an exception."""

import msgspec

from posthouse.mail.reason import Reason


class Outcome(msgspec.Struct, frozen=True):
    """Common to all outcomes.

    `status` is the enhanced code of RFC 3463 ("2.0.0", "4.4.1", "5.1.1"). `remote` names who answered, as
    "mx.example.org [192.0.2.1]:25", "" where nobody did. `diagnostic` is the reply as given ("550 5.1.1 No such user").
    """

    status: str
    reason: Reason
    remote: str = ""
    diagnostic: str = ""


class Relayed(Outcome, frozen=True):
    """The next hop took responsibility. `speaks_dsn`: it offered DSN and got the parameters, so it reports success itself."""

    speaks_dsn: bool = False


class Delivered(Outcome, frozen=True):
    """Final delivery happened here (Maildir, LMTP, pipe)."""


class Deferred(Outcome, frozen=True):
    """Not now; the scheduler decides when to try again."""


class Failed(Outcome, frozen=True):
    """Never; the sender is told."""
