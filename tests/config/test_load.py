"""What a configuration may say, what it means, and what each mistake is answered."""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.config import (
    ConfigError,
    LineEndings,
    ListenerRole,
    LoginSettings,
    ProxyUse,
    TlsSettings,
    default_config,
    find_local,
    find_warnings,
    load_config,
    load_text,
)
from posthouse.config import settings as settings_module
from posthouse.config.keys import SECTIONS

WHOLE = """\
hostname   = "MX.Example.org."
data_dir   = "data"
workers    = 3
postmaster = "postmaster@example.org"
user       = "posthouse"
accounts   = "logins"

[[listener]]
address = "0.0.0.0:25"

[[listener]]
address = "[2001:db8::1]:465"
role    = "submission"
tls     = { certificate = "cert.pem", key = "/etc/key.pem", implicit = true }

[[listener]]
address = "10.0.0.2:25"
proxy   = "required"
proxies = ["10.0.0.9", "10.1.0.0/16"]
line_endings = "normalize"

[relay]
local_domains    = ["example.org", ".Bücher.example"]
relay_domains    = ["dept.example.org"]
trusted_networks = ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"]
gateways_as_strangers = ["192.0.2.1"]
gateways_trusted      = ["192.0.2.2"]
recipients       = "recipients.txt"

[aliases]
Postmaster = ["admin@example.org"]
info = ["postmaster@example.org", "sales@Example.com"]
"@bücher.example" = ["admin@example.org"]

[[route]]
domain = "dept.example.org"
to     = ["smtp://10.0.0.5", "smtps://[2001:db8::5]"]
allow_networks = ["10.0.0.0/8"]

[[route]]
domain  = "*"
to      = "smtp://smart.example.net:587"
login   = { user = "u", password_file = "smart.password" }
source_address = "192.0.2.25"
hello_name     = "out.example.org"
reverse_path   = "{local_part}@out.example.org"

[[route]]
domain  = ["example.org", "lists.example.org"]
to      = ["pipe:"]
command = ["/usr/local/bin/list", "{local_part}"]

[[route]]
domain = ".bücher.example"
to = ["maildir:mail/{local_part}"]

[limits]
message_size = "10MiB"
command_timeout = 30

[retry]
first = "90s"
give_up = "2d"

[resolver]
servers = ["127.0.0.1:5353", "::1"]

[history]
days = 7
size = "1.5GB"

[log]
format = "json"

[metrics]
listen = "127.0.0.1:9125"
"""


def load(text, directory=Path("/etc/posthouse")):
    return load_text(text, directory / "posthouse.toml")


def test_every_section_is_read():
    config = load(WHOLE)
    assert config.hostname == "mx.example.org"
    assert config.data_dir == Path("/etc/posthouse/data")
    assert (config.workers, config.postmaster, config.user) == (3, "postmaster@example.org", "posthouse")
    assert config.accounts == Path("/etc/posthouse/logins")
    assert [(listener.host, listener.port) for listener in config.listeners] == [
        ("0.0.0.0", 25),
        ("2001:db8::1", 465),
        ("10.0.0.2", 25),
    ]
    assert config.listeners[1].role is ListenerRole.SUBMISSION
    assert config.listeners[1].tls == TlsSettings(Path("/etc/posthouse/cert.pem"), Path("/etc/key.pem"), True)
    assert config.listeners[2].proxy is ProxyUse.REQUIRED
    assert config.listeners[2].proxies == ("10.0.0.9", "10.1.0.0/16")
    assert config.listeners[2].line_endings is LineEndings.NORMALIZE
    assert config.relay.local_domains == ("example.org", ".xn--bcher-kva.example")
    assert config.relay.trusted_networks == ("192.0.2.0/24", "2001:db8::/32", "198.51.100.7")
    assert config.relay.recipients == Path("/etc/posthouse/recipients.txt")
    assert dict(config.aliases) == {
        "postmaster": ("admin@example.org",),
        "info": ("postmaster@example.org", "sales@example.com"),
        "@xn--bcher-kva.example": ("admin@example.org",),
    }
    assert config.routes[0].to == ("smtp://10.0.0.5:25", "smtps://[2001:db8::5]:465")
    assert config.routes[1].to == ("smtp://smart.example.net:587",)
    assert config.routes[1].login == LoginSettings("u", Path("/etc/posthouse/smart.password"))
    assert config.routes[1].tls == "required", "a password does not go in the clear unless told to"
    assert config.routes[1].reverse_path == "{local_part}@out.example.org"
    assert config.routes[2].domain == ("example.org", "lists.example.org")
    assert config.routes[3].to == ("maildir:/etc/posthouse/mail/{local_part}",)
    assert len(config.routes) == 4
    assert (config.limits.message_size, config.limits.command_timeout) == (10 * 2**20, 30)
    assert (config.retry.first, config.retry.give_up) == (90, 2 * 86400)
    assert config.resolver.servers == (("127.0.0.1", 5353), ("::1", 53))
    assert (config.history.days, config.history.size) == (7, 1_500_000_000)
    assert config.log.format == "json"
    assert (config.metrics.host, config.metrics.port) == ("127.0.0.1", 9125)


