"""How a message leaves, seen from the relay: the only part of this room that `relay` may import.

A Transport is one way to one next hop. It pulls attempts from its Feed and reports outcomes to it, so that a connection can
be kept, and the next transaction written behind the final dot of the one before, without the relay knowing how.
"""

import enum
from collections.abc import Sequence
from typing import Protocol

import msgspec

from posthouse.mail.envelope import Envelope
from posthouse.mail.message import Message
from posthouse.mail.outcome import Outcome
from posthouse.mail.reason import Reason
from posthouse.smtp.address import Path


class TlsMode(enum.StrEnum):
    """How TLS is used towards a next hop: where offered, always, always with a certificate that proves the name, or never."""

    OPPORTUNISTIC = "opportunistic"
    REQUIRED = "required"
    VERIFIED = "verified"
    NEVER = "never"


COMMAND_FIELDS = ("local_part", "domain", "forward_path", "reverse_path", "queue_id")
"""What `{...}` in the arguments of a program may name."""


class Login(msgspec.Struct, frozen=True):
    """What we say to a next hop that wants to know us."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"Login({self.user!r}, …)"


class Attempt(msgspec.Struct, frozen=True, eq=False):
    """One try to hand one message to one next hop for some of its recipients.

    `indices` are the recipients' places in `envelope.recipients`. `reverse_path` may differ from the envelope's when the
    route rewrites it.
    """

    envelope: Envelope
    message: Message
    indices: tuple[int, ...]
    reverse_path: Path


class Feed(Protocol):
    """What a transport pulls from: the site's waiting attempts."""

    def take(self) -> Attempt | None:
        """The next attempt for this next hop, now owed a report; None when nothing waits."""

    def report(self, attempt: Attempt, outcomes: Sequence[Outcome]) -> None:
        """The end of an attempt: one outcome for each of its `indices`, in that order. Exactly once for each taken attempt."""

    async def wait(self, seconds: float) -> bool:
        """Waits until something may be taken (True), or until `seconds` have passed or the relay is stopping (False)."""


class Closed(msgspec.Struct, frozen=True):
    """The transport ended well: nothing waited any more."""

    attempts: int


class Unavailable(msgspec.Struct, frozen=True):
    """The next hop could not be used: not reached, or lost between transactions. No taken attempt is unreported.

    `status` is an enhanced code; `is_permanent` when trying again cannot help (a 5yz greeting, say).
    """

    reason: Reason
    status: str
    remote: str = ""
    diagnostic: str = ""
    is_permanent: bool = False
    attempts: int = 0


class Transport(Protocol):
    """One way to one next hop."""

    async def run(self, feed: Feed) -> Closed | Unavailable:
        """Delivers what `feed` gives until nothing waits or the next hop is lost. Cancellation ends it at once."""
