"""docs/rfc.md: each row says yes, partly or no, its code exists, and what the code cites stands in it."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rfc.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]*)\| ([^|]*)\|$", PAGE, re.MULTILINE)


def test_no_row_of_the_page_escapes_this_test() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("|") and not line.startswith(("| RFC", "|---"))]
    assert len(lines) == len(ROWS)
    assert max(Counter(number for number, *_ in ROWS).values()) == 1


@pytest.mark.parametrize(("number", "what", "state", "where", "remarks"), ROWS, ids=[row[0] for row in ROWS])
def test_each_rfc_has_a_state_and_code_that_exists(
    number: str, what: str, state: str, where: str, remarks: str
) -> None:
    assert state in {"yes", "partly", "no"}
    paths = re.findall(r"`([^`]+)`", where)
    assert bool(paths) == (state != "no")
    for path in paths:
        assert (ROOT / path).exists(), path
    if state == "partly":
        assert remarks.strip(), "partly needs to say what"


def test_each_rfc_that_the_code_cites_stands_on_the_page() -> None:
    cited = {
        number
        for path in (ROOT / "src").rglob("*.py")
        for words in re.findall(r"RFCs? ?((?:\d{3,4}(?:, | and | or | to )?)+)", path.read_text())
        for number in re.findall(r"\d{3,4}", words)
    }
    assert cited - {number for number, *_ in ROWS} == set()