def test_an_empty_file_means_the_embedded_default():
    config, default = load("", Path("/home/me")), default_config()
    assert (config.listeners, config.routes, config.relay) == (default.listeners, default.routes, default.relay)
    assert [(listener.host, listener.port) for listener in default.listeners] == [("127.0.0.1", 2525)]
    assert default.relay.trusted_networks == ("127.0.0.1", "::1")
    assert (default.routes[0].domain, default.routes[0].to) == (("*",), ("mx:",))


def test_the_rest_goes_by_mx_when_no_route_says_otherwise():
    config = load('[[route]]\ndomain = "a.example"\nto = "smtp://10.0.0.1"\n')
    assert [(route.domain, route.to) for route in config.routes] == [
        (("a.example",), ("smtp://10.0.0.1:25",)),
        (("*",), ("mx:",)),
    ]


def test_data_are_in_the_users_state_directory_and_of_a_system_file_in_var_lib(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    assert load("", Path("/home/me")).data_dir == Path("/home/me/state/posthouse")
    assert load("").data_dir == Path("/var/lib/posthouse")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_config().data_dir == Path("/home/me/.local/state/posthouse")


def test_a_password_for_this_machine_needs_no_tls():
    route = '[[route]]\ndomain = "*"\nto = "smtp://127.0.0.1:2500"\nlogin = { user = "u", password_file = "p" }\n'
    assert load(route).routes[0].tls == "opportunistic"


ROUTE = '[[route]]\ndomain = "*"\n'
LISTENER = '[[listener]]\naddress = "127.0.0.1:25"\n'

MISTAKES = {
    "unknown key": ('\nhostnam = "x"', 2, "hostnam; did you mean hostname?"),
    "unknown key of a section": (
        '[relay]\ntrusted_network = ["10.0.0.1"]',
        2,
        "[relay] has no key trusted_network; did you mean trusted_networks?",
    ),
    "unknown key of the second listener": (
        LISTENER + '[[listener]]\naddress = "[::1]:25"\nroles = "relay"',
        5,
        "did you mean role?",
    ),
    "unknown section": ("[relays]\n", 1, "relays; did you mean relay?"),
    "key in the wrong section": ("[relay]\nworkers = 2", 2, "it belongs in the top of the file"),
    "key of another section": ("[log]\ntrusted_networks = []", 2, "it belongs in [relay]"),
    "unknown key in an inline table": (
        LISTENER + 'tls = { certificate = "c", key = "k", implict = true }',
        3,
        "implicit",
    ),
    "section for later": ('[dns]\nlisten = "0.0.0.0:53"', 1, "not built yet in this version"),
    "role for later": (
        '[[listener]]\naddress = "127.0.0.1:25"\nrole = "trap"',
        3,
        "'trap', which is known but not built yet",
    ),
    "unknown role": ('[[listener]]\naddress = "127.0.0.1:25"\nrole = "relais"', 3, '"relay", "submission"'),
    "one bracket": ('[listener]\naddress = "127.0.0.1:25"', 1, "[[listener]] with two brackets"),
    "section as a value": ("relay = 5", 1, "[relay] must be a table, not a number"),
    "no address": ('[[listener]]\nrole = "relay"', 1, "[[listener]] needs the key address"),
    "number for text": ("hostname = 5", 1, "hostname must be a string, not a number"),
    "text for number": ('workers = "2"', 1, "workers must be a whole number, not a string"),
    "true for number": ("workers = true", 1, "must be a whole number, not true or false"),
    "no workers": ("workers = 0", 1, "it must be between 1 and 256"),
    "text for array": ('[relay]\nlocal_domains = "example.org"', 2, "must be an array"),
    "not a domain": (
        '[relay]\nrelay_domains = [\n  "example.org",\n  "exa mple",\n]',
        4,
        "'exa mple' is not a domain name",
    ),
    "address for domain": ('[relay]\nrelay_domains = ["me@example.org"]', 2, "is an address; a domain is wanted"),
    "star dot domain": ('[relay]\nrelay_domains = ["*.example.org"]', 2, 'subdomains are written ".example.org"'),
    "host bits": ('[relay]\ntrusted_networks = ["192.0.2.5/24"]', 2, 'write "192.0.2.0/24" for the network'),
    "name as network": ('[relay]\ntrusted_networks = ["localhost"]', 2, "names are not looked up"),
    "no port": ('[[listener]]\naddress = "127.0.0.1"', 2, "needs a port between"),
    "port too large": ('[[listener]]\naddress = "127.0.0.1:65536"', 2, "needs a port between"),
    "star as address": ('[[listener]]\naddress = "*:25"', 2, 'write "0.0.0.0:25" and "[::]:25"'),
    "naked ipv6": ('[[listener]]\naddress = "::1:25"', 2, 'in brackets, "[2001:db8::1]:25"'),
    "same address twice": (LISTENER + LISTENER, 4, "127.0.0.1:25 is given twice"),
    "proxy without proxies": (LISTENER + 'proxy = "required"', 3, "`proxies` names nobody"),
    "proxies without proxy": (LISTENER + 'proxies = ["10.0.0.1"]', 3, 'counts only with proxy = "required"'),
    "tls without key": (LISTENER + 'tls = { certificate = "c" }', 3, "[[listener]] tls needs the key key"),
    "route without to": (ROUTE, 1, "[[route]] needs the key to"),
    "route to nowhere": (ROUTE + "to = []", 3, "name at least one"),
    "route to a name": (ROUTE + 'to = ["smart.example.net"]', 3, "expected a scheme"),
    "route with one slash": (
        ROUTE + 'to = ["smtp:smart.example.net"]',
        3,
        "needs two slashes, smtp://smart.example.net",
    ),
    "route with login in the url": (ROUTE + 'to = ["smtp://me:pw@smart.example.net"]', 3, "a login stands in `login`"),
    "route with a path": (ROUTE + 'to = ["smtp://smart.example.net/x"]', 3, "expected a host and a port"),
    "route for later": (ROUTE + 'to = ["uucp:"]', 3, "known but not built yet"),
    "maildir without path": (ROUTE + 'to = ["maildir:"]', 3, "needs a directory"),
    "maildir with a wrong field": (ROUTE + 'to = ["maildir:/x/{user}"]', 3, "only {local_part}"),
    "pipe in the url": (ROUTE + 'to = ["pipe:/bin/cat"]', 3, "stands in `command`"),
    "pipe without command": (ROUTE + 'to = ["pipe:"]', 1, "command is missing"),
    "command without pipe": (ROUTE + 'to = "mx:"\ncommand = ["/bin/cat"]', 4, 'counts only with to = ["pipe:"]'),
    "command by PATH": (ROUTE + 'to = "pipe:"\ncommand = ["cat"]', 4, "give its path"),
    "command with a wrong field": (
        ROUTE + 'to = "pipe:"\ncommand = ["/bin/cat", "{sender}"]',
        4,
        "only {local_part}, {domain}, {forward_path}, {reverse_path}, {queue_id} can be",
    ),
    "command chosen by the recipient": (
        ROUTE + 'to = "pipe:"\ncommand = ["/bin/{local_part}"]',
        4,
        "may not choose its program",
    ),
    "login by mx": (
        ROUTE + 'to = "mx:"\nlogin = { user = "u", password_file = "p" }',
        4,
        "a password is for one known host",
    ),
    "two routes for one domain": (ROUTE + 'to = "mx:"\n' + ROUTE + 'to = "mx:"', 5, "already has a route"),
    "tls word": (ROUTE + 'to = "mx:"\ntls = true', 4, "'required'"),
    "local domain without a route": (
        '[relay]\nlocal_domains = ["a.example", "b.example"]\n[[route]]\ndomain = "a.example"\nto = "maildir:/x"',
        2,
        "'b.example', but no [[route]] delivers it here",
    ),
    "local domain by mx": (
        '[relay]\nlocal_domains = ["a.example"]\n[[route]]\ndomain = "a.example"\nto = "mx:"',
        2,
        "no [[route]] delivers it here",
    ),
    "everything local, handed on": (
        '[relay]\nlocal_domains = ["*"]\n' + ROUTE + 'to = "smtp://10.0.0.1"',
        2,
        "would relay for strangers",
    ),
    "local and relay": (
        '[relay]\nlocal_domains = ["a.example"]\nrelay_domains = ["a.example"]\n' + ROUTE + 'to = "smtp://10.0.0.1"',
        3,
        "can be only one",
    ),
    "gateway both ways": (
        '[relay]\ngateways_trusted = ["10.0.0.1"]\ngateways_as_strangers = ["10.0.0.1"]',
        2,
        "decide for one",
    ),
    "size word": ('[limits]\nmessage_size = "50 Megs"', 2, '"50MB", "64MiB" or a number of octets, not \'50 Megs\''),
    "negative size": ("[limits]\nmessage_size = -1", 2, "more than zero"),
    "time word": ('[retry]\nfirst = "soon"', 2, '"5m"'),
    "infinite time": ("[retry]\nfirst = inf", 2, "within reason"),
    "retry backwards": ('[retry]\nfirst = "2h"\nlongest = "1h"', 3, "shorter than `first`"),
    "errors backwards": ("[limits]\nerrors_close = 3", 1, "smaller than errors_slow"),
    "log format": ('[log]\nformat = "xml"', 2, "'auto', 'text', 'json'"),
    "resolver by name": ('[resolver]\nservers = ["dns.example"]', 2, "is not an IP address and port"),
    "alias without array": ('[aliases]\ninfo = "me@example.org"', 2, 'info = ["someone@example.org"]'),
    "alias to nobody": ("[aliases]\ninfo = []", 2, "leads to nobody"),
    "alias to nothing known": (
        '[aliases]\na = ["b@example.org"]\ninfo = ["nobody"]',
        3,
        "which has no domain",
    ),
    "alias to a name": ('[aliases]\na = ["b"]\nb = ["a"]', 2, "which has no domain; write b@ and the domain"),
    "alias to a program": ('[aliases]\ninfo = ["|/bin/rm"]', 2, "programs are run by a [[route]]"),
    "alias twice": ('[aliases]\ninfo = ["a@example.org"]\nInfo = ["a@example.org"]', 3, "letter case does not count"),
    "postmaster without a domain": ('postmaster = "root"', 1, "is not a mail address"),
    "control characters": ('user = "a\\u0000b"', 1, "control characters"),
    "not toml": ("hostname = \n", 1, "this is not TOML"),
    "section twice": ("[relay]\nlocal_domains = []\n[log]\n[relay]", 4, "there is a section [relay] above already"),
    "key twice": ("workers = 1\nworkers = 2", 2, "given twice"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_its_line_and_the_remedy(name):
    text, line, words = MISTAKES[name]
    with pytest.raises(ConfigError) as caught:
        load(text)
    sentence = str(caught.value)
    assert words in sentence
    assert sentence.startswith(f"/etc/posthouse/posthouse.toml:{line}: "), sentence
    assert "\n" not in sentence


def test_windows_line_ends_and_a_byte_order_mark_are_taken():
    assert load('\ufeffhostname = "a.example"\r\nworkers = 1\r\n').hostname == "a.example"


def test_a_command_that_needs_the_data_directory_alone_reads_the_file_as_all_others_do(tmp_path):
    path = tmp_path / "posthouse.toml"
    path.write_text('\ufeffdata_dir = "here"\r\n')
    assert find_local(path).data_dir == tmp_path / "here"
    path.write_text("[relay]\n[relay]\n")
    for read in (find_local, load_config):
        with pytest.raises(ConfigError, match=r"posthouse\.toml:2: there is a section \[relay\] above already"):
            read(path)


def test_a_file_is_found_here_then_in_etc_then_nowhere(tmp_path, monkeypatch):
    system = tmp_path / "etc.toml"
    monkeypatch.setattr("posthouse.config.search.SYSTEM", system)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert load_config().source is None
    system.write_text('hostname = "system.example"')
    assert load_config().hostname == "system.example"
    (here / "posthouse.toml").write_text('hostname = "here.example"')
    assert load_config().hostname == "here.example"
    (tmp_path / "named.toml").write_text('hostname = "named.example"')
    assert load_config(tmp_path / "named.toml").hostname == "named.example"


def test_a_file_here_that_anyone_may_write_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "posthouse.toml").write_text("")
    (tmp_path / "posthouse.toml").chmod(0o666)
    with pytest.raises(ConfigError, match="not trusted"):
        load_config()


def test_an_unusable_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; `posthouse init` writes one"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="larger than 1000000 octets"):
        load_config(large)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"hostname = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(binary)
    deep = tmp_path / "deep.toml"
    deep.write_text("a = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(deep)
    if os.geteuid() != 0:
        large.chmod(0)
        with pytest.raises(ConfigError, match="Permission denied"):
            load_config(large)


def test_a_password_that_may_go_in_the_clear_is_worth_a_warning():
    route = ROUTE + 'to = "smtp://smart.example.net"\ntls = "never"\nlogin = { user = "u", password_file = "p" }\n'
    assert "in the clear" in find_warnings(load(route))[0]
    for safe in (("smtp://", "smtps://"), ("smart.example.net", "127.0.0.1"), ("never", "opportunistic")):
        assert find_warnings(load(route.replace(*safe))) == []
    second = route.replace('"smtp://smart.example.net"', '["smtps://a.example.net", "smtp://b.example.net"]')
    assert [words for words in find_warnings(load(second)) if "smtp://b.example.net:25" in words]
    assert find_warnings(default_config()) == []
    submission = '[[listener]]\naddress = "0.0.0.0:587"\nrole = "submission"\n'
    assert "has no tls" in find_warnings(load(submission))[0]


VALUES = [
    "0", "-1", "10_000_000_000_000_000", "1.5", "nan", "inf", "true", '""', '"\\u0000"', '"x"', '"*"', '"."', '".a"', '"[::1]:25"',
    '"[v6]"', '"é.example"', '"1.2.3.4"', '"0.0.0.0/0"', '"a@b"', '"@"', '"mx:"', '"mx::"', '"smtp://"', '"smtp://[::1"',
    '"smtp://a:b"', '"lmtp:///"', '"maildir:{"', '"pipe:"', '"5m"', '"50MB"', "[]", "[[]]", '["x"]', "[1]", "{}", "{ a = 1 }",
    "1979-05-27", "07:32:00",
]  # fmt: skip


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_a_file_is_taken_or_answered_with_a_sentence(data):
    lines = WHOLE.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(lines) - 1))
        key, equals, _ = lines[number].partition("=")
        change = data.draw(st.sampled_from(["value", "drop", "double", "text"]))
        if change == "value" and equals:
            lines[number] = f"{key}= {data.draw(st.sampled_from(VALUES))}"
        elif change == "drop":
            lines[number] = ""
        elif change == "double":
            lines.insert(number, lines[number])
        else:
            lines[number] = data.draw(st.text(max_size=20))
    sentence = ""
    try:
        load("\n".join(lines))
    except ConfigError as error:
        sentence = str(error)
    assert "\n" not in sentence


def test_every_public_name_of_the_package_is_there():
    import posthouse.config

    assert all(getattr(posthouse.config, name) for name in posthouse.config.__all__)


SECTION_STRUCTS = {
    "listener.tls": "TlsSettings",
    "relay": "RelaySettings",
    "route": "RouteSettings",
    "route.login": "LoginSettings",
    "limits": "LimitSettings",
    "retry": "RetrySettings",
    "resolver": "ResolverSettings",
    "history": "HistorySettings",
    "log": "LogSettings",
}


@pytest.mark.parametrize("section", SECTION_STRUCTS)
def test_the_table_of_keys_and_the_structs_agree(section):
    fields = {field.name for field in msgspec.structs.fields(getattr(settings_module, SECTION_STRUCTS[section]))}
    assert fields == set(SECTIONS[section].names)
