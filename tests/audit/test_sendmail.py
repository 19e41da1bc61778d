"""What the text of a sendmail configuration proves where no sendmail can be asked; and sendmail's own word where one can."""

import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from peer_programs import environment, program, require_peer
from peer_relay_forms import LOCAL_DOMAIN
from peer_sendmail import SENDMAIL_FORMS, lay_out_sendmail
from peer_servers import NextHop
from posthouse.audit import CannotTell, Closed, Kind, Open, audit, sendmail
from posthouse.audit.sendmail.text import network_of
from posthouse.policy.gateways import Gateway

MC = "OSTYPE(`debian')dnl\nFEATURE(`access_db', `hash -o /etc/mail/access')dnl\nMAILER(`smtp')dnl\n"


@pytest.fixture
def no_sendmail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sendmail, "find_sendmail", lambda configuration: None)


def cf(tmp_path: Path, *features: str, access: str = "", relay_domains: str = "", more: str = "") -> Path:
    """As m4 would leave it: a comment a feature, the maps and classes, and rule sets."""
    (tmp_path / "access").write_text(access)
    (tmp_path / "relay-domains").write_text(relay_domains)
    lines = [f"#####  $Id: {name}.m4,v 8.1 2013-11-22 20:51:11 ca Exp $  #####" for name in (*features, "proto")]
    lines += [
        f"Kaccess hash -T<TMPF> -o {tmp_path}/access",
        f"FR-o {tmp_path}/relay-domains",
        "Scheck_rcpt",
        f"R$*\t\t$: $1{more}",
    ]
    path = tmp_path / "sendmail.cf"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.usefixtures("no_sendmail")
def test_without_sendmail_nothing_is_called_closed(tmp_path: Path) -> None:
    finding = audit(Kind.SENDMAIL, cf(tmp_path, "access_db", access="Connect:192.0.2 RELAY\n"))
    assert isinstance(finding, CannotTell)
    assert "installed" in finding.words


@pytest.mark.usefixtures("no_sendmail")
def test_the_source_of_a_configuration_says_which_file_to_name(tmp_path: Path) -> None:
    (tmp_path / "sendmail.mc").write_text(MC)
    finding = audit(Kind.SENDMAIL, tmp_path)
    assert isinstance(finding, CannotTell)
    assert "sendmail.cf" in finding.words


@pytest.mark.usefixtures("no_sendmail")
@pytest.mark.parametrize("feature", ["promiscuous_relay", "relay_local_from"])
def test_a_feature_that_opens_is_named_in_both_languages(tmp_path: Path, feature: str) -> None:
    (tmp_path / "sendmail.mc").write_text(f"{MC}dnl FEATURE(`nothing')\nFEATURE(`{feature}')dnl\n")
    source = audit(Kind.SENDMAIL, tmp_path / "sendmail.mc")
    compiled = audit(Kind.SENDMAIL, cf(tmp_path, feature))
    assert isinstance(source, Open)
    assert isinstance(compiled, Open)
    assert (source.counterexample.line, compiled.counterexample.line) == (5, 1)
    assert feature in source.counterexample.words


@pytest.mark.usefixtures("no_sendmail")
@pytest.mark.parametrize(
    ("access", "relay_domains", "file", "line"),
    [
        ("To:com RELAY\n", "", "access", 1),
        ("# all\ncom\tRELAY\n", "", "access", 2),
        ("", "example.org\ncom\n", "relay-domains", 2),
        ("".join(f"Connect:{n} RELAY\n" for n in range(20, 30)), "", "access", 1),
        ("", "".join(f"{n}\n" for n in range(20, 30)), "relay-domains", 1),
    ],
)
def test_entries_that_are_too_wide_are_named(
    tmp_path: Path, access: str, relay_domains: str, file: str, line: int
) -> None:
    finding = audit(Kind.SENDMAIL, cf(tmp_path, access=access, relay_domains=relay_domains))
    assert isinstance(finding, Open), finding
    assert (Path(finding.counterexample.file).name, finding.counterexample.line) == (file, line)


@pytest.mark.usefixtures("no_sendmail")
@pytest.mark.parametrize(
    "access",
    [
        "Connect:192.0.2 RELAY\n",
        "To:example.org RELAY\n",
        "Connect:20 RELAY\n",
        "com REJECT\n",
        "From:example.org OK\n",
        "localhost RELAY\n",
    ],
)
def test_entries_that_are_narrow_open_nothing(tmp_path: Path, access: str) -> None:
    assert isinstance(audit(Kind.SENDMAIL, cf(tmp_path, access=access)), CannotTell)


