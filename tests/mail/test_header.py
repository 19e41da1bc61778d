"""Reading the header from octets (RFC 5322 2.2)."""

import itertools
from email import message_from_bytes
from email.policy import compat32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.mail.header import (
    HEADER_LIMIT,
    Field,
    count_received,
    field,
    fields,
    header_of,
    header_of_pieces,
    was_delivered_to,
)

HEADER = (
    b"Received: from a by b; now\r\n"
    b"received: from c\r\n\tby d; then\r\n"
    b"X-Note: Received: not one\r\n"
    b"Subject: folded\r\n over\r\n\ttwo lines\r\n"
    b"To: J\xc3\xb6rg <joerg@example.org>\r\n"
)


@pytest.mark.parametrize(
    ("octets", "header"),
    [
        (HEADER + b"\r\nbody\r\n\r\nmore\r\n", HEADER),
        (b"\r\nbody\r\n", b""),
        (b"", b""),
        (b"A: b\r\n", b"A: b\r\n"),
        (b"A: b\r\nB: unfinis", b"A: b\r\n"),
        (b"unfinis", b""),
        (b"A: b\r\n\r\n", b"A: b\r\n"),
    ],
)
def test_header_ends_before_the_first_empty_line(octets: bytes, header: bytes) -> None:
    assert header_of(octets) == header


def test_header_beyond_the_limit_is_cut_at_a_whole_line() -> None:
    line = b"X: " + b"y" * 95 + b"\r\n"
    header = header_of(line * (HEADER_LIMIT // 100 + 50) + b"\r\n")
    assert HEADER_LIMIT - 100 <= len(header) <= HEADER_LIMIT
    assert header.endswith(b"\r\n")


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_any_cut_into_pieces_gives_the_same_header(octets: bytes, cuts: list[int]) -> None:
    octets = octets.replace(b"\x00", b"\r\n").replace(b"\x01", b"\r\n\r\n")
    edges = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    pieces = [octets[start:end] for start, end in itertools.pairwise(edges)]
    assert header_of_pieces(pieces) == header_of(octets)


def test_received_fields_are_counted_and_look_alikes_are_not() -> None:
    assert count_received(HEADER) == 2
    assert count_received(b"Received : obsolete\r\nRECEIVED\t: too\r\nReceived-SPF: pass\r\n") == 2
    assert count_received(b"X: a\r\n Received: folded line, no field\r\n") == 0
    assert count_received(b"") == 0


def test_a_field_is_found_by_name_and_unfolded() -> None:
    assert field(HEADER, b"subject") == b"folded over\ttwo lines"
    assert field(HEADER, b"TO") == b"J\xc3\xb6rg <joerg@example.org>"
    assert field(HEADER, b"note") is None
    assert field(HEADER, b"Cc") is None


def test_lines_that_are_no_field_are_passed_over() -> None:
    assert list(fields(b"no colon\r\n: no name\r\n folded into nothing: x\r\nA: 1\r\nB :2\r\n")) == [
        Field(b"A", b"1"),
        Field(b"B", b"2"),
    ]


def test_a_message_that_was_delivered_here_before_is_known_by_its_delivered_to() -> None:
    header = b"Delivered-To: Ann@Example.org\r\nDelivered-To: <bob@example.org>\r\nTo: cid@example.org\r\n"
    assert was_delivered_to(header, b"ann@example.org")
    assert was_delivered_to(header, b"bob@example.org")
    assert not was_delivered_to(header, b"cid@example.org")
    assert not was_delivered_to(b"", b"ann@example.org")


@given(st.binary(max_size=400))
def test_arbitrary_octets_never_break_the_reader(octets: bytes) -> None:
    header = header_of(octets)
    assert octets.startswith(header)
    found = list(fields(header))
    assert all(b"\r\n" not in each.value for each in found)
    assert 0 <= count_received(header) <= header.count(b"\n") + 1
    for each in found:
        assert field(header, each.name) is not None


_names = st.text("abcXYZ-", min_size=1, max_size=8).map(str.encode)
_values = st.lists(st.text("ab :;\xe9", max_size=9).map(str.encode).filter(bytes.strip), min_size=1, max_size=3)


@given(st.lists(st.tuples(_names, _values), max_size=6))
def test_fields_agree_with_another_parser(written: list[tuple[bytes, list[bytes]]]) -> None:
    header = b"".join(name + b": " + b"\r\n ".join(lines) + b"\r\n" for name, lines in written)
    theirs = message_from_bytes(header + b"\r\n", policy=compat32)
    assert [each.name.decode() for each in fields(header)] == theirs.keys()
