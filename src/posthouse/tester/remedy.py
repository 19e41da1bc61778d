"""The one thing to fix first, for the server software that the host runs.

Software is recognised by what it says of itself and by its manner of refusing; what can't be told is not guessed. Which door
stands open is read from the cases: the plainest one counts, since what closes it most often closes the others.
"""

import re
from collections.abc import Sequence

from posthouse.tester.report import CaseResult, Remedy, Report
from posthouse.tester.verdict import CaseVerdict

UNKNOWN_SOFTWARE = "unknown"

_BANNERS = (
    ("posthouse", r"\bposthouse\b"),
    ("postfix", r"\bpostfix\b"),
    ("exim", r"\bexim\b"),
    ("opensmtpd", r"\bopensmtpd\b"),
    ("sendmail", r"\bsendmail\b"),
    ("exchange", r"microsoft (?:esmtp|exchange)|microsoft smtp mail service"),
    ("haraka", r"\bharaka\b"),
    ("kumomta", r"\bkumomta\b"),
    ("stalwart", r"\bstalwart\b"),
    ("maddy", r"\bmaddy\b"),
    ("mdaemon", r"\bmdaemon\b"),
    ("hmailserver", r"\bhmailserver\b"),
    ("domino", r"lotus domino|hcl domino|ibm domino"),
    ("aiosmtpd", r"python smtp|aiosmtpd"),
)
_MANNERS = (
    ("postfix", r"5\.5\.2 error: command not recognized|: relay access denied"),
    (
        "opensmtpd",
        r"5\.5\.1 invalid command: (?:command|pipelining) not supported|5\.5\.1 invalid command: command unrecognized",
    ),
    ("exim", r"unrecognized command$|relay not permitted"),
    ("sendmail", r"relaying denied\. |: relaying denied$|command unrecognized: \""),
    ("exchange", r"smtp; unable to relay"),
    ("qmail", r"rcpthosts \(#5\.7\.1\)|unimplemented \(#5\.5\.1\)"),
    ("courier", r"513 relaying denied"),
)


def recognise_software(banner: str, replies: Sequence[str]) -> str:
    """A name of the tables above, or "unknown"."""
    for name, pattern in _BANNERS:
        if re.search(pattern, banner, re.IGNORECASE):
            return name
    for name, pattern in _MANNERS:
        if any(re.search(pattern, reply, re.IGNORECASE) for reply in replies):
            return name
    return UNKNOWN_SOFTWARE


_EVERYONE, _SENDER, _TRICK, _HELLO, _TLS, _PROXY, _XCLIENT, _SMUGGLED = (
    "everyone",
    "sender",
    "trick",
    "hello",
    "tls",
    "proxy",
    "xclient",
    "smuggled",
)


def find_remedy(report: Report, *, is_from_itself: bool = False) -> Remedy | None:
    """The first thing to do; None when no case was relayed or accepted. `is_from_itself`: the test came from an address of the
    host's own machine."""
    door = _door(report.results)
    if not door:
        return None
    software = report.software
    if software == "posthouse" and any(_LAB in result.reply for result in report.results):
        return Remedy(software, _OPEN_ON_PURPOSE)
    if software == "posthouse" and door == _EVERYONE and is_from_itself:
        return Remedy(software, _TRUSTS_ITSELF)
    sentence, lines, see = _REMEDIES.get((software, door)) or _REMEDIES.get(("", door)) or _REMEDIES["", _EVERYONE]
    return Remedy(software, sentence, lines, see)


def _door(results: Sequence[CaseResult]) -> str:
    """Which door stands open, the widest first."""
    open_cases = {one.number for one in results if one.verdict in (CaseVerdict.RELAYED, CaseVerdict.ACCEPTED)}
    for door, numbers in _DOORS:
        if open_cases & numbers:
            return door
    return _TRICK if open_cases else ""


