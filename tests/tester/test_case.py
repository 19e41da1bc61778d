"""The table of cases: complete, unambiguous, and made into the lines that are said."""

import pytest

from posthouse.tester.case import CASES, Case, Names, Right, Way
from posthouse.tester.token import LONGEST_CASE, TOKEN_LENGTH

NAMES = Names(
    target_domain="example.org",
    target_name="mx.example.org",
    target_address="192.0.2.1",
    third_local="t" * TOKEN_LENGTH,
    third_domain="collector.test",
    tester_local="b" * TOKEN_LENGTH,
    tester_domain="collector.test",
    tester_name="tester.test",
)
NMAP = """\
<>|<{t}>
<postmaster@example.org>|<{t}>
<postmaster@mx.example.org>|<{t}>
<postmaster@[192.0.2.1]>|<{t}>
*|<{l}%collector.test@[192.0.2.1]>
*|<{l}%collector.test@mx.example.org>
*|<"{t}">
*|<"{l}%collector.test">
*|<{t}@[192.0.2.1]>
*|<"{t}"@[192.0.2.1]>
*|<{t}@mx.example.org>
*|<@[192.0.2.1]:{t}>
*|<@mx.example.org:{t}>
*|<collector.test!{l}>
*|<collector.test!{l}@[192.0.2.1]>
*|<collector.test!{l}@mx.example.org>
"""
"""The sixteen of nmap's smtp-open-relay and Metasploit's smtp_relay; "*": whatever the sender."""


def said() -> list[tuple[str, str]]:
    return [
        (one.mail_line(NAMES).decode()[10:], one.rcpt_line(NAMES).decode("utf-8")[8:])
        for one in CASES
        if one.way is Way.SEPARATE
    ]


def test_numbers_and_names_are_given_once_and_fit_into_a_token():
    assert len({case.number for case in CASES}) == len({case.name for case in CASES}) == len(CASES) >= 60
    assert all(0 < case.number <= LONGEST_CASE for case in CASES)
    assert [case.number for case in CASES] == sorted(case.number for case in CASES)


@pytest.mark.parametrize("line", NMAP.splitlines())
def test_every_case_of_nmap_and_metasploit_is_in_the_table(line):
    mail, rcpt = line.format(t=NAMES.third_party, l=NAMES.third_local).split("|")
    assert any(rcpt == theirs and mail in ("*", ours) for ours, theirs in said())


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_case_is_whole(case: Case):
    assert case.history
    for line in (case.mail_line(NAMES), case.rcpt_line(NAMES), NAMES.fill(case.hello).encode()):
        assert b"{" not in line
        assert not {*b"\r\n"} & {*line}
    if case.right is Right.REFUSED or not case.ends_at_rcpt:
        carrier = case.reverse_path if case.notice else case.forward_path
        assert "{third" in carrier, "without the token nothing that arrives would prove it"
    assert bool(case.ending) is (case.way is Way.SMUGGLED)


def test_every_way_has_a_case():
    assert {case.way for case in CASES} == set(Way)
