"""Postfix as a relay, closed and open in several ways, alone and in front of a smart host."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import trustme

from peer_programs import environment, free_port, greets, program, require_peer, running, server_directory
from peer_relay_forms import LOCAL_DOMAIN, Form, RelayPeer
from peer_servers import NOBODY, NextHop, lay_out_postfix

RESTRICTIONS = "permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination"
_USERS = f"inline:{{ postmaster@{LOCAL_DOMAIN}=postmaster, user@{LOCAL_DOMAIN}=user }}"
_COMMON = {
    "myhostname": "postfix.test",
    "virtual_mailbox_domains": LOCAL_DOMAIN,
    "virtual_mailbox_base": "{directory}/mail",
    "virtual_mailbox_maps": _USERS,
    "virtual_uid_maps": f"static:{NOBODY}",
    "virtual_gid_maps": f"static:{NOBODY}",
    "mynetworks": "127.0.0.1/32",
    "relay_domains": "dept.ours.test",
    "relayhost": "[{third_address}]:{third_port}",
    "smtpd_relay_restrictions": RESTRICTIONS,
    "smtp_helo_name": "$myhostname",
    "smtp_address_preference": "ipv4",
}
_FRIENDS = {"smtpd_restriction_classes": "friends", "friends": "permit"}
_TLS = {"smtpd_tls_security_level": "may", "smtpd_tls_chain_files": "{directory}/server.pem"}


def _rewritten(sign: str) -> str:
    """A table of aliases that has u<sign>third@ours go to u@third."""
    return f"regexp:{{{{/^(.*){sign}(.*)@{LOCAL_DOMAIN.replace('.', '[.]')}$$/ $$1@$$2}}}}"


def _form(name: str, is_open: bool, says: str, **settings: str) -> Form:
    lines = [f"{key} = {value}\n" for key, value in {**_COMMON, **settings}.items()]
    return Form(name, is_open, says, "".join(lines))


POSTFIX_FORMS = (
    _form("closed", False, "only local clients and those who logged in may relay"),
    _form("closed-backup-mx", False, "mail for a partner's domain is passed on", relay_domains="partner.test"),
    _form(
        "closed-forwarding",
        False,
        "addresses of its own are forwarded to fixed addresses outside",
        virtual_alias_maps=f"inline:{{ list@{LOCAL_DOMAIN}=member@third-party.test, postmaster@{LOCAL_DOMAIN}=admin@third-party.test }}",
        virtual_mailbox_maps=_USERS.replace("user@", "list@"),
    ),
    _form(
        "closed-deferring",
        False,
        "as Debian delivers it: strangers are told 454, relay access denied",
        smtpd_relay_restrictions="permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination",
    ),
    _form(
        "closed-late",
        False,
        "strangers are refused at the end of the data only",
        smtpd_relay_restrictions="permit_mynetworks, friends, reject",
        smtpd_end_of_data_restrictions="permit_mynetworks, reject",
        **_FRIENDS,
    ),
    _form(
        "closed-gateway",
        False,
        "the own domain is passed to an inner host, whatever the local part",
        virtual_mailbox_domains="",
        relay_domains=LOCAL_DOMAIN,
    ),
    _form(
        "open-wide-networks",
        True,
        "half of all addresses are trusted",
        mynetworks="127.0.0.1/32, 10.0.0.0/8, 0.0.0.0/1",
    ),
    _form(
        "open-permit-above",
        True,
        "a class that permits stands above the refusal",
        smtpd_relay_restrictions="permit_mynetworks, friends, reject_unauth_destination",
        **_FRIENDS,
    ),
    _form(
        "open-tls",
        True,
        "every client that speaks TLS may relay",
        smtpd_relay_restrictions="permit_mynetworks, reject_plaintext_session, friends, reject",
        plaintext_reject_code="554",
        **_FRIENDS,
        **_TLS,
    ),
    _form(
        "open-wildcard-domain",
        True,
        "the relay domains are a table that answers to everything",
        relay_domains="dept.ours.test, static:all",
    ),
    _form(
        "open-reverse-path",
        True,
        "a reverse-path in the own domain is believed",
        smtpd_relay_restrictions=(
            f"permit_mynetworks, check_sender_access inline:{{ {LOCAL_DOMAIN}=OK }}, reject_unauth_destination"
        ),
    ),
    _form(
        "open-null-sender",
        True,
        "mail with a null reverse-path is let through, as notices are",
        smtpd_relay_restrictions="permit_mynetworks, check_sender_access inline:{ <>=OK }, reject_unauth_destination",
    ),
    _form(
        "open-hello-localhost",
        True,
        "a client that calls itself localhost is believed",
        smtpd_relay_restrictions="permit_mynetworks, check_helo_access inline:{ localhost=OK }, reject_unauth_destination",
    ),
    _form(
        "open-hello",
        True,
        "a name said in HELO is believed",
        smtpd_relay_restrictions="permit_mynetworks, check_helo_access inline:{ postfix.test=OK }, reject_unauth_destination",
    ),
    _form(
        "open-percent-hack",
        True,
        "routes of strangers are let through: u%third@ours goes to u@third, by a table of aliases",
        allow_percent_hack="no",
        allow_untrusted_routing="yes",
        virtual_alias_maps=_rewritten("%"),
    ),
    _form(
        "open-forwarder",
        True,
        "u=third@ours is forwarded to u@third",
        virtual_alias_maps=_rewritten("="),
    ),
    _form(
        "open-plus-forwarder",
        True,
        "u+third@ours is rewritten to u@third",
        canonical_maps=_rewritten("[+]"),
    ),
    _form("open-xclient", True, "XCLIENT is believed from everyone", smtpd_authorized_xclient_hosts="0.0.0.0/0"),
    _form(
        "open-backup-mx",
        True,
        "mail for a whole top-level domain is taken, as a backup MX takes it",
        relay_domains="test",
    ),
)
"""Postfix's forms; `text` is main.cf."""

