"""What users call a host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.tester.places import Place, PlaceFault, parse_place


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("mx.example.org", "mx.example.org", 0),
        ("MX.Example.ORG.:587", "mx.example.org", 587),
        ("localhost", "localhost", 0),
        ("192.0.2.1", "192.0.2.1", 0),
        ("192.0.2.1:25", "192.0.2.1", 25),
        ("[192.0.2.1]:25", "192.0.2.1", 25),
        ("::1", "::1", 0),
        ("[2001:DB8::1]:465", "2001:db8::1", 465),
        ("2001:db8::25", "2001:db8::25", 0),
        ("[IPv6:2001:db8::1]", "2001:db8::1", 0),
        ("bücher.example", "xn--bcher-kva.example", 0),
    ],
)
def test_hosts_are_understood_as_people_write_them(text, host, port):
    assert parse_place(text) == Place(host, port)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("192.0.2.0/24", "is a network"),
        ("10.0.0.1/8", "is a network"),
        ("2001:db8::/32", "is a network"),
        ("mx.example.org:99999", "65535"),
        ("http://mx.example.org/", "is no host"),
        ("postmaster@example.org", "is no host"),
        ("192.0.2.300", "is no host"),
        ("a b", "is no host"),
        ("", "is no host"),
        ("x" * 400, "is no host"),
        ("mx.example.org\x1b[2J", "is no host"),
        ("*", "is no host"),
    ],
)
def test_what_is_no_host_is_said_in_words(text, words):
    with pytest.raises(PlaceFault, match=words):
        parse_place(text)


@given(st.text(max_size=60))
def test_any_text_is_a_place_or_a_fault(text):
    try:
        place = parse_place(text)
    except PlaceFault as fault:
        words = str(fault)
    else:
        words = str(place)
        assert parse_place(words) == place
    assert words.isprintable()
