"""Python before 3.11.5 matches possessive repeats of a group wrongly (CPython gh-106052), and Debian 12 ships 3.11.2."""

import re
from pathlib import Path

import posthouse

POSSESSIVE_GROUP = re.compile(r"\)[*+?]\+|\)\{[\d,]+\}\+")


def test_no_pattern_repeats_a_group_possessively() -> None:
    sources = Path(posthouse.__file__).parent.rglob("*.py")
    found = [
        f"{path.name}:{number}"
        for path in sources
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if POSSESSIVE_GROUP.search(line)
    ]
    assert found == []
