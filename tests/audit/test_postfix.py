"""The Postfix auditor without a Postfix: what it reads, what it can't tell, what it doubts."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from postfix_forms import FORMS, Authority, Form, lay_out
from posthouse.audit import AuditError, CannotTell, Closed, Finding, Kind, Open, audit
from posthouse.audit.postfix.address import Rewriting, internal, take_apart
from posthouse.audit.postfix.expand import ExpandError, expand
from posthouse.audit.postfix.pattern import PatternError, compile_pattern, samples
from posthouse.policy.gateways import Gateway

MASTER = "smtp inet n - y - - smtpd\n"
MAIN = {
    "compatibility_level": "3.6",
    "myhostname": "mx.ours.test",
    "mydestination": "ours.test",
    "mynetworks": "127.0.0.0/8",
    "alias_maps": "",
    "local_recipient_maps": "",
}


@pytest.fixture(autouse=True)
def no_postconf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without Postfix."""
    monkeypatch.setattr("posthouse.audit.postfix.postconf.find_program", lambda name: None)
    monkeypatch.setattr("posthouse.audit.postfix.opening.find_program", lambda name: None)


def written(directory: Path, master: str = MASTER, **settings: str) -> Path:
    lines = [f"{name} = {value}\n" for name, value in {**MAIN, **settings}.items()]
    (directory / "main.cf").write_text("".join(lines))
    (directory / "master.cf").write_text(master)
    return directory


def asked(directory: Path, master: str = MASTER, **settings: str) -> Finding:
    return audit(Kind.POSTFIX, written(directory, master, **settings))


def line_of(file: str, line: int) -> str:
    return Path(file).read_text().splitlines()[line - 1]


# --- verdicts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=[each.name for each in FORMS])
def test_built_in_defaults_give_the_same_verdict_as_postconf(form: Form, tmp_path: Path) -> None:
    finding = audit(Kind.POSTFIX, lay_out(form, tmp_path / "form", Authority(), indexes=False))
    expected = {"open": Open, "closed": Closed}[form.verdict]
    if form.name == "naked-address":
        expected = CannotTell  # whether Postfix still knows the restriction hangs on its version
    assert isinstance(finding, expected), finding


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("relay_domains", "dept.test, mysql:/etc/postfix/domains.cf"),
        ("relay_domains", "proxy:ldap:/etc/postfix/domains.cf"),
        ("relay_domains", "hash:/nowhere/domains"),
        ("mynetworks", "127.0.0.0/8 /nowhere/networks"),
        ("mynetworks", "127.0.0.0/8 192.0.2.1/24"),
        ("smtpd_relay_restrictions", "check_policy_service unix:private/policy, reject_unauth_destination"),
        ("smtpd_relay_restrictions", "check_sender_access pgsql:/etc/postfix/senders, reject_unauth_destination"),
        ("smtpd_relay_restrictions", "check_client_access tcp:127.0.0.1:999, reject_unauth_destination"),
        ("smtpd_command_filter", "pcre:/etc/postfix/commands"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(tmp_path: Path, name: str, value: str) -> None:
    finding = asked(tmp_path, **{name: value})
    assert isinstance(finding, CannotTell), finding
    assert line_of(finding.file, finding.line).startswith(name)
    assert len(finding.words) > 30


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("relay_domains", "dept.test, pcre:{dir}/all"),
        ("relay_domains", "proxy:pcre:{dir}/all"),
        ("mynetworks", "127.0.0.0/8, pcre:{dir}/all"),
        ("smtpd_relay_restrictions", "check_sender_access pcre:{dir}/all, reject_unauth_destination"),
        ("smtpd_relay_restrictions", "check_sender_access unionmap:{{pcre:{dir}/all}}, reject_unauth_destination"),
        ("transport_maps", "lmdb:{dir}/routes"),
    ],
)
def test_a_table_type_that_may_not_be_installed_is_told_where_it_decides(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "all").write_text("/./ OK\n")
    (tmp_path / "routes").write_text("example.com smtp:\n")
    open_to_all = {"smtpd_relay_restrictions": "check_client_access static:OK, reject"} if "maps" in name else {}
    finding = asked(tmp_path, **{**open_to_all, name: value.format(dir=tmp_path)})
    assert isinstance(finding, CannotTell), finding
    assert line_of(finding.file, finding.line).startswith(name)
    assert "postconf -m" in finding.words


