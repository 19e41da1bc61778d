"""Exim as a relay, closed and open in several ways."""

import contextlib
import shutil
from collections.abc import Iterator

from peer_opensmtpd import write_certificate
from peer_programs import environment, free_port, greets, program, require_peer, running, server_directory
from peer_relay_forms import LOCAL_DOMAIN, Form, RelayPeer
from peer_servers import EXIM_HEAD, EXIM_USER, NextHop

_TEXT = """\
exim_user = {user}
tls_advertise_hosts = *
tls_certificate = {directory}/cert.pem
tls_privatekey = {directory}/key.pem
domainlist local_domains = LOCAL
domainlist relay_to_domains = RELAYTO
hostlist relay_from_hosts = RELAYFROM
acl_smtp_rcpt = acl_check_rcpt
acl_smtp_data = acl_check_data

begin acl
acl_check_rcpt:
  accept hosts = :
FIRST
  deny message = Restricted characters in address
       domains = +local_domains
       local_parts = ^[.] : ^.*[@%!/|]
  require verify = sender
SECOND
  accept hosts = +relay_from_hosts
         control = submission
  accept authenticated = *
  require message = relay not permitted
          domains = +local_domains : +relay_to_domains
  require verify = recipient
  accept
acl_check_data:
DATA
  accept

begin routers
ROUTER
elsewhere:
  driver = manualroute
  domains = ! +local_domains
  route_list = * {third_address}
  self = send
  transport = out
  no_more
ours:
  driver = accept
  transport = keep

begin transports
out:
  driver = smtp
  port = {third_port}
  allow_localhost
  hosts_try_fastopen =
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
_RESTRICTED = """\
  deny message = Restricted characters in address
       domains = +local_domains
       local_parts = ^[.] : ^.*[@%!/|]
"""
_PERCENT = """\
percent:
  driver = redirect
  domains = +local_domains
  local_parts = ^.*%.*
  data = ${{sg{{$local_part}}{{^(.*)%}}{{\\$1@}}}}
"""
_FORWARD = """\
forward:
  driver = redirect
  domains = +local_domains
  local_parts = ^.*=.*
  data = ${{sg{{$local_part}}{{=}}{{@}}}}
"""
_SECRET_FORWARD = _FORWARD.replace("local_parts = ^.*=.*", "local_part_prefix = to+")
_FIXED = """\
fixed:
  driver = redirect
  domains = +local_domains
  local_parts = list : postmaster
  data = member@third-party.test
"""
_EVERYWHERE = f"""\
everywhere:
  driver = manualroute
  domains = ! {LOCAL_DOMAIN}
  route_list = * {{third_address}}
  self = send
  transport = out
"""


def _form(
    name: str,
    is_open: bool,
    says: str,
    *,
    first: str = "",
    second: str = "",
    local: str = LOCAL_DOMAIN,
    relay_to: str = "dept.ours.test",
    relay_from: str = "127.0.0.1 : ::1",
    router: str = "",
    restricted: bool = True,
    data: str = "",
) -> Form:
    text = _TEXT if restricted else _TEXT.replace(_RESTRICTED, "")
    lists = (("= LOCAL\n", f"= {local}\n"), ("RELAYTO", relay_to), ("RELAYFROM", relay_from))
    for placeholder, value in (
        *lists,
        ("FIRST\n", first),
        ("SECOND\n", second),
        ("ROUTER\n", router),
        ("DATA\n", data),
    ):
        text = text.replace(placeholder, value)
    return Form(name, is_open, says, EXIM_HEAD + text)


EXIM_FORMS = (
    _form("closed", False, "only local clients and those who logged in may relay"),
    _form("closed-backup-mx", False, "a partner's domain is relayed to", relay_to="dept.ours.test : *.partner.test"),
    _form("closed-forwarding", False, "addresses of its own are forwarded to a fixed address outside", router=_FIXED),
    _form("open-wide-networks", True, "half of all addresses are trusted", relay_from="10.0.0.0/8 : 0.0.0.0/1"),
    _form("open-permit-above", True, "an accept stands above the require", first="  accept !senders = :\n"),
    _form("open-tls", True, "every client that speaks TLS may relay", second="  accept encrypted = *\n"),
    _form("open-wildcard-domain", True, "a star is among the relay domains", relay_to="dept.ours.test : *"),
    _form(
        "open-reverse-path",
        True,
        "a reverse-path in the own domain is believed",
        second="  accept sender_domains = +local_domains\n",
    ),
    _form(
        "open-hello",
        True,
        "a name said in HELO is believed",
        first="  accept condition = ${{if eqi{{$sender_helo_name}}{{exim.test}}}}\n",
    ),
    _form("open-percent-hack", True, "u%third@ours goes to u@third", router=_PERCENT, restricted=False),
    _form(
        "open-local-part",
        True,
        "anybody's postmaster may be written to",
        second="  accept local_parts = abuse : ^postmaster.*\n",
    ),
    _form("open-secret-forwarder", True, "to+u=third@ours is forwarded to u@third", router=_SECRET_FORWARD),
    _form("open-forwarder", True, "u=third@ours is forwarded to u@third", router=_FORWARD),
)
"""Exim's forms."""

EXIM_FORMS_OF_CHECK = (
    _form(
        "closed-discarding",
        False,
        "strangers' recipients are told 250 and thrown away",
        first="  discard hosts = ! +relay_from_hosts\n",
    ),
    _form(
        "closed-discarding-late",
        False,
        "strangers' mail is told 250 and thrown away",
        first="  accept\n",
        data="  discard hosts = ! +relay_from_hosts\n",
    ),
    _form("closed-all-local", False, "every domain is local, and kept", local="*"),
    _form(
        "open-all-local",
        True,
        "every domain is local, and a router that does not ask that sends it on",
        local="*",
        router=_EVERYWHERE,
    ),
)
"""Forms that accept mail for third parties: from outside, what is kept or thrown away gets no verdict."""


@contextlib.contextmanager
def exim_relay(form: Form, third_party: NextHop) -> Iterator[RelayPeer]:
    """Exim in one of its forms; all that it relays goes to `third_party`."""
    require_peer("exim")
    address = "127.0.0.1"
    port = free_port(address)
    with server_directory("exim") as directory:
        for name in ("spool", "log", "mail"):
            (directory / name).mkdir()
            shutil.chown(directory / name, EXIM_USER, EXIM_USER)
        write_certificate(directory)
        (directory / "key.pem").chmod(0o640)
        shutil.chown(directory / "key.pem", "root", EXIM_USER)
        where = {"third_address": third_party.address, "third_port": third_party.port, "user": EXIM_USER}
        text = form.text.format(
            program=program("exim", "usr/sbin/exim4"), directory=directory, address=address, port=port, **where
        )
        configuration = directory / "exim.conf"
        configuration.write_text(text)
        command = [program("exim", "usr/sbin/exim4"), "-C", str(configuration), "-bdf", "-q1m"]
        logs = [directory / "log" / name for name in ("mainlog", "paniclog", "rejectlog")]
        with running(command, lambda: greets(address, port), directory, environment("exim"), logs):
            yield RelayPeer(directory, address, port, configuration)
