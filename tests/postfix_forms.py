"""Postfix in many forms, open and closed, and the real smtpd of each to ask.

All forms run in one Postfix: each has an smtpd and a trivial-rewrite of its own, which get its settings by `-o`. An audit
reads the same settings from a main.cf. The server trusts 127.0.0.1 only; strangers come from 127.0.0.2.
"""

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import trustme

from peer_programs import environment, free_port, greets, program, require_peer, run_client, running, server_directory
from peer_servers import lay_out_postfix
from posthouse.audit.postfix.stranger import Stranger

STRANGER = "127.0.0.2"
BASE = {
    "compatibility_level": "3.6",
    "myhostname": "mx.ours.test",
    "mydestination": "ours.test",
    "mynetworks": "127.0.0.1/32",
    "relay_domains": "dept.test",
    "local_recipient_maps": "",
    "alias_maps": "",
    "smtpd_relay_restrictions": "permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination",
    "smtpd_restriction_classes": "welcome",
    "welcome": "permit",
}
_PATIENT = {
    "smtpd_error_sleep_time": "0",
    "smtpd_hard_error_limit": "1000",
    "smtpd_junk_command_limit": "1000",
    "max_use": "500",
    "in_flow_delay": "0",
}


class Form(NamedTuple):
    """One configuration: what an audit must say of it, its settings over BASE, overrides of its smtpd, and table files.

    {dir} in values stands for the directory of the files. `says` is a part of the line that decides.
    """

    name: str
    verdict: str
    settings: Mapping[str, str]
    says: str = ""
    overrides: Mapping[str, str] = {}
    files: Mapping[str, str] = {}
    indexed: Sequence[str] = ()

    def filled(self, directory: Path) -> dict[str, str]:
        """All settings for a directory of files."""
        return {name: value.replace("{dir}", str(directory)) for name, value in {**BASE, **self.settings}.items()}

    def filled_overrides(self, directory: Path) -> dict[str, str]:
        """The overrides for a directory of files."""
        return {name: value.replace("{dir}", str(directory)) for name, value in self.overrides.items()}


