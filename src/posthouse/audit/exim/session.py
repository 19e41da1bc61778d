"""One stranger at one recipient, as far as Exim's conditions ask."""

import enum

import msgspec

from posthouse.policy.networks import Address

UNKNOWN = "\0"
"""The value of a variable that was set to what can't be judged. No configuration can hold this text."""


class Truth(enum.Enum):
    """Whether a condition holds. CHOICE: the stranger has it in hand, or the day decides (a listing, a rate, a callout)."""

    YES = enum.auto()
    NO = enum.auto()
    CHOICE = enum.auto()

    def negated(self) -> "Truth":
        """The other answer; a choice stays one."""
        return {Truth.YES: Truth.NO, Truth.NO: Truth.YES}.get(self, self)


def truth(value: bool) -> Truth:
    """YES or NO."""
    return Truth.YES if value else Truth.NO


class Session(msgspec.Struct, frozen=True):
    """What the client is and says. Paths without brackets; `variables` are what `set` has left behind."""

    address: Address
    hello: str
    is_encrypted: bool
    reverse_path: str
    local_part: str
    domain: str
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def forward_path(self) -> str:
        """Local part and domain, joined."""
        return f"{self.local_part}@{self.domain}"

    @property
    def reverse_domain(self) -> str:
        """The domain of the reverse-path; "" for the null one."""
        return self.reverse_path.rpartition("@")[2]

    def to(self, local_part: str, domain: str) -> "Session":
        """The same for another recipient."""
        return msgspec.structs.replace(self, local_part=local_part, domain=domain)