def test_a_table_type_that_may_not_be_installed_changes_nothing_where_it_does_not_decide(tmp_path: Path) -> None:
    (tmp_path / "all").write_text("/./ OK\n")
    table = f"check_sender_access pcre:{tmp_path}/all"
    assert isinstance(asked(tmp_path, smtpd_relay_restrictions=f"reject_unauth_destination, {table}"), Closed)
    assert isinstance(asked(tmp_path, smtpd_relay_restrictions=f"check_client_access static:OK, {table}, reject"), Open)


def test_a_policy_service_behind_the_refusal_opens_nothing(tmp_path: Path) -> None:
    lists = "permit_mynetworks, reject_unauth_destination, check_policy_service inet:127.0.0.1:10023"
    assert isinstance(asked(tmp_path, smtpd_recipient_restrictions=lists), Closed)


def test_an_opening_counts_whatever_else_is_unknown(tmp_path: Path) -> None:
    finding = asked(
        tmp_path,
        virtual_mailbox_domains="mysql:/etc/postfix/domains.cf",
        smtpd_relay_restrictions="check_sender_access inline:{boss@ours.test=OK}, reject_unauth_destination",
        smtpd_recipient_restrictions="check_client_access static:DUNNO, reject_unverified_recipient",
    )
    assert isinstance(finding, Open)
    assert finding.counterexample.reverse_path == "boss@ours.test"


def test_networks_that_together_are_more_than_a_slash_8_are_open(tmp_path: Path) -> None:
    finding = asked(tmp_path, mynetworks="127.0.0.0/8, 20.0.0.0/9, 21.0.0.0/9, 22.0.0.0/9")
    assert isinstance(finding, Open)
    assert ip_address(finding.counterexample.client) in (
        ip_address("20.0.0.9"),
        ip_address("21.0.0.9"),
        ip_address("22.0.0.9"),
    )
    assert isinstance(asked(tmp_path, mynetworks="127.0.0.0/8, 10.0.0.0/8, 172.16.0.0/12, 20.1.0.0/16"), Closed)


def test_wide_ipv6_networks_are_open(tmp_path: Path) -> None:
    assert isinstance(asked(tmp_path, mynetworks="127.0.0.0/8, [2000::]/3"), Open)
    assert isinstance(asked(tmp_path, mynetworks="127.0.0.0/8, [::1]/128, [2001:db8::]/32"), Closed)


def test_networks_of_the_interfaces_are_not_guessed(tmp_path: Path) -> None:
    written(tmp_path, mynetworks_style="subnet")
    main = tmp_path / "main.cf"
    main.write_text("".join(line for line in main.read_text().splitlines(keepends=True) if "mynetworks =" not in line))
    finding = audit(Kind.POSTFIX, tmp_path)
    assert isinstance(finding, CannotTell)
    assert "mynetworks_style" in line_of(finding.file, finding.line)
    main.write_text(main.read_text().replace("subnet", "host"))
    assert isinstance(audit(Kind.POSTFIX, tmp_path), Closed)


def test_a_backup_for_everyone_is_open(tmp_path: Path) -> None:
    lists = "permit_mynetworks, permit_mx_backup, reject_unauth_destination"
    finding = asked(tmp_path, smtpd_relay_restrictions=lists)
    assert isinstance(finding, Open)
    assert "backup" in finding.counterexample.words
    assert isinstance(asked(tmp_path, smtpd_relay_restrictions=lists, permit_mx_backup_networks="192.0.2.0/24"), Closed)


