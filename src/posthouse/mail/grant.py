"""The recorded reason why a recipient may enter the queue. No grant, no relay.

The type lives here since it travels with its recipient; only `policy` can make one. The constructor is sealed: it wants
a token that `posthouse.policy._issue` alone takes, and an import rule keeps that module to `policy.decide`.
"""

import enum

import msgspec

from posthouse.mail.reason import Reason


class GrantKind(enum.StrEnum):
    """The kinds of right to send to a forward-path."""

    LOCAL_DELIVERY = "local-delivery"
    RELAY_DOMAIN = "relay-domain"
    TRUSTED_NETWORK = "trusted-network"
    AUTHENTICATED_USER = "authenticated-user"
    LOCAL_USER = "local-user"
    FORWARDING = "forwarding"
    LAB_WINDOW = "lab-window"
    OWN_NOTIFICATION = "own-notification"


class _Seal:
    """Proof that the caller is the mint; `take_seal` hands it out once."""

    __slots__ = ()


_seal = _Seal()
_seal_is_taken = False


def take_seal() -> _Seal:
    """The seal, once, to the mint. A second caller gets a PermissionError."""
    global _seal_is_taken  # noqa: PLW0603 - a module is the one place that can hand out something once
    if _seal_is_taken:
        raise PermissionError("grants have one mint, posthouse.policy._issue; ask policy.decide for a grant")
    _seal_is_taken = True
    return _seal


class Grant(msgspec.Struct, frozen=True, gc=False):
    """Why this client may send to this forward-path: the `kind` of right and the Reason with its particulars.

    The seal is taken off as soon as it was looked at, so that no grant can be copied into another.
    """

    kind: GrantKind
    reason: Reason
    seal: object

    def __post_init__(self) -> None:
        if self.seal is not _seal:
            raise PermissionError("a Grant can only be made by policy.decide")
        msgspec.structs.force_setattr(self, "seal", None)
