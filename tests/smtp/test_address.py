"""The forms of addresses: what is read, what is refused, and what is kept of it."""

import pytest

from posthouse.smtp.address import (
    NULL_PATH,
    POSTMASTER,
    AddressError,
    Path,
    parse_domain,
    parse_forward_path,
    parse_mailbox,
    parse_path,
    parse_reverse_path,
)

READ = {
    b"user@example.org": Path(b"user", "example.org"),
    b"User@EXAMPLE.Org": Path(b"User", "example.org"),
    b"a+b/c=d!e%f@example.org": Path(b"a+b/c=d!e%f", "example.org"),
    b'"a%b"@example.org': Path(b"a%b", "example.org"),
    b'"a b"@example.org': Path(b"a b", "example.org"),
    b'"a@b"@example.org': Path(b"a@b", "example.org"),
    b'"a\\"b\\\\c"@example.org': Path(b'a"b\\c', "example.org"),
    b'"\\a\\b"@example.org': Path(b"ab", "example.org"),
    b'"a>b"@example.org': Path(b"a>b", "example.org"),
    b"@x.example:a@b.example": Path(b"a", "b.example"),
    b"@x.example,@[127.0.0.1]:a@b.example": Path(b"a", "b.example"),
    b"a!b@example.org": Path(b"a!b", "example.org"),
    b"a%b@example.org": Path(b"a%b", "example.org"),
    b"a@localhost": Path(b"a", "localhost"),
    b"a@[127.0.0.1]": Path(b"a", "[127.0.0.1]"),
    b"a@[IPv6:2001:DB8:0::1]": Path(b"a", "[IPv6:2001:db8::1]"),
    b"a@[ipv6:::1]": Path(b"a", "[IPv6:::1]"),
    b"a@under_score.example": Path(b"a", "under_score.example"),
    b"a@1and1.example": Path(b"a", "1and1.example"),
    b"a@example.x1": Path(b"a", "example.x1"),
    b"a@xn--bcher-kva.example": Path(b"a", "xn--bcher-kva.example"),
}
REFUSED = [
    b"", b"@", b"a", b"a!b", b"a@", b"@b", b"a@b@", b"a@b@c", b"a@@b", b"@x:", b"@x", b"@x:a", b"@x:@y:a@b", b"@:a@b", b"@x,:a@b",
    b'""@b', b'"a@b', b'a"b@c', b'"a"b@c', b"a@b.", b"a@.b", b"a@b..c", b"a.@b", b".a@b", b"a..b@c", b"a b@c", b"a@b c", b"a@-b", b"a@b-",
    b"a@127.0.0.1", b"a@b.1", b"a@[127.0.0.1", b"a@[127.0.0]", b"a@[127.0.0.01]", b"a@[127.0.0.256]", b"a@[::1]", b"a@[IPv6:x]",
    b"a@[IPv6:fe80::1%eth0]", b"a@[x25:1]", b"a@[]", b"a@]", b"<a@b>", b"a,b@c", b"a:b@c", b"a;b@c", b"a\\b@c", b"(a)@b", b"a@(b)",
    b"a\x00@b", b"a@b\x00", b"a\r\n@b", b"a@b\n", b'"a\x00"@b', b'"a\\\n"@b', b"a\x7f@b",
    b"x" * 65 + b"@b", b"a@" + b"x" * 64, b"a@" + b"x." * 126 + b"xx",
]  # fmt: skip


@pytest.mark.parametrize(("text", "path"), READ.items())
def test_these_are_paths(text: bytes, path: Path) -> None:
    assert parse_path(text) == path
    assert parse_mailbox(path.encode()) == path


@pytest.mark.parametrize("text", REFUSED)
def test_these_are_no_paths(text: bytes) -> None:
    with pytest.raises(AddressError) as refused:
        parse_path(text)
    assert refused.value.enhanced == "5.1.3"
    assert refused.value.words


def test_a_source_route_is_no_part_of_a_configured_mailbox() -> None:
    with pytest.raises(AddressError):
        parse_mailbox(b"@x:a@b")


def test_the_null_path_is_for_mail_and_postmaster_for_rcpt() -> None:
    assert parse_reverse_path(b"") is NULL_PATH
    assert parse_forward_path(b"POSTmaster") is POSTMASTER
    with pytest.raises(AddressError):
        parse_forward_path(b"")
    with pytest.raises(AddressError) as refused:
        parse_reverse_path(b"postmaster")
    assert refused.value.enhanced == "5.1.7"


def test_utf8_needs_the_extension() -> None:
    for text in ("ü@b.example", "a@bücher.example"):
        with pytest.raises(AddressError) as refused:
            parse_path(text.encode())
        assert refused.value.enhanced == "5.6.7"
    assert parse_path("ü@Bücher.example".encode(), smtputf8=True) == Path("ü".encode(), "xn--bcher-kva.example")
    assert parse_path("a@bücher。example".encode(), smtputf8=True) == Path(b"a", "xn--bcher-kva.example")


@pytest.mark.parametrize(
    "text", ["a@①②⑦.0.0.1", "a@\u00ad", "a@xn--ü", "a@" + "ü" * 80, "a@ü@b", "a@\u200b.example", "a@[ü]"]
)
def test_u_labels_are_no_way_around_the_grammar(text: str) -> None:
    with pytest.raises(AddressError):
        parse_path(text.encode(), smtputf8=True)


def test_octets_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(AddressError):
        parse_path(b"a\xff@b", smtputf8=True)


def test_limits_are_met_exactly() -> None:
    assert parse_path(b"x" * 64 + b"@b")
    domain = b"a" * 63 + b"." + b"b" * 63 + b"." + b"c" * 60
    assert len(b"x" * 64 + b"@" + domain) == 253
    assert parse_path(b"x" * 64 + b"@" + domain)
    assert parse_path(b"x" * 64 + b"@" + domain + b"c")
    with pytest.raises(AddressError):
        parse_path(b"x" * 64 + b"@" + domain + b"cc")


def test_paths_print_as_people_read_them() -> None:
    assert str(NULL_PATH) == "<>"
    assert NULL_PATH.encode() == b""
    assert str(Path(b"a b", "c")) == '"a b"@c'
    assert Path(b'a"\\', "c").encode() == b'"a\\"\\\\"@c'
    assert str(Path("ü".encode(), "c")) == "ü@c"
    assert str(Path(b"\xff", "c")) == "\\xff@c"
    assert not Path("ü".encode(), "c").is_ascii


def test_a_path_with_a_line_end_in_it_is_never_printed() -> None:
    with pytest.raises(AddressError):
        Path(b"a\r\nRCPT TO:<b>", "c").encode()


def test_domains_stand_in_one_form() -> None:
    assert parse_domain(b"EXAMPLE.org") == "example.org"
    assert parse_domain("BÜCHER.example".encode()) == "xn--bcher-kva.example"
    assert parse_domain(b"[IPV6:0:0:0:0:0:0:0:1]") == "[IPv6:::1]"
