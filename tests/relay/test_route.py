import pytest

from posthouse.relay.route import Hop, HopKind, Route, RouteError, RouteTable, parse_hop
from posthouse.smtp.address import NULL_PATH, Path


@pytest.mark.parametrize(
    ("url", "hop"),
    [
        ("mx:", Hop(HopKind.MX, "", 25)),
        ("mx:mail.example.net:2525", Hop(HopKind.MX, "mail.example.net", 2525)),
        ("smtp://10.0.0.5:25", Hop(HopKind.SMTP, "10.0.0.5", 25)),
        ("smtp://smart.example.net", Hop(HopKind.SMTP, "smart.example.net", 25)),
        ("smtp://[2001:db8::1]:587", Hop(HopKind.SMTP, "2001:db8::1", 587)),
        ("smtps://smart.example.net", Hop(HopKind.SMTPS, "smart.example.net", 465)),
        ("lmtp:///run/dovecot/lmtp", Hop(HopKind.LMTP, path="/run/dovecot/lmtp")),
        ("lmtp://127.0.0.1:24", Hop(HopKind.LMTP, "127.0.0.1", 24)),
        ("maildir:/var/mail/{local_part}", Hop(HopKind.MAILDIR, path="/var/mail/{local_part}")),
        ("pipe:", Hop(HopKind.PIPE)),
    ],
)
def test_each_scheme_is_understood(url: str, hop: Hop) -> None:
    assert parse_hop(url) == hop


@pytest.mark.parametrize(
    "hop", [Hop(HopKind.SMTP, "2001:db8::1", 587), Hop(HopKind.MX, "a.example", 26), Hop(HopKind.LMTP, path="/run/x")]
)
def test_a_hop_prints_as_it_is_read(hop: Hop) -> None:
    assert parse_hop(str(hop)) == hop


@pytest.mark.parametrize(
    "url",
    ["", "smtp:", "smtp:mx.example", "smtp://", "smtp://a:b", "http://a", "pipe:/bin/x", "maildir:", "smtp://a/b"],
)
def test_what_is_no_next_hop_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(RouteError, match=r"."):
        parse_hop(url)


def test_the_most_particular_pattern_wins() -> None:
    mx = (parse_hop("mx:"),)
    exact, below, rest = (Route((pattern,), mx) for pattern in ("example.org", ".example.org", "*"))
    table = RouteTable((rest, below, exact))
    assert table.find("example.org") is exact
    assert table.find("a.example.org") is below
    assert table.find("b.a.example.org") is below
    assert table.find("example.net") is rest
    assert RouteTable((exact,)).find("example.net") is None


def test_a_rerouted_destination_is_its_own_route() -> None:
    route = RouteTable(()).find("smtp://127.0.0.1:2526")
    assert route is not None
    assert route.hops == (parse_hop("smtp://127.0.0.1:2526"),)


def test_reverse_path_rewriting_keeps_the_null_path() -> None:
    route = Route(("*",), (parse_hop("mx:"),), new_reverse_path="{local_part}@out.example")
    assert route.reverse_path(Path(b"anna", "inside.example")) == Path(b"anna", "out.example")
    assert route.reverse_path(NULL_PATH) == NULL_PATH