def lay_out(form: Form, directory: Path, authority: "Authority | None" = None, *, indexes: bool = True) -> Path:
    """The configuration as its administrator would have written it: main.cf, master.cf and files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in form.files.items():
        _write(directory / name, text)
    for name in form.indexed if indexes else ():
        run_client("postfix", "usr/sbin/postmap", f"hash:{directory / name}", MAIL_CONFIG=str(_bare(directory)))
    if authority is not None:
        authority.write(directory)
    lines = [f"{name} = {value}\n" for name, value in form.filled(directory).items()]
    _write(directory / "main.cf", "".join(lines))
    overrides = "".join(f"  -o {{ {name} = {value} }}\n" for name, value in form.filled_overrides(directory).items())
    services = (
        f"smtp inet n - n - - smtpd\n{overrides}rewrite unix - - n - - trivial-rewrite\nsmtp unix - - n - - smtp\n"
    )
    _write(directory / "master.cf", services + "relay unix - - n - - smtp\nerror unix - - n - - error\n")
    return directory


def _write(path: Path, text: str) -> None:
    """Postfix reads a file again and again until it is some seconds old; this one is."""
    path.write_text(text)
    old = time.time() - 60
    os.utime(path, (old, old))


def _bare(directory: Path) -> Path:
    """A configuration with which postmap runs."""
    bare = directory / "bare"
    if not bare.exists():
        bare.mkdir()
        _write(bare / "main.cf", "compatibility_level = 3.6\nmail_owner = mail\nsetgid_group = news\n")
    return bare


class Authority:
    """A private certificate authority for the server, and a stranger's own that nobody trusts."""

    def __init__(self) -> None:
        self._ours, self._his = trustme.CA(), trustme.CA()
        self._server = self._ours.issue_cert("mx.ours.test")
        self._client = self._his.issue_cert("mail.stranger.example")

    def write(self, directory: Path) -> None:
        """server.pem and ca.pem beside a form's files."""
        self._server.private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))
        (directory / "server.pem").chmod(0o600)
        self._ours.cert_pem.write_to_path(str(directory / "ca.pem"))

    def context(self, *, shows_certificate: bool) -> ssl.SSLContext:
        """The stranger's side of TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if shows_certificate:
            self._client.configure_cert(context)
        return context


class RealSmtpd:
    """The smtpd of one form, to be asked as a stranger."""

    def __init__(self, port: int, authority: Authority) -> None:
        self._port = port
        self._authority = authority

    def takes(self, stranger: Stranger, claim: bytes = b"", *, data: bool = False, content: bool = False) -> bool:
        """Whether the stranger's recipient is accepted; with `data` as far as 354, with `content` to the end of it.

        `claim`: a PROXY line, or XCLIENT.
        """
        with socket.create_connection(("127.0.0.1", self._port), timeout=20, source_address=(STRANGER, 0)) as plain:
            talk = _Talk(plain)
            if claim.startswith(b"PROXY"):
                plain.sendall(claim)
            talk.reply()
            if stranger.is_encrypted:
                talk.say("EHLO first.example")
                if not talk.say("STARTTLS"):
                    return False
                context = self._authority.context(shows_certificate=stranger.has_certificate)
                talk = _Talk(context.wrap_socket(plain))
            if claim.startswith(b"XCLIENT"):
                talk.say("EHLO first.example")
                talk.say(claim.decode())
            if stranger.hello is not None and not talk.say(f"EHLO {stranger.hello}"):
                return False
            if not talk.say(f"MAIL FROM:<{stranger.reverse_path}>"):
                return False
            taken = [talk.say(f"RCPT TO:<{stranger.forward_path}>") for _ in range(stranger.recipients)]
            if not all(taken) or not (data or content):
                return all(taken)
            return talk.say("DATA") and (not content or talk.say("Subject: probe\r\n\r\nhello\r\n."))


class _Talk:
    """Lines and replies."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._file = stream.makefile("rb")

    def say(self, line: str) -> bool:
        self._stream.sendall(line.encode() + b"\r\n")
        return self.reply()

    def reply(self) -> bool:
        line = b"----"
        while line[3:4] == b"-":
            line = self._file.readline()
            if not line:
                return False
        return line[:1] in b"23"


@contextlib.contextmanager
def real_smtpds(forms: Sequence[Form], **shared: str) -> Iterator[dict[str, RealSmtpd]]:
    """One Postfix in which each form listens on a port of its own; `shared` are settings of all its services."""
    require_peer("postfix")
    authority = Authority()
    with server_directory("forms") as directory:
        ports = {form.name: free_port() for form in forms}
        while len(set(ports.values())) < len(ports):
            ports = {name: free_port() for name in ports}
        first = next(iter(ports.values()))
        configuration = lay_out_postfix(
            directory, "127.0.0.1", first, {**_PATIENT, **shared, "myhostname": "mx.ours.test"}
        )
        services = (configuration / "master.cf").read_text().split("\n", 1)[1]
        entries = []
        for number, form in enumerate(forms):
            files = directory / f"files{number}"
            lay_out(form, files, authority)
            settings = form.filled(files)
            options = "".join(
                f"  -o {{ {name} = {value} }}\n" for name, value in settings.items() if name != "myhostname"
            )
            own = {**form.filled_overrides(files), "rewrite_service_name": f"rewrite{number}"}
            more = "".join(f"  -o {{ {name} = {value} }}\n" for name, value in own.items())
            entries.append(f"127.0.0.1:{ports[form.name]} inet n - n - - smtpd\n{options}{more}")
            entries.append(f"rewrite{number} unix - - n - - trivial-rewrite\n{options}")
        (configuration / "master.cf").write_text("".join(entries) + services)
        variables = {**environment("postfix"), "MAIL_CONFIG": str(configuration)}
        command = [program("postfix", "usr/lib/postfix/sbin/master"), "-d", "-c", str(configuration)]

        with running(command, lambda: greets("127.0.0.1", first), directory, variables, [directory / "mail.log"]):
            yield {name: RealSmtpd(port, authority) for name, port in ports.items()}


_TABLES = {"all": "/./ OK\n", "few": "/^192[.]/ OK\n"}
_WELCOME = {"smtpd_relay_restrictions": "welcome, reject"}


