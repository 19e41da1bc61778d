"""docs/reasons.md explains every slug, once, and no other."""

import re
from collections import Counter
from pathlib import Path

from posthouse.mail.grant import GrantKind
from posthouse.mail.reason import Slug

PAGE = (Path(__file__).parents[2] / "docs" / "reasons.md").read_text()
ROWS = re.findall(r"^\| `([a-z0-9-]+)` \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)


def test_every_slug_is_explained_once_with_what_to_do() -> None:
    assert Counter(slug for slug, _, _ in ROWS) == Counter(slug.value for slug in Slug)
    for slug, meaning, remedy in ROWS:
        assert meaning.endswith("."), slug
        assert remedy.endswith("."), slug


def test_every_kind_of_grant_stands_among_the_grants() -> None:
    grants = PAGE.split("## Refusals")[0]
    for kind in GrantKind:
        assert f"`{kind}`" in grants
