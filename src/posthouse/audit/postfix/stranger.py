"""A stranger: what he may choose and what he can't."""

import msgspec

THIRD_DOMAIN = "third-party.example"
THIRD_PARTY = f"someone@{THIRD_DOMAIN}"
OUTSIDE = "203.0.113.9"
OWN_DOMAIN = "stranger.example"


class Stranger(msgspec.Struct, frozen=True):
    """One client and one mail of his. `name` is what DNS confirms of his address ("unknown" when nothing).

    `has_certificate`: he shows one of his own making; `is_certified`: one that an authority signed for him. `login` and a
    `client` that isn't his own he has only by claiming them (XCLIENT, PROXY), and `claim` then says how.
    """

    client: str = OUTSIDE
    name: str = "unknown"
    reverse_name: str = "unknown"
    hello: str | None = f"mail.{OWN_DOMAIN}"
    reverse_path: str = f"someone@{OWN_DOMAIN}"
    forward_path: str = THIRD_PARTY
    is_encrypted: bool = False
    has_certificate: bool = False
    is_certified: bool = False
    login: str = ""
    claim: str = ""
    recipients: int = 1