def _unopened(name: str, verdict: str, **settings: str) -> Form:
    """With the settings that postconf -m wants."""
    return Form(name, verdict, {"mail_owner": "mail", "setgid_group": "news", **settings}, files=_TABLES)


UNOPENED_FORMS = (
    _unopened("no-pcre-relay-domains", "closed", relay_domains="dept.test, pcre:{dir}/all"),
    _unopened("no-pcre-mynetworks", "closed", mynetworks="127.0.0.1/32, pcre:{dir}/all"),
    _unopened("no-pcre-negated", "closed", mynetworks="!pcre:{dir}/few, 0.0.0.0/0"),
    _unopened(
        "no-pcre-above-networks-that-are-too-wide-together",
        "closed",
        mynetworks="!pcre:{dir}/few, 20.0.0.0/9, 21.0.0.0/9, 22.0.0.0/9",
    ),
    _unopened("no-pcre-behind-what-decides", "open", mynetworks="0.0.0.0/0, pcre:{dir}/all"),
    _unopened("no-pcre-mydestination", "closed", mydestination="ours.test, pcre:{dir}/all", **_WELCOME),
    _unopened("no-pcre-transports", "closed", transport_maps="pcre:{dir}/all", **_WELCOME),
    _unopened("no-pcre-aliases", "closed", virtual_alias_maps="pcre:{dir}/all", virtual_alias_domains="", **_WELCOME),
    _unopened(
        "no-pcre-access",
        "closed",
        smtpd_relay_restrictions="check_sender_access pcre:{dir}/all, reject_unauth_destination",
    ),
    _unopened(
        "no-pcre-access-by-hello",
        "closed",
        smtpd_relay_restrictions="check_helo_access unionmap:{pcre:{dir}/all}, reject_unauth_destination",
    ),
    _unopened(
        "no-pcre-access-that-warns",
        "open",
        smtpd_relay_restrictions="warn_if_reject, check_sender_access pcre:{dir}/all, welcome, reject",
    ),
    _unopened(
        "no-pcre-access-that-warns-above-a-refusal",
        "closed",
        smtpd_relay_restrictions="warn_if_reject, check_sender_access pcre:{dir}/all, reject_unauth_destination",
    ),
    _unopened(
        "no-pcre-networks-that-warn",
        "closed",
        mynetworks="pcre:{dir}/all",
        smtpd_relay_restrictions="warn_if_reject, permit_mynetworks, welcome, reject",
    ),
)
"""Forms with a table of a type that is not installed: the verdict where that is known."""
HEADER_CHECKS = {"header_checks": "pcre:/nowhere/header_checks"}
UNOPENED_HEADER_CHECKS = (
    _unopened("no-pcre-header-checks", "closed", **HEADER_CHECKS, **_WELCOME),
    _unopened(
        "no-pcre-header-checks-skipped",
        "open",
        receive_override_options="no_header_body_checks",
        **HEADER_CHECKS,
        **_WELCOME,
    ),
)
"""The same, where it is cleanup that asks the table."""
DEFAULT_RELAY = "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination"

