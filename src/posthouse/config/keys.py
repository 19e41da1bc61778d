"""Every key there is, with the words that docs/configuration.md prints. A key that is not here is an error in a file."""

import msgspec


class Key(msgspec.Struct, frozen=True):
    """One key: its name, the kind of its value and its default in words, and what it means."""

    name: str
    kind: str
    default: str
    meaning: str


class Section(msgspec.Struct, frozen=True):
    """One table. `is_repeated`: written with two brackets, any number of times."""

    about: str
    keys: tuple[Key, ...]
    is_repeated: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The keys' names."""
        return tuple(key.name for key in self.keys)


LATER_SECTIONS = {
    "dns": "the blocklist's DNS server",
}
LATER_ROLES = ("trap",)

_TOP = Section(
    "Keys at the top of the file, before the first section.",
    (
        Key(
            "hostname",
            "host name",
            "the machine's",
            "What this server calls itself: in its greeting, EHLO, Received fields and notices.",
        ),
        Key(
            "data_dir",
            "path",
            "$XDG_STATE_HOME/posthouse or ~/.local/state/posthouse; for a file below /etc: /var/lib/posthouse",
            "Where the queue, the accounts and the control sockets are. Made when missing; used by one server at a time.",
        ),
        Key(
            "workers",
            "number",
            "one per core",
            "Processes that accept and deliver, each with its own part of the queue.",
        ),
        Key(
            "postmaster",
            "mail address",
            "none",
            "Where mail for `<postmaster>` and the weekly usage report go. An entry in [aliases] comes first.",
        ),
        Key(
            "accounts",
            "path",
            "`accounts` in data_dir",
            "The file of logins and password hashes that `posthouse user` keeps.",
        ),
        Key(
            "user",
            "user name",
            "stay who started it",
            "Whom the server becomes when started as root, after it has bound its ports.",
        ),
        Key("listener", "sections", "one on 127.0.0.1:2525, role relay", "See [[listener]]."),
        Key("relay", "section", "", "See [relay]."),
        Key("aliases", "section", "none", "See [aliases]."),
        Key("route", "sections", "`*` to `mx:`", "See [[route]]."),
        Key("limits", "section", "", "See [limits]."),
        Key("retry", "section", "", "See [retry]."),
        Key("resolver", "section", "", "See [resolver]."),
        Key("history", "section", "", "See [history]."),
        Key("log", "section", "", "See [log]."),
        Key("metrics", "section", "off", "See [metrics]."),
        Key("collector", "section", "none", "See [collector]."),
        Key("tester", "section", "", "See [tester]."),
        Key("web", "section", "off", "See [web]."),
        Key("watch", "section", "off", "See [watch]."),
    ),
)

_LISTENER = Section(
    "An address that accepts SMTP. Without any, there is one of role `relay` on 127.0.0.1:2525.",
    (
        Key(
            "address",
            "address:port",
            "required",
            'Where to listen: "0.0.0.0:25", "[::]:25". Port 0 lets the kernel choose; the `ready` line tells what it chose.',
        ),
        Key(
            "role",
            "relay, submission, collector or lab",
            "relay",
            "`relay` takes mail from anyone for local and relay domains, and for anywhere from trusted networks and logins. "
            "`submission` demands a login before MAIL (530); trusted networks do not count there. "
            "`collector` takes the probes of relay tests and nothing else (see [collector]). "
            "`lab` is an open relay on purpose, within bounds (see [[listener]] lab).",
        ),
        Key(
            "tls",
            "table",
            "no TLS",
            "A certificate for STARTTLS, or for TLS from the first byte. See [[listener]] tls.",
        ),
        Key(
            "proxy",
            "off or required",
            "off",
            "`required`: each connection must begin with a PROXY header (v1 or v2) from one of `proxies`, else there is no session.",
        ),
        Key(
            "proxies", "addresses or networks", "none", 'Who may send a PROXY header. Needed with `proxy = "required"`.'
        ),
        Key(
            "line_endings",
            "strict or normalize",
            "strict",
            "`strict` refuses a message with a bare CR or LF; `normalize` turns them into CRLF, for broken devices.",
        ),
        Key("lab", "table", "none", "The bounds of a listener of role `lab`. See [[listener]] lab."),
    ),
    is_repeated=True,
)

_LISTENER_TLS = Section(
    "The certificate of a listener. The files are read again on SIGHUP.",
    (
        Key("certificate", "path", "required", "PEM file with the certificate and its chain."),
        Key("key", "path", "required", "PEM file with the private key, without a passphrase."),
        Key("implicit", "true or false", "false", "true: TLS from the first byte (port 465); false: STARTTLS."),
    ),
)

