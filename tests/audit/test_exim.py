"""Exim's ACLs and routers, read for strangers; no Exim is asked here."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from peer_programs import environment, require_peer
from posthouse.audit import CannotTell, Closed, Kind, Open, audit, exim
from posthouse.audit.exim import play
from posthouse.audit.exim.session import Session
from posthouse.policy.gateways import Gateway

MAIN = """\
primary_hostname = mx.example.org
domainlist local_domains = @ : example.org
domainlist relay_to_domains = dept.example.net
hostlist relay_from_hosts = 127.0.0.1 : ::::1 : 192.0.2.0/24
acl_smtp_rcpt = acl_check_rcpt
"""
ACL = """\
begin acl
acl_check_rcpt:
  accept hosts = :
  deny domains = +local_domains
       local_parts = ^[.] : ^.*[@%!/|=]
  accept hosts = +relay_from_hosts
  accept authenticated = *
FIRST
  require message = relay not permitted
          domains = +local_domains : +relay_to_domains
  require verify = recipient
  accept
"""
ROUTERS = """\
begin routers
FIRST
dnslookup:
  driver = dnslookup
  domains = ! +local_domains
  transport = remote_smtp
  no_more
aliases:
  driver = redirect
  domains = +local_domains
  data = ${lookup{$local_part}lsearch{{here}/aliases}}
users:
  driver = accept
  domains = +local_domains
  transport = local_delivery
begin transports
remote_smtp:
  driver = smtp
local_delivery:
  driver = appendfile
  file = /var/mail/$local_part