@pytest.mark.parametrize(("file", "expected"), [("ours.pem", Closed), ("/etc/ssl/certs/ca-certificates.crt", Open)])
def test_certificates_of_public_authorities_are_anyones(tmp_path: Path, file: str, expected: type) -> None:
    (tmp_path / "ours.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    finding = asked(
        tmp_path,
        smtpd_tls_security_level="may",
        smtpd_tls_cert_file="/etc/ssl/server.pem",
        smtpd_tls_ask_ccert="yes",
        smtpd_tls_CAfile=str(tmp_path / file),
        smtpd_relay_restrictions="permit_mynetworks, permit_tls_all_clientcerts, reject_unauth_destination",
    )
    assert isinstance(finding, expected)


def test_an_alias_that_leads_wherever_the_sender_says_is_open(tmp_path: Path) -> None:
    (tmp_path / "alias").write_text("/^(.+)=(.+)@ours\\.test$/ $1@$2\n")
    finding = asked(tmp_path, virtual_alias_maps=f"regexp:{tmp_path}/alias", virtual_alias_domains="")
    assert isinstance(finding, Open)
    assert "alias" in finding.counterexample.words
    (tmp_path / "alias").write_text("/^(.+)@ours\\.test$/ $1@partner.example\n")
    assert isinstance(asked(tmp_path, virtual_alias_maps=f"regexp:{tmp_path}/alias", virtual_alias_domains=""), Closed)


def test_everything_thrown_away_or_refused_behind_a_wide_list_is_closed(tmp_path: Path) -> None:
    for transport in ("discard:", "error:outside mail is not deliverable"):
        finding = asked(tmp_path, relay_domains="static:all", relay_transport=transport, default_transport=transport)
        assert isinstance(finding, Closed), finding


# --- ways in --------------------------------------------------------------------------------------------------------------


def test_loopback_services_of_filters_are_not_reached_by_strangers(tmp_path: Path) -> None:
    back = "127.0.0.1:10025 inet n - n - - smtpd -o smtpd_relay_restrictions=check_client_access,static:OK,reject\n"
    assert isinstance(asked(tmp_path, MASTER + back), Closed)
    finding = asked(tmp_path, back)
    assert isinstance(finding, Open)
    assert "loopback" in finding.rests_on


def test_the_smtpd_behind_postscreen_is_asked_and_its_override_blamed(tmp_path: Path) -> None:
    master = "smtp inet n - y - 1 postscreen\nsmtpd pass - - y - - smtpd\n  -o mynetworks=0.0.0.0/0\ntlsproxy unix - - y - 0 tlsproxy\n"
    finding = asked(tmp_path, master)
    assert isinstance(finding, Open)
    assert finding.counterexample.listener == "smtp inet, behind postscreen"
    assert line_of(finding.counterexample.file, finding.counterexample.line) == "  -o mynetworks=0.0.0.0/0"


def test_each_service_has_its_own_lists(tmp_path: Path) -> None:
    master = (
        MASTER
        + "submission inet n - y - - smtpd\n  -o smtpd_sasl_auth_enable=yes\n"
        + "  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject\n"
        + "2525 inet n - y - - smtpd\n  -o smtpd_relay_restrictions=$devices\n"
    )
    devices = "check_helo_access,inline:{scanner=OK},reject_unauth_destination"
    finding = asked(tmp_path, master, devices=devices)
    assert isinstance(finding, Open)
    assert finding.counterexample.listener == "2525 inet"
    assert finding.counterexample.hello == "scanner"
    assert line_of(finding.counterexample.file, finding.counterexample.line).startswith("devices")


def test_a_proxy_header_is_believed_of_anyone_who_connects(tmp_path: Path) -> None:
    finding = asked(
        tmp_path,
        "smtp inet n - y - 1 postscreen\nsmtpd pass - - y - - smtpd\n",
        postscreen_upstream_proxy_protocol="haproxy",
    )
    assert isinstance(finding, Open)
    assert "PROXY" in finding.counterexample.client
    private = "10.0.0.5:25 inet n - y - - smtpd -o smtpd_upstream_proxy_protocol=haproxy\n"
    assert isinstance(asked(tmp_path, private), CannotTell)


# --- doubts and wrong usage -----------------------------------------------------------------------------------------------