_LISTENER_LAB = Section(
    "The bounds of a listener of role `lab`, an open relay for teaching and for testing testers (docs/lab.md). "
    "Any other shape is refused at start and at reload.",
    (
        Key(
            "destinations",
            "domains",
            "required",
            "The only domains it relays to: `example.org`, or `.example.org` for subdomains; never `*`.",
        ),
        Key(
            "until",
            "date or date and time",
            "required",
            "When it closes (UTC unless it says otherwise), at most 30 days ahead. Afterwards it refuses everything, "
            "in a running server too.",
        ),
        Key(
            "networks",
            "addresses or networks",
            '["127.0.0.0/8", "::1"], for a listener on a loopback address only',
            "For whom it is open. A public network may hold at most 256 addresses (IPv6: a /64).",
        ),
    ),
)

_RELAY = Section(
    "Who may send what. Domains are written `example.org` (that one), `.example.org` (its subdomains) or `*` (all).",
    (
        Key(
            "local_domains",
            "domains",
            "none",
            "Final destination here: anyone may send to them, and a [[route]] to lmtp, maildir, pipe or an inner server delivers them.",
        ),
        Key("relay_domains", "domains", "none", "Relayed for anyone, to these domains only."),
        Key(
            "trusted_networks",
            "addresses or networks",
            '["127.0.0.1", "::1"]',
            "Who may relay to anywhere without a login.",
        ),
        Key(
            "gateways_as_strangers",
            "addresses",
            "none",
            "Gateways of this machine inside a trusted network that get no grant: behind them every stranger looks local.",
        ),
        Key(
            "gateways_trusted",
            "addresses",
            "none",
            "Gateways of this machine inside a trusted network that are trusted all the same, on purpose.",
        ),
        Key(
            "recipients",
            "path",
            "every recipient is taken",
            "A file with the only valid recipients of local and relay domains, one address a line, `@example.org` for a whole domain, "
            "a name without a domain for each local domain, "
            "`#` for remarks. Others get 550 5.1.1 at RCPT.",
        ),
    ),
)

_ALIASES = Section(
    "Other names for recipients. Each key is a local part (in every local domain, and at `hostname`: cron writes to `root` "
    "there), a whole address, or `@example.org` for all of a domain that has no alias of its own; the value is an array of "
    "addresses, the address itself among them to keep a copy. `<postmaster>` without a domain is always accepted "
    "(RFC 5321 4.5.1).",
    (),
)

_ROUTE = Section(
    "How mail for some domains leaves. The nearest pattern wins: the domain itself, then the longest `.parent`, then `*`; "
    'order in the file does not matter. Without a route for `*`, the rest goes to the MX hosts of its own domains (`to = ["mx:"]`).',
    (
        Key(
            "domain",
            "domain or domains",
            "required",
            'Which recipients: "example.org", ".example.org", "*", or an array of them.',
        ),
        Key(
            "to",
            "next hop or next hops",
            "required",
            "Tried in order: `mx:` (the recipient's domain in DNS), `mx:NAME:PORT` (MX hosts of NAME), `smtp://HOST:PORT` (25), "
            "`smtps://HOST:PORT` (465), `lmtp://HOST:PORT` (24), `lmtp:///SOCKET`, `maildir:PATH`, `pipe:`. "
            "`{local_part}` in a Maildir's path is filled in for plain local parts only.",
        ),
        Key("login", "table", "none", "What to log in with at the next hop. See [[route]] login."),
        Key(
            "tls",
            "opportunistic, required, verified or never",
            "opportunistic; required with a login at another machine",
            "`opportunistic` uses STARTTLS where offered; `required` defers without it; `verified` also demands a valid certificate "
            "for the host's name; `never` does not try, and sends a password in the clear, wherever that goes.",
        ),
        Key("source_address", "IP address", "the system's choice", "The address that connections come from."),
        Key("hello_name", "host name", "hostname", "What we call ourselves in EHLO."),
        Key(
            "reverse_path",
            "mail address",
            "as it came",
            "Replaces the envelope's reverse-path: a fixed address, or `{local_part}@new.example` to change the domain alone. "
            "The null reverse-path of notices stays.",
        ),
        Key(
            "allow_networks",
            "addresses or networks",
            "none",
            "Private, loopback and link-local next hops found through DNS are refused unless they lie in one of these. "
            "Next hops written as addresses need no such leave.",
        ),
        Key(
            "command",
            "arguments",
            "needed by pipe:",
            "The program and its arguments, never a shell. `{local_part}`, `{domain}`, `{forward_path}`, `{reverse_path}` (empty for "
            "notices) and `{queue_id}` are filled in.",
        ),
        Key("concurrency", "number", "20", "The most connections to one site at a time, over all workers."),
    ),
    is_repeated=True,
)

