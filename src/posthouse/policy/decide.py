"""The one place where grants are given."""

from posthouse.mail.grant import Grant, GrantKind
from posthouse.mail.reason import Slug
from posthouse.policy._issue import issue


def restore_grant(kind: str, slug: str, words: str) -> Grant:
    """The grant that a spool row holds, as it was given when the recipient was accepted.

    For the spool alone (a test holds that nothing else calls it): the row's existence is the right. ValueError when
    `kind` or `slug` is not one of ours.
    """
    return issue(GrantKind(kind), Slug(slug), words)