CATCH_ALL = _form(
    "closed-catch-all",
    False,
    "all mail for the own domain is forwarded to one address outside",
    virtual_alias_maps=f"inline:{{ @{LOCAL_DOMAIN}=member@third-party.test }}",
)
"""From outside it gets no verdict."""


_SMART = {"myhostname": "smart.test", "relay_domains": ""}
_INNER = {
    **_SMART,
    "mydestination": LOCAL_DOMAIN,
    "virtual_mailbox_domains": "",
    "local_transport": "virtual",
    "virtual_mailbox_maps": "static:all/",
}
_SMART_CLOSED = _form("closed", False, "only the edge may relay", **_SMART)
_SMART_HOSTS = {
    "open-smart-host": _form("open", True, "everyone may relay", **_SMART, mynetworks="0.0.0.0/0"),
    "closed-edge": _form("open", True, "everyone may relay", **_SMART, mynetworks="0.0.0.0/0"),
    "open-routes-to-inside": _form("closed", False, "only the edge may relay; it follows routes", **_INNER),
}
_SAME_EDGES = {
    "closed": "an edge that trusts local clients only, a smart host that trusts the edge",
    "open-wide-networks": "",
    "open-permit-above": "",
    "open-tls": "",
    "open-wildcard-domain": "",
    "open-reverse-path": "",
    "open-hello": "",
    "open-forwarder": "",
}
MULTI_HOP_FORMS = (
    *(
        form._replace(says=_SAME_EDGES[form.name] or f"at the edge, {form.says}")
        for form in POSTFIX_FORMS
        if form.name in _SAME_EDGES
    ),
    _form("closed-edge", False, "the edge in front of an open smart host is closed itself"),
    _form("open-smart-host", True, "the smart host behind a closed edge is open to everyone"),
    _form(
        "open-routes-to-inside",
        True,
        "the edge passes u%third@ours to the inner host, which sends it to u@third",
        virtual_mailbox_domains="",
        relay_domains=LOCAL_DOMAIN,
        allow_untrusted_routing="yes",
    ),
)
"""A Postfix that hands all on to another one; `text` is that of the edge."""


@contextlib.contextmanager
def postfix_relay(form: Form, third_party: NextHop) -> Iterator[RelayPeer]:
    """Postfix in one of its forms; all that it relays goes to `third_party`."""
    require_peer("postfix")
    address = "127.0.0.1"
    port = free_port(address)
    with server_directory("postfix") as directory:
        settings = _settings(form, directory, third_party)
        configuration = lay_out_postfix(directory, address, port, settings)
        leaf = trustme.CA().issue_cert("postfix.test")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))
        (directory / "server.pem").chmod(0o600)
        variables = {**environment("postfix"), "MAIL_CONFIG": str(configuration)}
        command = [program("postfix", "usr/lib/postfix/sbin/master"), "-d", "-c", str(configuration)]
        with running(command, lambda: greets(address, port), directory, variables, [directory / "mail.log"]):
            yield RelayPeer(directory, address, port, configuration)


def _settings(form: Form, directory: Path, third_party: NextHop) -> dict[str, str]:
    where = {"third_address": third_party.address, "third_port": str(third_party.port), "directory": str(directory)}
    settings = {}
    for line in form.text.splitlines():
        name, _, value = line.partition(" = ")
        for placeholder, text in where.items():
            value = value.replace(f"{{{placeholder}}}", text)
        settings[name] = value
    return settings


@contextlib.contextmanager
def multi_hop_relay(form: Form, third_party: NextHop) -> Iterator[RelayPeer]:
    """An edge and its smart host, which hands all on to `third_party`; the edge, or the smart host where that one is the form's."""
    smart_form = _SMART_HOSTS.get(form.name, _SMART_CLOSED)
    with postfix_relay(smart_form, third_party) as smart, postfix_relay(form, smart) as edge:
        yield smart if form.name == "open-smart-host" else edge