_DOORS = (
    (_EVERYONE, {101}),
    (_SENDER, set(range(102, 200))),
    (_HELLO, {801, 802, *range(701, 706)}),
    (_TLS, {808, 809}),
    (_XCLIENT, {810}),
    (_PROXY, {811, 812}),
    (_SMUGGLED, set(range(901, 1000))),
)

_LAB = "This is a lab: "
_OPEN_ON_PURPOSE = "It is a lab, an open relay on purpose: nothing is to be done while only those reach it whom `posthouse check` names."
_TRUSTS_ITSELF = (
    "A Posthouse relays for its own machine, which is no fault: test it from an address that it does not trust, with --source "
    "127.0.0.2 on loopback, or from another machine; `posthouse check` on it says whom it trusts."
)
_POSTFIX_CLOSED = "smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination"
_REMEDIES: dict[tuple[str, str], tuple[str, tuple[str, ...], str]] = {
    ("", _EVERYONE): (
        "It relays for everyone: relay only for your own networks and for users who log in, and see that no gateway, load "
        "balancer or container bridge makes strangers look like your own network.",
        (),
        "",
    ),
    ("", _SENDER): (
        "It trusts the sender's word: anybody can claim any reverse-path. Let networks and logins decide, never MAIL FROM.",
        (),
        "",
    ),
    ("", _TRICK): (
        "It reads a second address inside the recipient: refuse local parts with %, !, @, : or quotes from strangers.",
        (),
        "",
    ),
    ("", _HELLO): ("It trusts the name in EHLO: anybody can claim any name. Let networks and logins decide.", (), ""),
    ("", _TLS): ("It relays for whoever speaks TLS or tries to log in: require a login that succeeded.", (), ""),
    ("", _PROXY): (
        "It believes a PROXY header from anyone: take it only from your proxies' addresses, or shut that port to all others.",
        (),
        "",
    ),
    ("", _XCLIENT): ("It believes XCLIENT from anyone: allow it to your proxies only.", (), ""),
    ("", _SMUGGLED): (
        "It, or a host behind it, takes a line ending that is none for the end of a mail: update it, and have it refuse bare "
        "CR and LF.",
        (),
        "https://www.postfix.org/smtp-smuggling.html",
    ),
    ("postfix", _EVERYONE): (
        "It relays for everyone: take from mynetworks what is not yours (and any gateway or container bridge), and refuse "
        "what is left.",
        ("mynetworks = 127.0.0.0/8 [::1]/128", _POSTFIX_CLOSED),
        "https://www.postfix.org/SMTPD_ACCESS_README.html",
    ),
    ("postfix", _SENDER): (
        "An access table lets senders through before reject_unauth_destination: put that restriction in front of every "
        "check_sender_access.",
        (_POSTFIX_CLOSED,),
        "https://www.postfix.org/SMTPD_ACCESS_README.html#danger",
    ),
    ("postfix", _TRICK): (
        "It reads routing tricks inside local parts: turn them off, and check destinations in smtpd_relay_restrictions.",
        ("allow_percent_hack = no", "swap_bangpath = no", "allow_untrusted_routing = no", _POSTFIX_CLOSED),
        "https://www.postfix.org/postconf.5.html#allow_untrusted_routing",
    ),
    ("postfix", _HELLO): (
        "An access table trusts a HELO name: put reject_unauth_destination in front of every check_helo_access.",
        (_POSTFIX_CLOSED,),
        "https://www.postfix.org/SMTPD_ACCESS_README.html#danger",
    ),
    ("postfix", _TLS): (
        "It relays for every TLS client: take out permit_tls_all_clientcerts, or use relay_clientcerts with "
        "permit_tls_clientcerts.",
        (_POSTFIX_CLOSED,),
        "https://www.postfix.org/TLS_README.html",
    ),
    ("postfix", _PROXY): (
        "Its PROXY port is open to strangers: bind it to an address that only the proxy reaches.",
        ("smtpd_upstream_proxy_protocol =",),
        "https://www.postfix.org/POSTSCREEN_README.html#proxy",
    ),
    ("postfix", _XCLIENT): (
        "It believes XCLIENT from strangers.",
        ("smtpd_authorized_xclient_hosts =",),
        "https://www.postfix.org/XCLIENT_README.html",
    ),
    ("postfix", _SMUGGLED): (
        "It takes a bare LF for a line's end.",
        ("smtpd_forbid_bare_newline = normalize", "smtpd_forbid_unauth_pipelining = yes"),
        "https://www.postfix.org/smtp-smuggling.html",
    ),
    ("exim", _EVERYONE): (
        "It relays for everyone: take from relay_from_hosts what is not yours, and keep the `require` for domains below it.",
        (
            "hostlist relay_from_hosts = localhost",
            "require message = relay not permitted",
            "  domains = +local_domains : +relay_to_domains",
        ),
        "https://www.exim.org/exim-html-current/doc/html/spec_html/ch-access_control_lists.html",
    ),
    ("exim", _TRICK): (
        "It lets routing characters in local parts through: deny them in acl_smtp_rcpt, as the default configuration does.",
        ("deny local_parts = ^[.] : ^.*[@%!/|]", "  message = restricted characters in address"),
        "https://www.exim.org/exim-html-current/doc/html/spec_html/ch-the_default_configuration_file.html",
    ),
    ("opensmtpd", _EVERYONE): (
        "A match rule relays from any: let only local clients and logins relay.",
        ('match from local for any action "relay"', 'match auth from any for any action "relay"'),
        "https://man.openbsd.org/smtpd.conf",
    ),
    ("sendmail", _EVERYONE): (
        "It relays for everyone: take FEATURE(promiscuous_relay) out of sendmail.mc, and RELAY lines that are too wide out of "
        "the access table.",
        ("dnl FEATURE(`promiscuous_relay')dnl", "FEATURE(`access_db')dnl"),
        "https://www.sendmail.org/tips/relaying",
    ),
    ("sendmail", _SENDER): (
        "It relays by the sender's word: take FEATURE(relay_local_from) and FEATURE(relay_mail_from) out of sendmail.mc.",
        ("dnl FEATURE(`relay_local_from')dnl", "dnl FEATURE(`relay_mail_from')dnl"),
        "https://www.sendmail.org/tips/relaying",
    ),
    ("sendmail", _TRICK): (
        "It follows routes in addresses: take FEATURE(loose_relay_check) out of sendmail.mc.",
        ("dnl FEATURE(`loose_relay_check')dnl",),
        "https://www.sendmail.org/tips/relaying",
    ),
    ("exchange", _EVERYONE): (
        "A receive connector lets anonymous users send to any recipient: take that right away, or narrow the connector's "
        "remote IP ranges.",
        (
            "Get-ReceiveConnector NAME | Remove-ADPermission -User 'NT AUTHORITY\\ANONYMOUS LOGON' "
            "-ExtendedRights ms-Exch-SMTP-Accept-Any-Recipient",
        ),
        "https://learn.microsoft.com/exchange/mail-flow/connectors/allow-anonymous-relay",
    ),
    ("haraka", _EVERYONE): (
        "A plugin sets relaying for everyone: look into config/relay_acl_allow and config/relay.ini ([relay] all).",
        (),
        "https://haraka.github.io/plugins/relay",
    ),
    ("kumomta", _EVERYONE): (
        "The listener's relay_hosts hold everyone.",
        ("relay_hosts = { '127.0.0.1' }",),
        "https://docs.kumomta.com/reference/kumo/start_esmtp_listener/",
    ),
    ("posthouse", _EVERYONE): (
        "Its trusted_networks hold whoever came here, most likely a gateway that hides strangers: run `posthouse check` on it.",
        (),
        "",
    ),
}