@pytest.mark.usefixtures("no_sendmail")
def test_a_reverse_path_that_gets_relay_opens_only_with_the_feature(tmp_path: Path) -> None:
    assert isinstance(audit(Kind.SENDMAIL, cf(tmp_path, access="From:example.org RELAY\n")), CannotTell)
    finding = audit(Kind.SENDMAIL, cf(tmp_path, "relay_mail_from", access="From:example.org RELAY\n"))
    assert isinstance(finding, Open)
    assert finding.counterexample.reverse_path == "someone@example.org"


@pytest.mark.usefixtures("no_sendmail")
def test_a_gateway_inside_a_relaying_network_is_named(tmp_path: Path) -> None:
    gateway = Gateway(ip_address("172.17.0.1"), "the bridge docker0 of this machine")
    finding = audit(Kind.SENDMAIL, cf(tmp_path, access="Connect:172.17 RELAY\n"), (gateway,))
    assert "docker0" in finding.doubts[0]


@pytest.mark.parametrize(
    ("key", "network"),
    [
        ("192.0.2", "192.0.2.0/24"),
        ("10", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("[192.0.2.7]", "192.0.2.7/32"),
        ("IPv6:2001:db8", "2001:db8::/32"),
        ("IPv6:2001:db8::7", "2001:db8::7/128"),
        ("example.org", "None"),
    ],
)
def test_keys_stand_for_networks(key: str, network: str) -> None:
    assert str(network_of(key)) == network


# --- sendmail itself -------------------------------------------------------------------------------------------------------


def asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str = "", features: str = ""
) -> Closed | Open | CannotTell:
    require_peer("sendmail")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sendmail").symlink_to(program("sendmail", "usr/libexec/sendmail/sendmail"))
    form = SENDMAIL_FORMS[0]
    head = f"Cw{LOCAL_DOMAIN}\n"
    assert head in form.text
    text = form.text.replace(head, head + rules).replace("MAILER(`local')dnl\n", f"{features}MAILER(`local')dnl\n")
    configuration = lay_out_sendmail(
        form._replace(text=text), tmp_path, "127.0.0.1", 25, NextHop(tmp_path, "127.0.0.1", 26)
    )
    variables = environment("sendmail")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{variables['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", variables["LD_LIBRARY_PATH"])
    return audit(Kind.SENDMAIL, configuration)


@pytest.mark.peer
@pytest.mark.slow
def test_a_rule_of_ones_own_is_not_called_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = asked(tmp_path, monkeypatch, "LOCAL_RULESETS\nSLocal_check_rcpt\nR$* + magic $*\t\t$# OK\n")
    assert isinstance(finding, CannotTell), finding
    assert "magic" in finding.words


@pytest.mark.peer
@pytest.mark.slow
def test_a_rule_that_rewrites_all_addresses_is_not_called_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = asked(tmp_path, monkeypatch, "LOCAL_RULE_3\nR$* < @ $+ .magic > $*\t\t$: $1 < @ $2 > $3\n")
    assert isinstance(finding, CannotTell), finding
    assert "magic" in finding.words


@pytest.mark.peer
@pytest.mark.slow
def test_the_table_in_force_counts_and_not_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(asked(tmp_path, monkeypatch), Closed)
    (tmp_path / "access").write_text("To:com RELAY\n")
    finding = audit(Kind.SENDMAIL, tmp_path / "sendmail.cf")
    assert isinstance(finding, Closed), finding
    assert "makemap" in finding.doubts[0]


@pytest.mark.peer
@pytest.mark.slow
def test_relaying_by_mx_is_not_called_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = asked(tmp_path, monkeypatch, features="FEATURE(`relay_based_on_MX')dnl\n")
    assert isinstance(finding, CannotTell), finding
    assert "MX" in finding.words


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("feature", ["relay_entire_domain", "relay_hosts_only", "delay_checks", "nouucp', `reject"])
def test_features_that_do_not_open_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str) -> None:
    finding = asked(tmp_path, monkeypatch, features=f"FEATURE(`{feature}')dnl\n")
    assert isinstance(finding, Closed), finding
