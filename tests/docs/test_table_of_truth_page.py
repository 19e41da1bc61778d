"""The page with the table of truth says what the tests of real servers hold."""

from pathlib import Path

from posthouse.tester.case import CASES
from relay_forms import ATTEMPTS, SERVERS, table, way_in

PAGE = Path(__file__).parents[2] / "docs" / "table-of-truth.md"


def test_page_is_the_table_that_is_tested() -> None:
    assert PAGE.read_text() == table(), "python tests/relay_forms.py > docs/table-of-truth.md"


def test_each_server_is_closed_in_one_form_and_open_in_six_and_each_way_in_is_a_case() -> None:
    numbers = {case.number for case in CASES}
    for server in SERVERS.values():
        assert sum(form.is_open for form in server.forms) >= 6
        assert any(not form.is_open for form in server.forms)
        assert len({form.says for form in server.forms}) == len(server.forms)
        assert {way_in(form) for form in server.forms if form.is_open} <= numbers
    assert {attempt.case for attempt in ATTEMPTS} <= numbers
