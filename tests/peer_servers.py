"""Postfix, Exim, Dovecot and Knot, each with the least configuration that a test needs, and what truly arrived at them."""

import contextlib
import email
import email.message
import email.policy
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import dns.exception
import dns.message
import dns.query

from peer_programs import (
    environment,
    free_port,
    greets,
    loopback_address,
    program,
    require_peer,
    run_client,
    running,
    server_directory,
    wait_until,
)

NOBODY = 65534
EXIM_USER = "Debian-exim"


class Arrived:
    """One message as a next hop delivered it into a Maildir."""

    def __init__(self, octets: bytes) -> None:
        self.octets = octets
        self.message: email.message.EmailMessage = email.message_from_bytes(octets, policy=email.policy.default)

    @property
    def reverse_path(self) -> str:
        """The reverse-path, without the angle brackets; "" for a notification."""
        return str(self.message["Return-Path"]).strip("<>")

    @property
    def forward_path(self) -> str:
        """The recipient whom this copy was delivered to."""
        return str(self.message["Delivered-To"] or self.message["Envelope-To"])

    def __repr__(self) -> str:
        return f"<{self.reverse_path}> to <{self.forward_path}>: {self.message['Subject']}"


class NextHop:
    """A server that takes mail for its domains and keeps it."""

    def __init__(self, directory: Path, address: str, port: int) -> None:
        self.directory = directory
        self.address = address
        self.port = port
        self.mail = directory / "mail"

    def arrived(self) -> list[Arrived]:
        """All messages so far, in order of arrival."""
        files = [path for path in self.mail.glob("**/new/*") if path.is_file()]
        return [Arrived(path.read_bytes()) for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]

    def wait_for(self, count: int, seconds: float = 30.0) -> list[Arrived]:
        """The messages, as soon as there are so many."""
        wait_until(lambda: len(self.arrived()) >= count, f"{count} messages at {self.address}:{self.port}", seconds)
        return self.arrived()


# --- Postfix ---------------------------------------------------------------------------------------------------------------

_POSTFIX_SERVICES = (
    "cleanup unix n - n - 0 cleanup",
    "qmgr unix n - n 300 1 qmgr",
    "pickup unix n - n 1 1 pickup",
    "tlsmgr unix - - n 1000? 1 tlsmgr",
    "rewrite unix - - n - - trivial-rewrite",
    "bounce unix - - n - 0 bounce",
    "defer unix - - n - 0 bounce",
    "trace unix - - n - 0 bounce",
    "verify unix - - n - 1 verify",
    "flush unix n - n 1000? 0 flush",
    "proxymap unix - - n - - proxymap",
    "smtp unix - - n - - smtp",
    "relay unix - - n - - smtp",
    "showq unix n - n - - showq",
    "error unix - - n - - error",
    "retry unix - - n - - error",
    "discard unix - - n - - discard",
    "virtual unix - n n - - virtual",
    "lmtp unix - - n - - lmtp",
    "anvil unix - - n - 1 anvil",
    "scache unix - - n - 1 scache",
    "postlog unix-dgram n - n - 1 postlogd",
)
_QUEUES = ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace")
_POSTFIX_USER = "mail"  # some unprivileged user that every machine has
_POSTFIX_GROUP = "news"


def lay_out_postfix(directory: Path, address: str, port: int, settings: Mapping[str, str]) -> Path:
    """Writes the configuration and makes the queue; the configuration's directory."""
    configuration, queue = directory / "etc", directory / "queue"
    for path in (configuration, queue, directory / "data", directory / "mail"):
        path.mkdir()
    for name in _QUEUES:
        (queue / name).mkdir(mode=0o700)
    for name in ("pid", "public", "maildrop"):
        (queue / name).mkdir()
    for path in (directory / "data", *(queue / name for name in (*_QUEUES, "public", "maildrop"))):
        shutil.chown(path, _POSTFIX_USER, _POSTFIX_GROUP)
    (queue / "public").chmod(0o710)
    (queue / "maildrop").chmod(0o730)
    (directory / "mail").chmod(0o777)
    libraries = program("postfix", "usr/lib/postfix")
    common = {
        "compatibility_level": "3.6",
        "queue_directory": str(queue),
        "data_directory": str(directory / "data"),
        "command_directory": program("postfix", "usr/sbin"),
        "daemon_directory": f"{libraries}/sbin",
        "shlib_directory": libraries,
        "meta_directory": str(configuration),
        "import_environment": "MAIL_CONFIG TZ LANG=C LD_LIBRARY_PATH POSTHOUSE_TEST_PEER",
        "export_environment": "TZ MAIL_CONFIG LANG LD_LIBRARY_PATH",
        "mail_owner": _POSTFIX_USER,
        "setgid_group": _POSTFIX_GROUP,
        "default_privs": "nobody",
        "inet_interfaces": "127.0.0.1",  # must be configured on an interface, which others of 127.0.0.0/8 are not
        "inet_protocols": "ipv4",
        "mydestination": "",
        "alias_maps": "",
        "alias_database": "",
        "local_recipient_maps": "",
        "mynetworks": "",
        "maillog_file": str(directory / "mail.log"),
        "maillog_file_prefixes": str(directory),
        "local_header_rewrite_clients": "",  # no header field is added to what others send
        "smtpd_peername_lookup": "no",
        "smtpd_client_connection_count_limit": "0",
        "disable_dns_lookups": "yes",
        "smtp_host_lookup": "native",
        "append_dot_mydomain": "no",
    }
    lines = [f"{name} = {value}\n" for name, value in {**common, **settings}.items()]
    (configuration / "main.cf").write_text("".join(lines))
    listener = f"{address}:{port} inet n - n - - smtpd"
    (configuration / "master.cf").write_text("\n".join([listener, *_POSTFIX_SERVICES, ""]))
    return configuration