_ROUTE_LOGIN = Section(
    "SMTP AUTH at a smart host.",
    (
        Key("user", "text", "required", "The login."),
        Key(
            "password_file",
            "path",
            "required",
            "A file whose first line is the password. Keep it readable by the server alone.",
        ),
    ),
)

_LIMITS = Section(
    'Bounds on what clients may do. Sizes are octets or "50MB", "64MiB"; times are seconds or "5m".',
    (
        Key("message_size", "size", "50MB", "The largest message; told to clients by SIZE."),
        Key("header_size", "size", "256KiB", "The largest header section."),
        Key(
            "recipients_stranger",
            "number",
            "100",
            "Recipients of one message from a client without a relaying right (452 4.5.3 for more).",
        ),
        Key("recipients_trusted", "number", "1000", "Recipients of one message from a client with one."),
        Key(
            "hops",
            "number",
            "100",
            "Received fields at which a message counts as looping (RFC 5321 6.3 asks for at least 100).",
        ),
        Key(
            "connections",
            "number",
            "10000",
            "Sessions at a time, of one worker; fewer where its file descriptors (`LimitNOFILE`) do not allow so many.",
        ),
        Key(
            "connections_per_client",
            "number",
            "50",
            "Sessions at a time from one client address (IPv6: from one /64), over all workers. Trusted networks are exempt.",
        ),
        Key("session_messages", "number", "1000", "Messages in one session, then 421. Trusted networks are exempt."),
        Key("errors_slow", "number", "5", "Refused commands in one session until answers are slowed."),
        Key("errors_close", "number", "10", "Refused commands in one session until it is closed with 421."),
        Key("command_timeout", "time", "5m", "How long a client may take for one command (RFC 5321 4.5.3.2)."),
        Key("content_timeout", "time", "10m", "How long a client may be silent within a message."),
        Key(
            "minimum_rate",
            "number",
            "500",
            "Octets a second below which a message is taken for a stalled one. 0 turns this off.",
        ),
        Key("free_space", "size", "1GB", "Disk space kept free: below it, messages get 452 until there is room again."),
    ),
)

_RETRY = Section(
    "When a deferred recipient is tried again. Each wait is `factor` times the one before, with some jitter.",
    (
        Key("first", "time", "5m", "The first wait."),
        Key("longest", "time", "4h", "The longest wait."),
        Key("factor", "number", "1.7", "How fast waits grow; at least 1."),
        Key("give_up", "time", "5d", "After this long in the queue the sender is told that it failed."),
        Key("delay_notice", "time", "4h", "After this long in the queue the sender is told that it is late."),
    ),
)

_RESOLVER = Section(
    "Where MX and address records are asked for.",
    (
        Key("servers", "addresses", "the system's", 'Resolvers, "192.0.2.53" or "127.0.0.1:5353".'),
        Key("timeout", "time", "5s", "How long to wait for one answer."),
    ),
)

_HISTORY = Section(
    "What `posthouse why` and `posthouse usage` remember.",
    (
        Key("days", "number", "14", "How many days."),
        Key("size", "size", "2GB", "How much disk at most; the oldest goes first."),
    ),
)

_LOG = Section(
    "What is written to standard error.",
    (
        Key("format", "auto, text or json", "auto", "`auto`: text on a terminal, JSON lines elsewhere."),
        Key("level", "debug, info, warning or error", "info", "The least that is written."),
    ),
)

_METRICS = Section(
    "Figures in the Prometheus text format.",
    (Key("listen", "address:port", "off", 'Where /metrics is served, "127.0.0.1:9125".'),),
)

_COLLECTOR = Section(
    "Where the probes of relay tests arrive. A listener of role `collector` takes mail that carries a token signed with the "
    "testers' key ([tester] key_file), for these domains; it keeps a receipt and throws the mail away.",
    (
        Key(
            "domains",
            "domain or domains",
            "needed by a listener of role collector",
            "The domains whose mail the collector takes; their MX must lead to the listener. No other listener may own them.",
        ),
        Key("keep", "time", "30d", "How long receipts are kept."),
        Key("per_client", "number", "600", "Probes a minute from one client address, of one worker; 451 beyond."),
        Key("in_all", "number", "6000", "Probes a minute in all, of one worker."),
        Key(
            "ask",
            "address:port",
            "off",
            "Where other testers that share the key may ask for receipts, over HTTP; questions and answers are signed with it.",
        ),
    ),
)

