"""Domains by pattern."""

import pytest

from posthouse.policy.domains import DomainTable, PatternError, normalise_pattern

TABLE = DomainTable(
    {
        "example.org": "exact",
        ".example.org": "below",
        ".dept.example.org": "deeper",
        "[192.0.2.1]": "literal",
        "xn--bcher-kva.example": "a-label",
    }
)


@pytest.mark.parametrize(
    ("domain", "found"),
    [
        ("example.org", "exact"),
        ("a.example.org", "below"),
        ("b.a.example.org", "below"),
        ("dept.example.org", "below"),
        ("a.dept.example.org", "deeper"),
        ("notexample.org", None),
        ("example.org.evil.example", None),
        ("org", None),
        ("", None),
        ("[192.0.2.1]", "literal"),
        ("[192.0.2.2]", None),
        ("xn--bcher-kva.example", "a-label"),
    ],
)
def test_the_nearest_pattern_wins(domain: str, found: str | None) -> None:
    assert TABLE.lookup(domain) == found


def test_star_is_the_rest_but_not_mail_without_a_domain() -> None:
    table = DomainTable({"*": "rest", ".example.org": "below"})
    assert table.lookup("anything.example") == "rest"
    assert table.lookup("[192.0.2.1]") == "rest"
    assert table.lookup("example.org") == "rest"
    assert table.lookup("a.example.org") == "below"
    assert table.lookup("") is None


def test_a_table_of_routes_may_hold_mail_without_a_domain() -> None:
    assert DomainTable({"": "box", "*": "rest"}).lookup("") == "box"


def test_a_suffix_does_not_match_inside_an_address_literal() -> None:
    assert DomainTable({".2": "x"}).lookup("[192.0.2.2]") is None


@pytest.mark.parametrize(
    ("written", "held"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        (" .Example.org ", ".example.org"),
        ("[IPv6:2001:DB8:0::1]", "[IPv6:2001:db8::1]"),
        ("*", "*"),
    ],
)
def test_patterns_are_held_in_one_form(written: str, held: str) -> None:
    assert normalise_pattern(written) == held


@pytest.mark.parametrize(
    "written",
    ["", ".", "..", "*.example.org", "a..b", "-a.org", "a-.org", "user@example.org", "bücher.example", "a b", "[x]"],
)
def test_what_can_match_no_domain_is_an_error_that_says_what_to_write(written: str) -> None:
    with pytest.raises(PatternError, match=r"write (example\.org|\[192)"):
        normalise_pattern(written)