@contextlib.contextmanager
def _postfix(address: str, port: int, settings: Mapping[str, str]) -> Iterator[NextHop]:
    require_peer("postfix")
    with server_directory("postfix") as directory:
        configuration = lay_out_postfix(directory, address, port, settings)
        variables = {**environment("postfix"), "MAIL_CONFIG": str(configuration)}
        command = [program("postfix", "usr/lib/postfix/sbin/master"), "-d", "-c", str(configuration)]
        logs = [directory / "mail.log"]
        with running(command, lambda: greets(address, port), directory, variables, logs):
            yield NextHop(directory, address, port)


def _inline(table: Mapping[str, str]) -> str:
    """A look-up table within main.cf; empty when there is nothing in it."""
    return "inline:{" + ", ".join(f"{{ {key} = {value} }}" for key, value in table.items()) + "}" if table else ""


@contextlib.contextmanager
def postfix_next_hop(
    domains: Sequence[str],
    port: int = 0,
    address: str = "",
    answers: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[NextHop]:
    """Postfix as the final destination of `domains`.

    `answers` gives recipients another reply than 250 ("refused@x.test": "550 5.1.1 no such user"); `settings` are further lines of main.cf.
    """
    address = address or "127.0.0.1"
    port = port or free_port(address)
    own = {
        "myhostname": "postfix.test",
        "virtual_mailbox_domains": ", ".join(domains),
        "virtual_mailbox_base": "$queue_directory/../mail",
        "virtual_mailbox_maps": "static:all/",
        "virtual_uid_maps": f"static:{NOBODY}",
        "virtual_gid_maps": f"static:{NOBODY}",
        "smtpd_relay_restrictions": "reject_unauth_destination",
    }
    if answers:
        own["smtpd_recipient_restrictions"] = f"check_recipient_access {_inline(answers)}, reject_unauth_destination"
    with _postfix(address, port, {**own, **(settings or {})}) as postfix:
        yield postfix


class PostfixClient:
    """A Postfix that has no mail of its own and hands everything to a relay host."""

    def __init__(self, server: NextHop) -> None:
        self._server = server
        self._variables = {"MAIL_CONFIG": str(server.directory / "etc")}

    def send(self, reverse_path: str, forward_paths: Sequence[str], octets: bytes, *options: str) -> None:
        """Queues a message as sendmail(1) does."""
        arguments = ["-i", *options, "-f", reverse_path, "--", *forward_paths]
        run_client("postfix", "usr/sbin/sendmail", *arguments, stdin=octets, **self._variables)

    def queue(self) -> str:
        """What postqueue -p says of what waits."""
        return run_client("postfix", "usr/sbin/postqueue", "-p", **self._variables).stdout.decode()

    def log(self) -> str:
        """The mail log so far."""
        return (self._server.directory / "mail.log").read_text()


@contextlib.contextmanager
def postfix_client(
    relay_address: str, relay_port: int, settings: Mapping[str, str] | None = None
) -> Iterator[PostfixClient]:
    """Postfix as a client that relays everything through the server at that address."""
    address = loopback_address()
    own = {
        "myhostname": "client.test",
        "relayhost": f"[{relay_address}]:{relay_port}",
    }
    with _postfix(address, free_port(address), {**own, **(settings or {})}) as server:
        yield PostfixClient(server)


# --- Exim ------------------------------------------------------------------------------------------------------------------

EXIM_HEAD = """\
primary_hostname = exim.test
exim_path = {program}
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
pid_file_path = {directory}/exim.pid
daemon_smtp_ports = {port}
local_interfaces = {address}
disable_ipv6 = true
keep_environment = LD_LIBRARY_PATH
deliver_drop_privilege = true
host_lookup =
rfc1413_hosts =
"""
"""What the configuration of every Exim here begins with."""
_EXIM = """\
domainlist ours = {domains}
acl_smtp_rcpt = acl_rcpt
acl_smtp_data = acl_data
chunking_advertise_hosts = *
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
pipelining_advertise_hosts = *
tls_advertise_hosts =
{settings}
begin acl
acl_rcpt:
{answers}
  accept domains = +ours
  deny message = relay not permitted
acl_data:
  accept
begin routers
ours:
  driver = accept
  domains = +ours
  transport = keep
begin transports
keep:
  driver = appendfile
  directory = {directory}/mail
  maildir_format
  create_directory
  envelope_to_add
  return_path_add
  user = {user}
begin retry
* * F,2h,15m
"""


def _exim_answers(answers: Mapping[str, str]) -> str:
    verbs = {"4": "defer", "5": "deny"}
    return "\n".join(
        f"  {verbs[reply[0]]} recipients = {recipient}\n    message = {reply}" for recipient, reply in answers.items()
    )


@contextlib.contextmanager
def exim_next_hop(
    domains: Sequence[str],
    port: int = 0,
    address: str = "",
    answers: Mapping[str, str] | None = None,
    settings: str = "",
) -> Iterator[NextHop]:
    """Exim as the final destination of `domains`; `answers` as for Postfix, `settings` are further main settings."""
    require_peer("exim")
    address = address or "127.0.0.1"
    port = port or free_port(address)
    with server_directory("exim") as directory:
        for name in ("spool", "log", "mail"):
            (directory / name).mkdir()
            shutil.chown(directory / name, EXIM_USER, EXIM_USER)
        configuration = directory / "exim.conf"
        text = (EXIM_HEAD + _EXIM).format(
            program=program("exim", "usr/sbin/exim4"),
            directory=directory,
            user=EXIM_USER,
            address=address,
            port=port,
            domains=" : ".join(domains),
            answers=_exim_answers(answers or {}),
            settings=settings,
        )
        configuration.write_text(text)
        command = [program("exim", "usr/sbin/exim4"), "-C", str(configuration), "-bdf", "-q1m"]
        logs = [directory / "log" / name for name in ("mainlog", "paniclog", "rejectlog")]
        with running(command, lambda: greets(address, port), directory, environment("exim"), logs):
            yield NextHop(directory, address, port)


# --- Dovecot ---------------------------------------------------------------------------------------------------------------

# Dovecot 2.4 (Debian 13) renamed much of what 2.3 (Debian 12) understands.
_DOVECOT_2_3 = """\
import_environment = LD_LIBRARY_PATH POSTHOUSE_TEST_PEER
protocols = lmtp
mail_location = maildir:{directory}/mail/%n
passdb {{
  driver = passwd-file
  args = {directory}/users
}}
userdb {{
  driver = passwd-file
  args = {directory}/users
}}
protocol lmtp {{
  auth_username_format = %n
}}
service lmtp {{
  inet_listener lmtp {{
    address = {address}
    port = {port}
  }}
}}
"""
_DOVECOT_2_4 = """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
import_environment {{
  LD_LIBRARY_PATH = {library_path}
}}
protocols {{
  lmtp = yes
}}
mail_driver = maildir
mail_path = {directory}/mail/%{{user | username}}
passdb passwd-file {{
  passwd_file_path = {directory}/users
}}
userdb passwd-file {{
  passwd_file_path = {directory}/users
}}
protocol lmtp {{
  auth_username_format = %{{user | username}}
}}
service lmtp {{
  inet_listener lmtp {{
    listen = {address}
    port = {port}
  }}
}}
"""
_DOVECOT = """\
base_dir = {directory}/run
libexec_dir = {libraries}
mail_plugin_dir = {libraries}/modules
state_dir = {directory}/state
log_path = {directory}/dovecot.log
ssl = no
first_valid_uid = {uid}
postmaster_address = postmaster@dovecot.test
hostname = dovecot.test
lmtp_save_to_detail_mailbox = no
service lmtp {{
  user = root
  unix_listener {directory}/lmtp {{
    mode = 0666
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
"""


class DovecotServer(NextHop):
    """Dovecot's LMTP, on a TCP port and on the Unix socket `socket`."""

    @property
    def socket(self) -> Path:
        """The Unix socket that speaks LMTP."""
        return self.directory / "lmtp"


def _is_dovecot_2_3() -> bool:
    return run_client("dovecot", "usr/sbin/dovecot", "--version").stdout.startswith(b"2.3")


def _dovecot_users(directory: Path, users: Sequence[str], full: Sequence[str]) -> str:
    """The lines of a passwd-file; the mailboxes of `full` lie where none can be made."""
    nowhere = "userdb_mail=maildir:/proc/nowhere" if _is_dovecot_2_3() else "userdb_mail_path=/proc/nowhere"
    lines = [f"{user}:{{PLAIN}}x:{NOBODY}:{NOBODY}::{directory}/mail/{user}::" for user in users]
    lines += [f"{user}:{{PLAIN}}x:{NOBODY}:{NOBODY}::/nonexistent::{nowhere}/{user}" for user in full]
    return "\n".join([*lines, ""])


def _dovecot_command(configuration: Path) -> list[str]:
    """What dovecot would do by itself if doveconf were in /usr/bin: read the configuration and go on as dovecot."""
    old = ["-f", "service=master", "-c", str(configuration), "-m", "master", "-p", "-e"]
    options = old if _is_dovecot_2_3() else ["-c", str(configuration), "-C", "-F"]
    dovecot = [program("dovecot", "usr/sbin/dovecot"), "-F", "-c", str(configuration)]
    return [program("dovecot", "usr/bin/doveconf"), *options, *dovecot]


@contextlib.contextmanager
def dovecot_lmtp(users: Sequence[str], full: Sequence[str] = ()) -> Iterator[DovecotServer]:
    """Dovecot with mailboxes for `users` (local parts): others get 550 at RCPT, and those in `full` a failure after the data."""
    require_peer("dovecot")
    address = "127.0.0.1"
    port = free_port(address)
    with server_directory("dovecot") as directory:
        (directory / "mail").mkdir()
        (directory / "mail").chmod(0o777)
        (directory / "users").write_text(_dovecot_users(directory, users, full))
        text = (_DOVECOT_2_3 if _is_dovecot_2_3() else _DOVECOT_2_4) + _DOVECOT
        configuration = directory / "dovecot.conf"
        configuration.write_text(
            text.format(
                directory=directory,
                libraries=program("dovecot", "usr/lib/dovecot"),
                library_path=environment("dovecot")["LD_LIBRARY_PATH"],
                address=address,
                port=port,
                uid=NOBODY,
            )
        )
        logs = [directory / "dovecot.log"]
        command = _dovecot_command(configuration)
        with running(command, lambda: greets(address, port), directory, environment("dovecot"), logs):
            yield DovecotServer(directory, address, port)


# --- Knot ------------------------------------------------------------------------------------------------------------------

_KNOT = """\
server:
    rundir: {directory}
    listen: {address}@{port}
log:
  - target: stderr
    any: info
database:
    storage: {directory}
zone:
"""


class NameServer:
    """An authoritative server; `server` is what [resolver] takes."""

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port

    @property
    def server(self) -> str:
        """Address and port, as the configuration writes them."""
        return f"{self.address}:{self.port}"

    def answers(self, name: str) -> bool:
        """Whether it answers for a zone."""
        query = dns.message.make_query(name, "SOA")
        try:
            return bool(dns.query.udp(query, self.address, timeout=1, port=self.port).answer)
        except (dns.exception.DNSException, OSError):
            return False


@contextlib.contextmanager
def knot(zones: Mapping[str, str]) -> Iterator[NameServer]:
    """Knot with the zones given as {"example.test": records}; a SOA and a name server are put in front of the records."""
    require_peer("knot")
    address = loopback_address()
    port = free_port(address)
    with server_directory("knot") as directory:
        text = _KNOT.format(directory=directory, address=address, port=port)
        for name, records in zones.items():
            head = f"$ORIGIN {name}.\n$TTL 60\n@ SOA ns.{name}. admin.{name}. 1 3600 600 86400 60\n@ NS ns.{name}.\nns A {address}\n"
            (directory / f"{name}.zone").write_text(f"{head}{records}\n")
            text += f"  - domain: {name}\n    file: {directory}/{name}.zone\n"
        configuration = directory / "knot.conf"
        configuration.write_text(text)
        server = NameServer(address, port)
        command = [program("knot", "usr/sbin/knotd"), "-c", str(configuration)]

        def ready() -> bool:
            return all(server.answers(name) for name in zones)

        with running(command, ready, directory, environment("knot")):
            yield server
