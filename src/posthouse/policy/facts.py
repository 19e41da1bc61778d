"""Facts: all that a decision may look at, each known, unknown or not learnable."""

import enum
import math
from ipaddress import IPv4Address, IPv6Address

import msgspec

from posthouse.smtp.address import Path


class Role(enum.StrEnum):
    """What a listener is for (RFC 6409, RFC 5598). LOCAL is the local socket of `posthouse sendmail`, LAB an open relay
    on purpose, within bounds (policy.lab)."""

    RELAY = "relay"
    SUBMISSION = "submission"
    LOCAL = "local"
    LAB = "lab"


class Unknown(enum.Enum):
    """Why a fact has no value: it was not gathered yet, or it cannot be learned (PROXY UNKNOWN, say)."""

    NOT_YET = "not-yet"
    NOT_LEARNABLE = "not-learnable"


ClientAddress = IPv4Address | IPv6Address | Unknown


class Facts(msgspec.Struct, frozen=True):
    """What is known when a client names a recipient.

    `client` is the address after PROXY (IPv4-mapped IPv6 already turned into IPv4). `login` is "" when nobody logged in,
    `local_uid` -1 when the client is not on the local socket. `recipients_accepted` counts this transaction's so far.
    `lab` names the lab window of a LAB listener (Rules.labs); `now` is the time in seconds since 1970, which only a lab
    asks for: without one it is after every end.
    """

    role: Role
    client: ClientAddress
    forward_path: Path
    login: str = ""
    local_uid: int = -1
    recipients_accepted: int = 0
    lab: str = ""
    now: float = math.inf