# fmt: off - one form, one paragraph
FORMS = (
    Form("stock", "closed", {"smtpd_relay_restrictions": DEFAULT_RELAY}),
    Form(
        "all-in-recipient-restrictions",
        "closed",
        {
            "smtpd_relay_restrictions": "",
            "smtpd_recipient_restrictions": "permit_mynetworks, reject_unauth_destination",
        },
    ),
    Form("everything-is-mynetworks", "open", {"mynetworks": "0.0.0.0/0"}, "mynetworks"),
    Form("half-of-everything-is-mynetworks", "open", {"mynetworks": "10.0.0.0/8, 0.0.0.0/1"}, "mynetworks"),
    Form("mynetworks-static", "open", {"mynetworks": "static:all"}, "mynetworks"),
    Form(
        "mynetworks-cidr-file",
        "open",
        {"mynetworks": "cidr:{dir}/nets"},
        "mynetworks",
        files={"nets": "192.0.2.0/24 no\n0.0.0.0/0 yes\n"},
    ),
    Form(
        "mynetworks-file-and-exception",
        "closed",
        {"mynetworks": "!127.0.0.2, {dir}/nets"},
        files={"nets": "# ours\n127.0.0.1/32\n192.0.2.0/24\n"},
    ),
    Form(
        "permit-cuts-off-the-only-refusal",
        "closed",
        {  # smtpd refuses to run with it
            "smtpd_relay_restrictions": "",
            "smtpd_recipient_restrictions": "permit_mynetworks, permit, reject_unauth_destination",
        },
    ),
    Form(
        "permit-by-a-class-in-the-wrong-place",
        "open",
        {
            "smtpd_relay_restrictions": "",
            "smtpd_recipient_restrictions": "permit_mynetworks, welcome, reject_unauth_destination",
        },
        "welcome",
    ),
    Form(
        "all-clients-are-let-in",
        "open",
        {
            "smtpd_relay_restrictions": "permit_mynetworks, check_client_access static:OK, reject_unauth_destination",
        },
        "smtpd_relay_restrictions",
    ),
    Form(
        "relay-permits-and-recipient-refuses-others",
        "open",
        {
            "smtpd_relay_restrictions": "permit_mynetworks, permit",
            "smtpd_recipient_restrictions": "check_client_access inline:{127.0.0.9=reject}, welcome, reject",
        },
    ),
    Form("permit-in-client-restrictions", "closed", {"smtpd_client_restrictions": "permit"}),
    Form(
        "forged-sender-is-let-in",
        "open",
        {
            "smtpd_relay_restrictions": "",
            "smtpd_recipient_restrictions": "check_sender_access hash:{dir}/senders, reject_unauth_destination",
        },
        "smtpd_recipient_restrictions",
        files={"senders": "boss@ours.test OK\nspam.example REJECT\n"},
        indexed=["senders"],
    ),
    Form(
        "own-domain-as-sender-is-let-in",
        "open",
        {
            "smtpd_relay_restrictions": "permit_mynetworks, check_sender_access inline:{ours.test=OK}, reject_unauth_destination",
        },
        "smtpd_relay_restrictions",
    ),
    Form(
        "sender-table-only-refuses",
        "closed",
        {
            "smtpd_recipient_restrictions": "check_sender_access hash:{dir}/senders, permit_mynetworks, reject_unauth_destination",
        },
        files={"senders": "spam.example REJECT\nfriend@x.example DUNNO\n"},
        indexed=["senders"],
    ),
    Form(
        "sender-let-in-behind-the-refusal",
        "closed",
        {
            "smtpd_recipient_restrictions": "reject_unauth_destination, check_sender_access inline:{ours.test=OK}, permit",
        },
    ),
    Form(
        "hello-is-let-in",
        "open",
        {"smtpd_relay_restrictions": "check_helo_access regexp:{{/^localhost$$/ OK}}, reject_unauth_destination"},
        "smtpd_relay_restrictions",
    ),
    Form(
        "hello-by-regexp-file",
        "open",
        {"smtpd_relay_restrictions": "check_helo_access regexp:{dir}/hello, reject_unauth_destination"},
        "smtpd_relay_restrictions",
        files={"hello": "# printers\n/^printer[0-9]+\\.ours\\.test$/ OK\n/^dyn/ REJECT\n"},
    ),
    Form(
        "null-sender-is-let-in",
        "open",
        {"smtpd_relay_restrictions": "check_sender_access inline:{<>=OK}, reject_unauth_destination"},
        "smtpd_relay_restrictions",
    ),
    Form("naked-address", "open", {"smtpd_relay_restrictions": "permit_naked_ip_address, reject_unauth_destination"}),
    Form(
        "unknown-clients-are-let-in",
        "open",
        {"smtpd_relay_restrictions": "check_client_access inline:{unknown=OK}, reject_unauth_destination"},
        "smtpd_relay_restrictions",
    ),
    Form(
        "client-by-pattern",
        "open",
        {"smtpd_relay_restrictions": "check_client_access regexp:{{/^[0-9.]+$$/ permit}}, reject_unauth_destination"},
        "smtpd_relay_restrictions",
    ),
    Form(
        "a-few-clients-are-let-in",
        "closed",
        {"smtpd_relay_restrictions": "check_client_access cidr:{dir}/clients, reject_unauth_destination"},
        files={"clients": "192.0.2.0/24 OK\n198.51.100.7 OK\n0.0.0.0/0 DUNNO\n"},
    ),
    Form("relay-domain-static", "open", {"relay_domains": "static:all"}, "relay_domains"),
    Form("relay-domain-regexp", "open", {"relay_domains": "regexp:{{/./ yes}}"}, "relay_domains"),
    Form("relay-domain-is-top-level", "open", {"relay_domains": "dept.test, com"}, "relay_domains"),
    Form(
        "relay-domain-top-level-in-a-table",
        "open",
        {"relay_domains": "hash:{dir}/domains"},
        "domains",
        files={"domains": "dept.test relay\norg relay\n"},
        indexed=["domains"],
    ),
    Form("relay-domain-star-is-no-wildcard", "closed", {"relay_domains": "*"}),
    Form(
        "relay-recipients-are-listed",
        "closed",
        {
            "relay_domains": "static:all",
            "relay_recipient_maps": "inline:{someone@dept.test=x}",
        },
    ),
    Form("everything-is-local", "open", {"mydestination": "regexp:{{/./ local}}"}, "mydestination"),
    Form(
        "every-virtual-mailbox-domain",
        "open",
        {
            "virtual_mailbox_domains": "static:all",
            "virtual_mailbox_maps": "",
        },
        "virtual_mailbox_domains",
    ),
    Form(
        "recipient-table-names-a-domain",
        "closed",
        {
            "smtpd_relay_restrictions": "check_recipient_access inline:{partner.example=OK}, reject_unauth_destination",
        },
    ),
    Form(
        "postmaster-of-anyone",
        "open",
        {
            "smtpd_relay_restrictions": "check_recipient_access inline:{postmaster@=OK}, reject_unauth_destination",
        },
        "smtpd_relay_restrictions",
    ),
    Form(
        "recipient-pattern-without-its-start",
        "open",
        {
            "smtpd_relay_restrictions": "check_recipient_access regexp:{{/partner\\.example$$/ OK}}, reject_unauth_destination",
        },
        "smtpd_relay_restrictions",
    ),
    Form("routes-are-passed-on", "open", {"allow_untrusted_routing": "yes"}, "allow_untrusted_routing"),
    Form("routes-are-refused", "closed", {"allow_percent_hack": "no", "swap_bangpath": "no"}),
    Form("quoted-routes-are-passed-on", "closed", {"resolve_dequoted_address": "no"}),
    Form(
        "class-that-permits",
        "open",
        {
            "smtpd_restriction_classes": "friends",
            "friends": "check_sender_access inline:{friend@x.example=OK}",
            "smtpd_relay_restrictions": "permit_mynetworks, friends, reject_unauth_destination",
        },
        "friends",
    ),
    Form(
        "class-in-a-table",
        "open",
        {
            "smtpd_restriction_classes": "inner",
            "inner": "permit_mynetworks, permit",
            "smtpd_relay_restrictions": "check_sender_access inline:{ours.test=inner}, reject_unauth_destination",
        },
        "inner",
    ),
    Form(
        "class-that-refuses",
        "closed",
        {
            "smtpd_restriction_classes": "inner",
            "inner": "permit_mynetworks, reject",
            "smtpd_relay_restrictions": "check_sender_access inline:{ours.test=inner}, reject_unauth_destination",
        },
    ),
    Form(
        "data-stage-refuses",
        "closed",
        {
            "smtpd_relay_restrictions": "permit_mynetworks, welcome, reject",
            "smtpd_data_restrictions": "permit_mynetworks, reject",
        },
    ),
    Form(
        "data-stage-refuses-one-recipient-only",
        "open",
        {
            "smtpd_relay_restrictions": "permit_mynetworks, welcome, reject",
            "smtpd_data_restrictions": "permit_mynetworks, reject_unauth_destination",
        },
        "welcome",
    ),
    Form(
        "refusal-only-warns",
        "open",
        {
            "smtpd_relay_restrictions": "permit_mynetworks, warn_if_reject reject_unauth_destination",
            "smtpd_recipient_restrictions": "check_sender_access inline:{x@x.example=reject}, welcome, reject",
        },
    ),
    Form(
        "no-refusal-at-all",
        "closed",
        {"smtpd_relay_restrictions": "", "smtpd_recipient_restrictions": "permit_mynetworks"},
    ),
    Form(
        "deferred-if-permitted",
        "closed",
        {
            "smtpd_relay_restrictions": "",
            "smtpd_recipient_restrictions": "permit_mynetworks, defer_if_permit",
        },
    ),
    Form(
        "override-opens",
        "open",
        {},
        "welcome",
        overrides={
            "smtpd_relay_restrictions": "permit_mynetworks, welcome, reject",
        },
    ),
    Form("override-trusts-everyone", "open", {}, "mynetworks", overrides={"mynetworks": "127.0.0.0/8, 0.0.0.0/0"}),
    Form("override-of-relay-domains-is-idle", "closed", {}, overrides={"relay_domains": "static:all"}),
    Form(
        "override-closes",
        "closed",
        {"smtpd_relay_restrictions": "permit, reject"},
        overrides={
            "smtpd_relay_restrictions": "$closed_restrictions",
            "closed_restrictions": "permit_mynetworks,reject",
        },
    ),
    Form(
        "submission-for-logins",
        "closed",
        {},
        overrides={
            "smtpd_tls_security_level": "encrypt",
            "smtpd_tls_chain_files": "{dir}/server.pem",
            "smtpd_relay_restrictions": "permit_sasl_authenticated,reject",
        },
    ),
    Form(
        "every-certificate-is-listed",
        "open",
        {
            "smtpd_tls_security_level": "may",
            "smtpd_tls_chain_files": "{dir}/server.pem",
            "smtpd_tls_ask_ccert": "yes",
            "relay_clientcerts": "static:all",
            "smtpd_relay_restrictions": "permit_mynetworks, permit_tls_clientcerts, reject_unauth_destination",
        },
        "smtpd_relay_restrictions",
    ),
    Form(
        "certificates-of-our-authority",
        "closed",
        {
            "smtpd_tls_security_level": "may",
            "smtpd_tls_chain_files": "{dir}/server.pem",
            "smtpd_tls_ask_ccert": "yes",
            "smtpd_tls_CAfile": "{dir}/ca.pem",
            "smtpd_relay_restrictions": "permit_mynetworks, permit_tls_all_clientcerts, reject_unauth_destination",
        },
    ),
    Form(
        "encrypted-sessions-only-and-open",
        "open",
        {
            "smtpd_tls_security_level": "encrypt",
            "smtpd_tls_chain_files": "{dir}/server.pem",
            "smtpd_relay_restrictions": "reject_plaintext_session, welcome, reject",
        },
        "welcome",
    ),
    Form(
        "xclient-for-everyone",
        "open",
        {"smtpd_authorized_xclient_hosts": "0.0.0.0/0"},
        "smtpd_authorized_xclient_hosts",
    ),
    Form(
        "proxy-header-of-anyone",
        "open",
        {},
        "smtpd_upstream_proxy_protocol",
        overrides={
            "smtpd_upstream_proxy_protocol": "haproxy",
        },
    ),
    Form(
        "redirected-and-discarded",
        "closed",
        {
            "smtpd_relay_restrictions": "permit_mynetworks, check_client_access inline:{127.0.0.2=DISCARD}, reject_unauth_destination",
        },
    ),
    Form(
        "conditional-value",
        "open",
        {
            "smtpd_relay_restrictions": "${{$compatibility_level} >=level {3.6} ? {permit_mynetworks, permit} : {reject}}",
            "smtpd_recipient_restrictions": "permit_mynetworks, check_helo_access inline:{bad=reject}, welcome, reject",
        },
    ),
    Form(
        "refused-before-hello",
        "closed",
        {
            "smtpd_delay_reject": "no",
            "smtpd_helo_required": "yes",
            "smtpd_sender_restrictions": "check_sender_access inline:{ours.test=REJECT}",
            "smtpd_relay_restrictions": "check_sender_access inline:{ours.test=OK}, reject_unauth_destination",
        },
    ),
)
# fmt: on