def test_a_trusted_network_with_a_gateway_is_a_doubt(tmp_path: Path) -> None:
    gateway = Gateway(ip_address("172.17.0.1"), "this machine's address on the bridge docker0")
    finding = audit(Kind.POSTFIX, written(tmp_path, mynetworks="127.0.0.0/8, 172.16.0.0/12"), [gateway])
    assert isinstance(finding, Closed)
    assert any("docker0" in doubt and "172.16.0.0/12" in doubt for doubt in finding.doubts)


def test_milters_and_an_idle_star_are_doubts(tmp_path: Path) -> None:
    finding = asked(tmp_path, smtpd_milters="inet:localhost:8891", relay_domains="*")
    assert isinstance(finding, Closed)
    assert len(finding.doubts) == 2


def test_a_copy_of_the_directory_is_read_in_its_own_place(tmp_path: Path) -> None:
    (tmp_path / "posthouse-test-domains").write_text("com relay\n")
    finding = asked(tmp_path, relay_domains="hash:/etc/postfix/posthouse-test-domains")
    assert isinstance(finding, Open)
    assert any("in place of" in doubt for doubt in finding.doubts)


@pytest.mark.parametrize(
    ("main", "words"),
    [("myhostname mx.ours.test\n", "name = value"), ("relay_domains = ${{a} == }\n", "cannot be read")],
)
def test_a_malformed_file_is_wrong_usage(tmp_path: Path, main: str, words: str) -> None:
    written(tmp_path)
    (tmp_path / "main.cf").write_text(main)
    with pytest.raises(AuditError, match=words):
        audit(Kind.POSTFIX, tmp_path)


# --- parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$a, ${b} $(a)$$", "one, two one$"),
        ("${a?yes}${none?no}${none:else}", "yeselse"),
        ("${a?{yes}:{no}} ${none?{yes}:{no}}", "yes no"),
        ("${{$level} <level {3.6} ? {old} : {new}}", "new"),
        ("${{$level} >=level {3.10} ? {new} : {old}}", "old"),
        ("${{$a}=={one}?{same}}", "same"),
        ("$nested", "one two"),
    ],
)
def test_names_are_filled_in(text: str, expected: str) -> None:
    names = {"a": "one", "b": "two", "level": "3.9", "nested": "$a $b"}
    assert expand(text, names.get) == expected


@pytest.mark.parametrize("text", ["$self", "${open", "$/"])
def test_malformed_names_are_errors(text: str) -> None:
    with pytest.raises(ExpandError):
        expand(text, {"self": "$self"}.get)


RULES = Rewriting("ours.test", "test", "mx.ours.test", True, True, True, False, True, False)


@pytest.mark.parametrize(
    ("path", "address", "is_local", "is_routed"),
    [
        ("user@third.example", "user@third.example", False, False),
        ("user%third.example@ours.test", "user@third.example", False, False),
        ("third.example!user@ours.test", "user@third.example", False, False),
        ('"user@third.example"@ours.test', "user@third.example", False, False),
        ("@ours.test:user@third.example", "user@third.example", False, False),
        ("user%third.example@dept.test", "user%third.example@dept.test", False, True),
        ("third.example!user@dept.test", "third.example!user@dept.test", False, True),
        ("user", "user@ours.test", True, False),
        ("user@ours.test", "user@ours.test", True, False),
    ],
)
def test_addresses_are_taken_apart_as_postfix_does(path: str, address: str, is_local: bool, is_routed: bool) -> None:
    taken = take_apart(internal(path), RULES, lambda domain: domain == "ours.test")
    assert (taken.address, taken.is_local, taken.is_routed) == (address, is_local, is_routed)


@pytest.mark.parametrize(
    "pattern", [r"^(.+)@(.+)\.test$", r"[[:alnum:]]+!", r"(a|b){2,3}x?", r"^\d+\.\d+$", r"[^@]+@(partner)\."]
)
def test_samples_match_their_pattern(pattern: str) -> None:
    compiled = compile_pattern(pattern, "", is_pcre=True)
    found = samples(compiled)
    assert found
    assert all(compiled.search(each) for each in found)


def test_patterns_that_only_pcre_knows_are_not_guessed_at() -> None:
    with pytest.raises(PatternError):
        compile_pattern(r"^\Qa.b\E", "", is_pcre=True)
