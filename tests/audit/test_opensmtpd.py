"""OpenSMTPD's match rules, asked about strangers."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from posthouse.audit import AuditError, CannotTell, Closed, Kind, Open, audit
from posthouse.policy.gateways import Gateway

HEAD = """\
listen on 192.0.2.25
action "local" maildir
action "relay" relay
action "smart" relay host "smtp+tls://smart.example.net"
"""


def audited(
    tmp_path: Path, rules: str, head: str = HEAD, gateways: tuple[Gateway, ...] = ()
) -> Closed | Open | CannotTell:
    (tmp_path / "smtpd.conf").write_text(head + rules)
    return audit(Kind.OPENSMTPD, tmp_path, gateways)


CLOSED = {
    "the file that is installed": 'match for local action "local"\nmatch from local for any action "relay"\n',
    "a match that does not say where from is for this host": 'match for any action "relay"\n',
    "a relay domain": 'match from any for domain "dept.example.org" action "relay"\n',
    "the subdomains of a domain": 'match from any for domain "*.example.org" action "relay"\n',
    "those who logged in": 'match auth from any for any action "relay"\n',
    "those in a table who logged in": 'table users { "a" = "x" }\nmatch from auth <users> for any action "relay"\n',
    "one network": 'match from src 192.0.2.0/24 for any action "relay"\n',
    "networks in a list that spans lines": (
        'table ours { 192.0.2.0/24, \\\n  2001:db8::/32,\n 10.0.0.0/8 }\nmatch from src <ours> for any action "relay"\n'
    ),
    "a reject that comes first": 'match from any for any reject\nmatch from any for any action "relay"\n',
    "everything is delivered here": 'match from any for any action "local"\n',
    "a macro": 'net = "192.0.2.0/24"\nmatch from src $net for any action "relay"\n',
    "tls is not known of an envelope, so smtpd defers": 'match from any tls for any action "relay"\n',
    "the local socket": 'match from socket for any action "relay"\n',
    "a tag that no listener has": 'match tag INSIDE from any for any action "relay"\n',
    "one mailbox elsewhere": 'match from any for rcpt-to "list@example.net" action "relay"\n',
    "an expression with both anchors": 'match from any for domain regex "^(.*\\.)?example\\.org$" action "relay"\n',
    "no rule at all": "",
}
OPEN = {
    "anyone": ('match from any for any action "relay"\n', 5),
    "any client, in another order": ('match for any from any action "smart"\n', 5),
    "half the addresses": ("match from src 0.0.0.0/1 for any action relay\n", 5),
    "many networks together": (
        "".join(f'match from src {n}.0.0.0/8 for any action "relay"\n' for n in range(20, 60)),
        5,
    ),
    "all of IPv6": ('match from src "::/0" for any action "relay"\n', 5),
    "a star": ('match from any for domain { "example.org", "*" } action "relay"\n', 5),
    "a top-level domain": ('match from any for domain "*.com" action "relay"\n', 5),
    "an ending without its dot": ('match from any for domain "*example.org" action "relay"\n', 5),
    "an expression without its end": ('match from any for domain regex "example\\.org" action "relay"\n', 5),
    "a name in HELO": ('match helo "mx.example.org" from any for any action "relay"\n', 5),
    "a reverse-path": ('match from mail-from "@example.org" for any action "relay"\n', 5),
    "the null reverse-path by negation": ('match !mail-from "@example.org" from any for any action "relay"\n', 5),
    "a name in the client's own reverse zone": ('match from rdns "*.example.org" for any action "relay"\n', 5),
    "a local part at any domain": ('match from any for rcpt-to "postmaster@" action "relay"\n', 5),
    "no login needed": ('match !auth from any for any action "relay"\n', 5),
    "a reject that names others": (
        'match from src 198.51.100.0/24 for any reject\nmatch from any for any action "relay"\n',
        6,
    ),
}


@pytest.mark.parametrize("rules", CLOSED.values(), ids=CLOSED)
def test_these_rules_are_closed(tmp_path: Path, rules: str) -> None:
    assert isinstance(audited(tmp_path, rules), Closed)


@pytest.mark.parametrize(("rules", "line"), OPEN.values(), ids=OPEN)
def test_these_rules_are_open_and_the_line_is_named(tmp_path: Path, rules: str, line: int) -> None:
    finding = audited(tmp_path, rules)
    assert isinstance(finding, Open), finding
    assert (Path(finding.counterexample.file).name, finding.counterexample.line) == ("smtpd.conf", line)


def test_a_listener_whose_tag_is_trusted_is_named(tmp_path: Path) -> None:
    head = HEAD.replace("listen on 192.0.2.25", "listen on 192.0.2.25 port 2525 tag INSIDE")
    finding = audited(tmp_path, 'match tag INSIDE from any for any action "relay"\n', head)
    assert isinstance(finding, Open)
    assert finding.counterexample.listener == "INSIDE"
    assert "INSIDE" in finding.counterexample.client


def test_tables_and_includes_are_read(tmp_path: Path) -> None:
    (tmp_path / "relays").write_text("# ours\ndept.example.org\n*\n")
    (tmp_path / "more.conf").write_text('match from any for domain <relays> action "relay"\n')
    finding = audited(tmp_path, f'table relays file:{tmp_path}/relays\ninclude "{tmp_path}/more.conf"\n')
    assert isinstance(finding, Open)
    assert Path(finding.counterexample.file).name == "more.conf"


@pytest.mark.parametrize(
    ("rules", "line", "words"),
    [
        ('table t sqlite:/etc/mail/t.conf\nmatch from src <t> for any action "relay"\n', 6, "sqlite"),
        ('table t file:/nonexistent/table\nmatch from any for domain <t> action "relay"\n', 6, "/nonexistent/table"),
        ('match from any for domain regex "[[:alpha:]]+\\.example" action "relay"\n', 5, "regular expression"),
        ('match from any for any action "nowhere"\n', 5, "nowhere"),
        ("accept from any for any relay\n", 5, "6.4"),
        ('match from src <missing> for any action "relay"\n', 5, "missing"),
        ('match from any for any frob action "relay"\n', 5, "frob"),
        ('include "/nonexistent/more.conf"\n', 0, "can't be read"),
        ('match from any for any action "relay\n', 5, "quote"),
        ('match from src $nets for any action "relay"\n', 5, "$nets"),
    ],
)
def test_what_cannot_be_judged_is_named_by_its_line(tmp_path: Path, rules: str, line: int, words: str) -> None:
    finding = audited(tmp_path, rules)
    assert isinstance(finding, CannotTell), finding
    assert finding.line == line
    assert words in finding.words


def test_a_table_that_only_rejects_by_name_opens_nothing_and_hides_nothing(tmp_path: Path) -> None:
    rules = 'table bad sqlite:/x\nmatch from src <bad> for any reject\nmatch from local for any action "relay"\n'
    assert isinstance(audited(tmp_path, rules), Closed)


def test_an_opening_below_a_table_that_may_reject_all_is_not_guessed(tmp_path: Path) -> None:
    rules = 'table bad sqlite:/x\nmatch from src <bad> for any reject\nmatch from any for any action "relay"\n'
    assert isinstance(audited(tmp_path, rules), CannotTell)


def test_a_listener_that_believes_proxy_headers_is_not_called_closed(tmp_path: Path) -> None:
    head = HEAD.replace("192.0.2.25", "192.0.2.25 proxy-v2")
    finding = audited(tmp_path, 'match from local for any action "relay"\n', head)
    assert isinstance(finding, CannotTell)
    assert (finding.line, "PROXY" in finding.words) == (1, True)


def test_a_gateway_inside_a_trusted_network_is_named(tmp_path: Path) -> None:
    gateway = Gateway(ip_address("172.17.0.1"), "the bridge docker0 of this machine")
    finding = audited(tmp_path, 'match from src 172.17.0.0/16 for any action "relay"\n', gateways=(gateway,))
    assert isinstance(finding, Closed)
    assert "docker0" in finding.doubts[0]


def test_a_directory_without_the_file_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"smtpd\.conf"):
        audit(Kind.OPENSMTPD, tmp_path)


def test_configuration_of_another_server_is_not_called_closed(tmp_path: Path) -> None:
    file = tmp_path / "main.cf"
    file.write_text("myhostname=mx.example.org\nmynetworks=0.0.0.0/0\n")
    found = audit(Kind.OPENSMTPD, file, ())
    assert isinstance(found, CannotTell)
    assert "can hardly be what" in found.words