_TESTER = Section(
    "How `test` and `scan` show themselves to the hosts they test, which hosts those may be, and which collector "
    "tells them what arrived (docs/test.md).",
    (
        Key(
            "collector",
            "domain",
            "the first of [collector] domains",
            "The mail domain of the collector: probes are addressed to TOKEN@ this domain.",
        ),
        Key(
            "collector_url",
            "URL",
            "this machine's data_dir",
            "Where the collector of another Posthouse is asked ([collector] ask there): `http://192.0.2.7:8026`.",
        ),
        Key(
            "key_file",
            "path",
            "`tester/key` in data_dir, made when missing",
            "The secret that signs tokens. Testers and the collector they share hold the same.",
        ),
        Key("hello_name", "host name", "hostname", "What the tester calls itself in EHLO."),
        Key(
            "reverse_path",
            "mail address",
            "relay-test@hostname",
            "The reverse-path of probes, where a case does not ask for another.",
        ),
        Key(
            "contact",
            "mail address",
            "postmaster, else postmaster@hostname",
            "Where the owner of a tested host may complain.",
        ),
        Key(
            "own_networks",
            "addresses or networks",
            "none",
            "Networks of yours, whose hosts may be tested without a proof of control. At most 65,536 public addresses in all.",
        ),
        Key(
            "do_not_test",
            "addresses, networks or domains",
            "none",
            "What is never tested, whoever asks: `192.0.2.0/24`, `example.org`, `.example.org`.",
        ),
        Key(
            "do_not_test_file",
            "path",
            "none",
            "More of the same, one a line, `#` for remarks. Read at every test.",
        ),
        Key(
            "tests_per_target",
            "number",
            "24",
            "Tests of one host a day, where it is not this machine or in a private network; at most 1000.",
        ),
        Key("tests_per_day", "number", "1000", "The same for all such hosts together; at most 100000."),
    ),
)

_WEB = Section(
    "The relay test as a service, in a browser and by calling (docs/relay-test-service.md). Without this section nothing of it runs.",
    (
        Key(
            "listen",
            "address:port",
            "required",
            'Where pages are served over HTTP: "127.0.0.1:8025". TLS is for a proxy in front.',
        ),
        Key(
            "call_listen",
            "address:port",
            "off",
            "A bare TCP port: whoever connects is tested and sees the dialogue (`nc HOST PORT`). It takes no PROXY header.",
        ),
        Key(
            "url",
            "URL",
            "the host that each request names",
            "Where the world finds the service, for links in what it prints: `https://relaytest.example.net`.",
        ),
        Key("ports", "numbers", "[25, 465, 587, 2525]", "The ports of a host that are tested."),
        Key(
            "proxies",
            "addresses or networks",
            "none",
            "Proxies of yours in front, whose X-Forwarded-For is believed. Requests that any other proxy passed on are not tested.",
        ),
        Key("at_once", "number", "20", "Tests under way at the same time; others wait."),
        Key("queue", "number", "200", "Tests that may wait; 503 beyond."),
        Key("tests_per_address", "number", "10", "Tests of one address (IPv6: one /64) in an hour; 429 beyond."),
        Key("tests_in_all", "number", "600", "Tests in an hour in all."),
        Key("keep", "time", "7d", "How long results are kept."),
        Key(
            "private_hosts",
            "true or false",
            "false",
            "true: a visitor who shows control of a host name may have it tested at a private or loopback address too, for a "
            "service inside a network. Calling from such an address needs no permission.",
        ),
    ),
)

_WATCH = Section(
    "Has this server tested from outside, again and again: it calls a tester, which tests the address that calls "
    "(docs/self-test.md). A change of verdict goes to `postmaster`.",
    (
        Key(
            "tester",
            "URL",
            "required",
            'The relay test as a service that is asked: "https://relaytest.example.net/". It must be another machine, outside '
            "your networks.",
        ),
        Key("every", "time", "1d", "How often; also after each reload."),
    ),
)

SECTIONS: dict[str, Section] = {
    "": _TOP,
    "listener": _LISTENER,
    "listener.tls": _LISTENER_TLS,
    "listener.lab": _LISTENER_LAB,
    "relay": _RELAY,
    "aliases": _ALIASES,
    "route": _ROUTE,
    "route.login": _ROUTE_LOGIN,
    "limits": _LIMITS,
    "retry": _RETRY,
    "resolver": _RESOLVER,
    "history": _HISTORY,
    "log": _LOG,
    "metrics": _METRICS,
    "collector": _COLLECTOR,
    "tester": _TESTER,
    "web": _WEB,
    "watch": _WATCH,
}
"""Every section by its name; "a.b" is the inline table `b` of section `a`."""
