"""The mint. It alone holds the seal that a Grant wants; an import rule lets only `policy.decide` in here."""

from functools import lru_cache

from posthouse.mail.grant import Grant, GrantKind, take_seal
from posthouse.mail.reason import Reason, Slug

_seal = take_seal()


@lru_cache(maxsize=8192)
def issue(kind: GrantKind, slug: Slug, words: str) -> Grant:
    """A Grant of that kind; `words` say by what rule it was given. Equal grants are one object: most mail shares a few."""
    return Grant(kind, Reason(slug, words), _seal)