"""


@pytest.fixture(autouse=True)
def no_exim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exim, "find_exim", lambda configuration: None)


def audited(
    tmp_path: Path,
    *,
    main: str = MAIN,
    more: str = "",
    acl: str = ACL,
    first: str = "",
    router: str = "",
    gateways: tuple[Gateway, ...] = (),
) -> Closed | Open | CannotTell:
    text = main + more + acl.replace("FIRST\n", first) + ROUTERS.replace("FIRST\n", router)
    (tmp_path / "aliases").write_text("postmaster: root\n")
    (tmp_path / "exim.conf").write_text(text.replace("{here}", str(tmp_path)))
    return audit(Kind.EXIM, tmp_path, gateways)


def without(text: str, *lines: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if not any(one in line for one in lines))


CLOSED = {
    "as installed": {},
    "a blocklist asked, on either answer": {"first": "  deny dnslists = dnsbl.example\n"},
    "a sender that must verify": {"first": "  require verify = sender\n"},
    "a warning": {"first": "  warn hosts = *\n       add_header = X-Seen: yes\n"},
    "an accept for the own domain only": {
        "first": "  accept domains = +local_domains\n         endpass\n         verify = recipient\n"
    },
    "no ACL for RCPT": {"main": without(MAIN, "acl_smtp_rcpt")},
    "TLS with a login": {"first": "  accept encrypted = *\n         authenticated = *\n"},
    "a macro": {"more": "NETS = 192.0.2.0/24\nhostlist friends = NETS\n", "first": "  accept hosts = +friends\n"},
    "a conditional that is not met": {"first": ".ifdef OPEN_TO_ALL\n  accept hosts = *\n.endif\n"},
    "a host by its confirmed name": {"first": "  accept hosts = mail.partner.example : *.partner.example\n"},
    "an ACL of its own that says no": {
        "acl": ACL + "acl_friends:\n  accept hosts = 192.0.2.7\n  deny\n",
        "first": "  accept acl = acl_friends\n",
    },
    "third parties are kept here": {
        "first": "  accept\n",
        "router": "all:\n  driver = accept\n  transport = local_delivery\n",
    },
    "a file of hosts": {"first": "  accept hosts = net-iplsearch;{here}/hosts\n"},
    "what is refused when the mail is there": {
        "more": "acl_smtp_data = acl_data\n",
        "acl": ACL + "acl_data:\n  deny\n",
        "first": "  accept\n",
    },
    "the percent hack of the main section, which the ACL sees": {
        "more": "percent_hack_domains = *\n",
        "acl": without(ACL, "local_parts"),
    },
    "what is thrown away": {"first": "  discard hosts = !192.0.2.0/24\n  accept\n"},
    "what is thrown away by the sender": {
        "more": "acl_smtp_mail = acl_mail\n",
        "acl": ACL + "acl_mail:\n  discard\n",
        "first": "  accept\n",
    },
    "what is thrown away when the mail is there": {
        "more": "acl_smtp_data = acl_data\n",
        "acl": ACL + "acl_data:\n  discard message = thank you\n",
        "first": "  accept\n",
    },
    "what is thrown away by an ACL of its own, whatever is asked after it": {
        "acl": ACL + "acl_throw:\n  discard\n",
        "first": "  accept acl = acl_throw\n         hosts = !*\n  accept\n",
    },
    "an ACL of its own that throws away where only accept may": {
        "acl": ACL + "acl_throw:\n  discard\n",
        "first": "  deny acl = acl_throw\n  accept\n",
    },
    "everything is local": {"main": MAIN.replace("@ : example.org", "*"), "first": "  accept\n"},
    "everything is local, by an expression": {
        "main": MAIN.replace("@ : example.org", "^."),
        "first": "  accept\n",
    },
    "everything is local, but routed to a program on this host": {
        "main": MAIN.replace("@ : example.org", "*"),
        "router": "all:\n  driver = manualroute\n  route_list = * localhost\n  transport = local_delivery\n",
    },
    "a variable that a stranger does not get": {
        "first": "  warn set acl_m_x = ${if match_ip{$sender_host_address}{192.0.2.0/24}}\n  accept condition = $acl_m_x\n"
    },
}
OPEN = {
    "everyone": {"first": "  accept\n"},
    "all hosts": {"first": "  accept hosts = *\n"},
    "all but one network": {"first": "  accept hosts = !192.0.2.0/24\n"},
    "half the addresses": {"first": "  accept hosts = 0.0.0.0/1\n"},
    "an empty item": {"first": "  accept senders = :\n"},
    "a reverse-path": {"first": "  accept senders = *@example.org\n"},
    "a sender that verifies": {"first": "  accept verify = sender\n"},
    "TLS": {"first": "  accept encrypted = *\n"},
    "a name in HELO": {"first": "  accept condition = ${if eq{$sender_helo_name}{mx.example.org}}\n"},
    "a host on no blocklist": {"first": "  accept !dnslists = dnsbl.example\n"},
    "a rate": {"first": "  accept !ratelimit = 10 / 1h\n"},
    "a star": {"main": MAIN.replace("dept.example.net", "dept.example.net : *")},
    "a top-level domain": {"main": MAIN.replace("dept.example.net", "*.com")},
    "not the own domain": {"first": "  accept domains = !example.org\n"},
    "the percent hack": {
        "acl": without(ACL, "local_parts", "deny domains"),
        "router": "percent:\n  driver = redirect\n  domains = +local_domains\n  data = ${sg{$local_part}{%}{@}}\n",
    },
    "a forwarder": {
        "router": "to:\n  driver = redirect\n  local_part_prefix = to-\n  data = ${sg{$local_part}{#}{@}}\n"
    },
    "a smart host behind a bang": {
        "acl": without(ACL, "local_parts", "deny domains"),
        "router": "uucp:\n  driver = redirect\n  domains = +local_domains\n  data = ${sg{$local_part}{(.*)!(.*)}{\\$2@\\$1}}\n",
    },
    "everything is local, and routed without asking that": {
        "main": MAIN.replace("@ : example.org", "*"),
        "router": "all:\n  driver = manualroute\n  route_list = * 192.0.2.9\n  transport = remote_smtp\n",
    },
    "everything is local, and routed by another list": {
        "main": MAIN.replace("@ : example.org", "*"),
        "first": "  accept\n",
        "router": "all:\n  driver = dnslookup\n  domains = ! example.org\n  transport = remote_smtp\n",
    },
    "some are thrown away": {"first": "  discard senders = *@spam.example\n  accept\n"},
    "thrown away by an ACL of its own, if a stranger likes": {
        "acl": ACL + "acl_throw:\n  discard dnslists = dnsbl.example\n  accept\n",
        "first": "  accept acl = acl_throw\n",
    },
    "a list of hosts by name that takes those without": {"first": "  accept hosts = *.example\n"},
    "an ACL of its own that says yes": {
        "acl": ACL + "acl_friends:\n  accept\n",
        "first": "  accept acl = acl_friends\n",
    },
}


@pytest.mark.parametrize("change", CLOSED.values(), ids=CLOSED)
def test_these_are_closed(tmp_path: Path, change: dict[str, str]) -> None:
    (tmp_path / "hosts").write_text("192.0.2.0/24\n2001:db8::/48: partner\n")
    assert isinstance(audited(tmp_path, **change), Closed)


@pytest.mark.parametrize("change", OPEN.values(), ids=OPEN)
def test_these_are_open(tmp_path: Path, change: dict[str, str]) -> None:
    finding = audited(tmp_path, **change)
    assert isinstance(finding, Open), finding
    assert finding.counterexample.line > 0


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("  accept hosts = ${lookup mysql{select 1}}\n", "look-up"),
        ("  accept condition = ${run{/usr/local/bin/ask $sender_host_address}}\n", "run"),
        ("  accept hosts = cdb;/etc/hosts.cdb\n", "cdb"),
        ("  accept hosts = /nonexistent/hosts\n", "/nonexistent/hosts"),
        ("  accept verify = certificate\n", "certificate"),
        ("  accept domains = lsearch;/nonexistent/domains\n", "/nonexistent/domains"),
        ("  accept hosts = +nobody_defined\n", "nobody_defined"),
        ("  accept frobnicate = yes\n", "frobnicate"),
        ("  accept acl = acl_unknown\n", "acl_unknown"),
        ("  warn set acl_m_x = ${readsocket{/run/x}{y}}\n  accept condition = $acl_m_x\n", "acl_m_x"),
    ],
)
def test_what_cannot_be_judged_is_named_by_its_line(tmp_path: Path, first: str, words: str) -> None:
    finding = audited(tmp_path, first=first)
    assert isinstance(finding, CannotTell), finding
    assert words in finding.words
    assert finding.line > 0 or words == "acl_unknown"


def test_what_cannot_be_judged_above_an_opening_does_not_hide_it(tmp_path: Path) -> None:
    finding = audited(tmp_path, first="  accept hosts = ${lookup mysql{select 1}}\n  accept\n")
    assert isinstance(finding, Open), finding


def test_a_network_that_holds_a_gateway_is_named(tmp_path: Path) -> None:
    gateway = Gateway(ip_address("192.0.2.1"), "the default gateway of this machine (on eth0)")
    finding = audited(tmp_path, gateways=(gateway,))
    assert isinstance(finding, Closed)
    assert "192.0.2.1" in finding.doubts[0]


def test_domains_that_anyone_may_point_here_are_a_doubt(tmp_path: Path) -> None:
    finding = audited(tmp_path, main=MAIN.replace("dept.example.net", "@mx_any"))
    assert isinstance(finding, Closed)
    assert "MX" in finding.doubts[0]


def test_an_include_is_followed_and_its_line_named(tmp_path: Path) -> None:
    (tmp_path / "local").write_text("  accept hosts = *\n")
    finding = audited(tmp_path, first=".include {here}/local\n")
    assert isinstance(finding, Open)
    assert Path(finding.counterexample.file).name == "local"


# --- Exim itself -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def exim_here(monkeypatch: pytest.MonkeyPatch, no_exim: None) -> None:
    del no_exim
    require_peer("exim")
    variables = environment("exim")
    monkeypatch.setenv("PATH", variables["PATH"])
    monkeypatch.setenv("LD_LIBRARY_PATH", variables["LD_LIBRARY_PATH"])
    monkeypatch.setattr(exim, "find_exim", play.find_exim)


@pytest.mark.peer
@pytest.mark.usefixtures("exim_here")
@pytest.mark.parametrize(("answer", "expected"), [("yes", Open), ("no", CannotTell)])
def test_exim_is_asked_where_the_text_leaves_it_open(tmp_path: Path, answer: str, expected: type) -> None:
    condition = f"  accept condition = ${{run{{/bin/true}}{{{answer}}}{{{answer}}}}}\n"
    finding = audited(tmp_path, first=condition)
    assert isinstance(finding, expected), finding
    assert "asked by -bh" in finding.rests_on
    if isinstance(finding, Open):
        assert "says 250" in finding.counterexample.words


@pytest.mark.peer
@pytest.mark.usefixtures("exim_here")
@pytest.mark.parametrize("name", ["as installed", "a rate", "no ACL for RCPT", "all hosts", "some are thrown away"])
def test_exim_takes_what_is_called_open_and_refuses_what_is_called_closed(tmp_path: Path, name: str) -> None:
    finding = audited(tmp_path, **{**CLOSED, **OPEN}[name])
    program = play.find_exim(tmp_path / "exim.conf")
    assert program is not None
    if isinstance(finding, Open):
        example = finding.counterexample
        local_part, _, domain = example.forward_path.rpartition("@")
        session = Session(ip_address(example.client), example.hello, False, example.reverse_path, local_part, domain)
        assert program.say(session).code == 250
    else:
        session = Session(ip_address("203.0.113.9"), "stranger.example", False, "", "someone", "third-party.example")
        assert program.say(session).code == 550


@pytest.mark.peer
@pytest.mark.usefixtures("exim_here")
@pytest.mark.parametrize("name", [one for one in CLOSED if "thrown" in one or "throws" in one or "kept" in one])
def test_what_exim_accepts_and_does_not_send_on_is_closed(tmp_path: Path, name: str) -> None:
    change = CLOSED[name]
    assert isinstance(audited(tmp_path, **change), Closed)
    program = play.find_exim(tmp_path / "exim.conf")
    assert program is not None
    session = Session(ip_address("203.0.113.9"), "stranger.example", False, "", "someone", "third-party.example")
    said = program.say(session)
    assert said.code == (451 if "where only accept may" in name else 250)
    is_late = "when the mail is there" in name or "kept" in name
    assert said.is_taken is is_late


@pytest.mark.peer
@pytest.mark.usefixtures("exim_here")
@pytest.mark.parametrize("name", [one for one in (*CLOSED, *OPEN) if "everything is local" in one])
def test_where_everything_is_local_exim_routes_as_read(tmp_path: Path, name: str) -> None:
    finding = audited(tmp_path, **{**CLOSED, **OPEN}[name])
    assert isinstance(finding, Closed if name in CLOSED else Open), finding
    program = play.find_exim(tmp_path / "exim.conf")
    assert program is not None
    session = Session(ip_address("203.0.113.9"), "stranger.example", False, "", "someone", "third-party.example")
    assert program.say(session).is_taken
    (transport,) = program.transports(session)  # "" waits for the DNS
    assert transport == ("local_delivery" if name in CLOSED else "remote_smtp" if "without" in name else "")


def test_local_mail_that_hangs_on_files_and_would_go_on_without_them_is_not_told(tmp_path: Path) -> None:
    router = "users_here:\n  driver = accept\n  require_files = /home/$local_part\n  transport = local_delivery\n"
    everything = MAIN.replace("@ : example.org", "*")
    assert isinstance(audited(tmp_path, main=everything, router=router), Closed)
    smart = "smart:\n  driver = manualroute\n  route_list = * 192.0.2.9\n  transport = remote_smtp\n"
    finding = audited(tmp_path, main=everything, router=router + smart)
    assert isinstance(finding, CannotTell), finding
    assert "require_files" in finding.words


@pytest.mark.peer
@pytest.mark.usefixtures("exim_here")
def test_what_exim_routes_otherwise_than_it_was_read_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        exim.Router, "route", lambda *_: [exim.Routed(exim.Way.LOCAL, "someone@third-party.example", exim.Place("", 0))]
    )
    finding = audited(tmp_path, **OPEN["everything is local, and routed without asking that"])
    assert isinstance(finding, CannotTell), finding
    assert "-bt" in finding.words


@pytest.mark.peer
@pytest.mark.usefixtures("exim_here")
def test_a_file_that_exim_does_not_take_is_a_doubt(tmp_path: Path) -> None:
    finding = audited(tmp_path, more="no_such_option = 1\n")
    assert any("no_such_option" in doubt for doubt in finding.doubts)


def test_configuration_of_another_server_is_not_called_closed(tmp_path: Path) -> None:
    file = tmp_path / "main.cf"
    file.write_text("myhostname=mx.example.org\nmynetworks=0.0.0.0/0\n")
    found = audit(Kind.EXIM, file, ())
    assert isinstance(found, CannotTell)
    assert "can hardly be what" in found.words
