"""The relay matrix in words, and how it changes."""

from typing import Any

import pytest

from posthouse.policy.matrix import Matrix, matrix_changes, relay_matrix
from posthouse.policy.rules import Rules, compile_rules, with_relay

BASE: dict[str, Any] = {
    "local_domains": ["example.org"],
    "relay_domains": ["dept.example.org"],
    "trusted_networks": ["10.0.0.0/8"],
}


def rules(**changes: Any) -> Rules:
    return compile_rules(**{**BASE, **changes})


def said(matrix: Matrix) -> set[tuple[str, str, bool, str]]:
    return {(row.who, row.where, row.granted, row.slug) for row in matrix.rows}


def test_the_matrix_says_who_may_send_where() -> None:
    matrix = relay_matrix(
        rules(
            relay_domains=["dept.example.org", ".sub.example.org"],
            trusted_networks=["10.0.0.0/8", "10.1.0.0/16", "2001:db8:7::/48"],
            gateways_as_strangers=["10.0.0.1"],
            aliases=[("root", ["me@far.example"])],
        )
    )
    assert said(matrix) == {
        ("anyone", "example.org", True, "local-delivery"),
        ("anyone", "dept.example.org", True, "relay-domain"),
        ("anyone", "all below sub.example.org", True, "relay-domain"),
        ("anyone", "<postmaster>", True, "local-delivery"),
        ("mail for root", "me@far.example", True, "forwarding"),
        ("strangers", "routes in a local part (a%b@...)", False, "routing-trick"),
        ("strangers", "anywhere else", False, "relay-denied"),
        ("clients of unknown address", "anywhere else", False, "client-address-unknown"),
        ("10.0.0.1 (named a stranger)", "anywhere else", False, "relay-denied"),
        ("10.0.0.0/8", "anywhere else", True, "trusted-network"),
        ("10.1.0.0/16", "anywhere else", True, "trusted-network"),
        ("2001:db8:7::/48", "anywhere else", True, "trusted-network"),
        ("logged-in users", "anywhere else", True, "authenticated-user"),
        ("users of this machine", "anywhere else", True, "local-user"),
        ("submission without a login", "anywhere", False, "login-required"),
    }


def test_the_matrix_shows_a_list_of_recipients_and_the_relay_option() -> None:
    listed = relay_matrix(rules(recipients=["user@example.org"]))
    assert ("anyone", "example.org (listed recipients)", True, "local-delivery") in said(listed)
    assert ("anyone", "other recipients of these", False, "no-such-recipient") in said(listed)
    off = said(relay_matrix(with_relay(rules(), False)))
    assert ("anyone", "dept.example.org", False, "relay-off") in off
    assert ("10.0.0.0/8", "anywhere else", False, "relay-off") in off
    assert ("anyone", "example.org", True, "local-delivery") in off


def test_the_lines_are_aligned_and_a_long_run_is_cut() -> None:
    lines = relay_matrix(rules(relay_domains=[f"d{n}.example.org" for n in range(100)])).lines(most=5)
    assert len([line for line in lines if ".example.org" in line]) == 5
    assert [line for line in lines if "and 95 more" in line]
    answers = {line.rindex("  ") for line in lines if line.startswith("anyone")}
    assert len(answers) == 1
    assert all(line.isascii() for line in lines)


def test_the_matrix_of_no_rules_at_all_is_closed() -> None:
    assert not [row for row in relay_matrix(compile_rules()).rows if row.granted and row.who == "strangers"]
    assert relay_matrix(compile_rules()).lines()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"trusted_networks": []}, ["10.0.0.0/8 may no longer relay anywhere"]),
        ({"trusted_networks": ["10.0.0.0/8", "10.1.0.0/16"]}, []),
        ({"trusted_networks": ["10.0.0.0/9", "10.128.0.0/9"]}, []),
        ({"trusted_networks": ["10.0.0.0/8", "192.0.2.7"]}, ["192.0.2.7 may now relay anywhere"]),
        (
            {"trusted_networks": ["10.0.0.0/7"]},
            ["10.0.0.0/7 may now relay anywhere (10.0.0.0/8 could before)"],
        ),
        (
            {"trusted_networks": ["10.1.0.0/16", "::1"]},
            ["::1 may now relay anywhere", "10.0.0.0/8 may no longer relay anywhere (10.1.0.0/16 still may)"],
        ),
        (
            {"relay_domains": [".dept.example.org"]},
            [
                "anyone may now send to all below dept.example.org (relay domain)",
                "strangers may no longer send to dept.example.org",
            ],
        ),
        (
            {"local_domains": ["example.org", "dept.example.org"], "relay_domains": []},
            ["mail for dept.example.org is now delivered here"],
        ),
        (
            {"gateways_as_strangers": ["10.0.0.1"]},
            ["10.0.0.1 may no longer relay anywhere (named in gateways_as_strangers)"],
        ),
        ({"gateways_as_strangers": ["192.0.2.1"]}, []),
        ({"aliases": [("root", ["me@far.example"])]}, ["mail for root is now forwarded to me@far.example"]),
        ({"aliases": [("root", ["me@example.org"])]}, []),
        (
            {"own_name": "vm.example", "aliases": [("boss", ["root@vm.example"]), ("root", ["me@far.example"])]},
            ["mail for boss is now forwarded to me@far.example", "mail for root is now forwarded to me@far.example"],
        ),
        ({"postmaster": "me@example.org"}, ["mail for <postmaster> now goes to me@example.org"]),
        (
            {"recipients": ["a@example.org"]},
            ["the only valid recipients of our domains are now those of a list (1 recipient)"],
        ),
        ({"recipients_stranger": 50}, ["strangers may now name 50 recipients at once instead of 100"]),
        (
            {"recipients_trusted": 50},
            ["clients that may relay may now name 50 recipients at once instead of 1000"],
        ),
        ({"relay_enabled": False}, ["relaying is now off: only delivery to local domains is left"]),
    ],
    ids=str,
)
def test_a_change_is_told_in_words(changes: dict[str, Any], words: list[str]) -> None:
    assert matrix_changes(rules(), rules(**changes)) == words


def test_a_change_back_is_told_too() -> None:
    assert matrix_changes(rules(gateways_as_strangers=["10.0.0.1"]), rules()) == [
        "10.0.0.1 may now relay anywhere (no longer named in gateways_as_strangers)"
    ]
    assert matrix_changes(rules(aliases=[("root", ["me@far.example"])]), rules()) == [
        "mail for root is no longer forwarded to me@far.example"
    ]
    assert matrix_changes(rules(recipients=["a@example.org"]), rules()) == [
        "every recipient of our domains is now taken as valid: the list of recipients is gone"
    ]
    assert matrix_changes(rules(relay_enabled=False), rules()) == ["relaying is now on"]


def test_changes_of_the_list_of_recipients_are_counted_and_named() -> None:
    old = rules(recipients=[f"u{n}@example.org" for n in range(10)] + ["gone@example.org"])
    new = rules(recipients=[f"u{n}@example.org" for n in range(20)])
    assert matrix_changes(old, new) == [
        "10 recipients may now be written to: u10@example.org, u11@example.org, u12@example.org, u13@example.org, "
        "u14@example.org and 5 more",
        "1 recipient may no longer be written to: gone@example.org",
    ]
