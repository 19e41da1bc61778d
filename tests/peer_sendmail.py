"""sendmail as a relay, closed and open in several ways, each written in m4 as its administrators write it.

All its paths are configured. It waits a minute for a machine whose name has no dot, so it runs where the host name has one.
"""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from peer_opensmtpd import write_certificate
from peer_programs import (
    environment,
    free_port,
    greets,
    program,
    require_kernel,
    require_peer,
    running,
    server_directory,
)
from peer_relay_forms import LOCAL_DOMAIN, Form, RelayPeer
from peer_servers import NextHop

_SAFE = "GroupWritableDirPathSafe,MapInUnsafeDirPath,ClassFileInUnsafeDirPath,RunProgramInUnsafeDirPath,TrustStickyBit,GroupReadableKeyFile"
_HEAD = """\
divert(0)dnl
include(`{cf}/m4/cf.m4')dnl
OSTYPE(`linux')dnl
define(`confDOMAIN_NAME', `sendmail.test')dnl
define(`confCW_FILE', `-o {directory}/local-host-names')dnl
define(`confCR_FILE', `-o {directory}/relay-domains')dnl
define(`ALIAS_FILE', `{directory}/aliases')dnl
define(`confALIAS_WAIT', `0')dnl
define(`QUEUE_DIR', `{directory}/queue')dnl
define(`HELP_FILE', `')dnl
define(`STATUS_FILE', `')dnl
define(`confPID_FILE', `{directory}/pid')dnl
define(`confDONT_BLAME_SENDMAIL', `SAFE')dnl
define(`confSERVICE_SWITCH_FILE', `{directory}/service.switch')dnl
define(`confSERVER_CERT', `{directory}/cert.pem')dnl
define(`confSERVER_KEY', `{directory}/key.pem')dnl
define(`confCACERT', `{directory}/cert.pem')dnl
define(`confCACERT_PATH', `{directory}')dnl
define(`confQUEUE_LA', `1000')dnl a busy machine still delivers at once
define(`confREFUSE_LA', `1000')dnl
define(`confTO_IDENT', `0')dnl
define(`SMART_HOST', `relay:[{third_address}]')dnl
define(`RELAY_MAILER_ARGS', `TCP $h {third_port}')dnl
define(`LOCAL_MAILER_PATH', `{directory}/keep')dnl
define(`LOCAL_MAILER_FLAGS', `u9P')dnl
MODIFY_MAILER_FLAGS(`LOCAL', `-w')dnl every local part is somebody's
define(`LOCAL_MAILER_ARGS', `keep $i')dnl
FEATURE(`no_default_msa')dnl
DAEMON_OPTIONS(`Name=MTA, Family=inet, Addr={address}, Port={port}')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unresolvable_domains')dnl
FEATURE(`access_db', `hash -T<TMPF> -o {directory}/access')dnl
FEATURES
MAILER(`local')dnl
MAILER(`smtp')dnl
LOCAL_CONFIG
CwLOCAL
RULES
"""


def _form(name: str, is_open: bool, says: str, features: str = "", rules: str = "") -> Form:
    text = _HEAD.replace("SAFE", _SAFE).replace("LOCAL\nRULES", f"{LOCAL_DOMAIN}\n{rules}")
    return Form(name, is_open, says, text.replace("FEATURES\n", f"{features}\n" if features else ""))


_ACCESS = {
    "closed": "Connect:192.0.2.25 RELAY\n",
    "closed-reject": "Connect:127.0.0.2 REJECT\n",
    "open-wide-networks": "".join(f"Connect:{number} RELAY\n" for number in range(1, 224)),
    "open-wildcard-domain": "To:test RELAY\n",
    "open-reverse-path": f"From:{LOCAL_DOMAIN} RELAY\n",
}

_ALIASES = {"closed-forwarding": "list member@third-party.test\n"}

SENDMAIL_FORMS = (
    _form("closed", False, "one partner's address may relay"),
    _form("closed-forwarding", False, "an address of its own is forwarded to a fixed address outside"),
    _form("closed-reject", False, "a client is refused by name"),
    _form("open-promiscuous", True, "relaying is not looked at", "FEATURE(`promiscuous_relay')dnl"),
    _form("open-wide-networks", True, "nearly all addresses are trusted"),
    _form("open-wildcard-domain", True, "a whole top-level domain is relayed to"),
    _form("open-reverse-path", True, "a reverse-path is believed", "FEATURE(`relay_mail_from', `domain')dnl"),
    _form("open-local-from", True, "a local reverse-path is believed", "FEATURE(`relay_local_from')dnl"),
    _form(
        "open-entire-domain",
        True,
        "the own domain as a whole may relay, and that is a top-level domain",
        "FEATURE(`relay_entire_domain')dnl",
        rules="Cmtest\n",
    ),
    _form(
        "open-percent-hack",
        True,
        "u%third@ours is let through for its domain, and goes to u@third",
        rules=f"LOCAL_RULESETS\nSLocal_check_rcpt\nR$* @ {LOCAL_DOMAIN} $*\t\t$# OK\n",
    ),
    _form(
        "open-tls",
        True,
        "every client that speaks TLS may relay",
        rules="LOCAL_RULESETS\nSLocal_check_rcpt\nR$*\t\t$: $&{{tls_version}}\nR$+\t\t$# OK\n",
    ),
    _form(
        "open-hello",
        True,
        "a name said in HELO is believed",
        rules="LOCAL_RULESETS\nSLocal_check_rcpt\nR$*\t\t$: $&s\nRsendmail.test\t\t$# OK\n",
    ),
)
"""sendmail's forms."""


def _can_make_a_namespace() -> bool:
    return subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, check=False).returncode == 0


def sendmail_command(directory: Path, *arguments: str) -> list[str]:
    """sendmail on a machine whose name has a dot, and which knows no name server."""
    switch = directory / "nsswitch.conf"
    switch.write_text("passwd: files\ngroup: files\nhosts: files\n")
    command = shlex.join([program("sendmail", "usr/libexec/sendmail/sendmail"), *arguments])
    lines = ("hostname sendmail.test", f"mount --bind {shlex.quote(str(switch))} /etc/nsswitch.conf", f"exec {command}")
    return ["unshare", "--uts", "--mount", "--propagation", "slave", "sh", "-e", "-c", "\n".join(lines)]


def _run(*command: str) -> str:
    variables = dict(environment("sendmail"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables, timeout=60)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout} {done.stderr}"
    return done.stdout


def lay_out_sendmail(form: Form, directory: Path, address: str, port: int, third_party: NextHop) -> Path:
    """Writes sendmail.mc, has m4 make sendmail.cf of it, and makes the access table; the .cf."""
    for name in ("queue", "mail/new"):
        (directory / name).mkdir(parents=True)
    (directory / "queue").chmod(0o700)
    (directory / "mail" / "new").chmod(0o777)
    (directory / "keep").write_text(f'#!/bin/sh\nexec dd of={directory}/mail/new/"$1" status=none\n')
    (directory / "keep").chmod(0o755)
    (directory / "service.switch").write_text("hosts files\n")
    write_certificate(directory)
    source = directory / "sendmail.mc"
    cf = program("sendmail", "usr/share/sendmail/cf")
    where = {"third_address": third_party.address, "third_port": third_party.port}
    source.write_text(form.text.format(directory=directory, address=address, port=port, cf=cf, **where))
    configuration = directory / "sendmail.cf"
    configuration.write_text(_run(program("sendmail", "usr/bin/m4"), f"-D_CF_DIR_={cf}/", str(source)))
    for name, table in (("access", _ACCESS.get(form.name, "")), ("aliases", "@ @\n" + _ALIASES.get(form.name, ""))):
        make = shlex.join([program("sendmail", "usr/libexec/sendmail/makemap"), "-C", str(configuration), "hash"])
        (directory / name).write_text(table)
        _run("sh", "-c", f"{make} {directory / name} < {directory / name}")
    return configuration


def _end_deliveries(directory: Path) -> None:
    """Its deliverers wait for one another's pipes once it is gone; sendmail has cleared the mark in their environment."""
    place = f"of={directory}/mail/new/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if place in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)


@contextlib.contextmanager
def sendmail_relay(form: Form, third_party: NextHop) -> Iterator[RelayPeer]:
    """sendmail in one of its forms; all that it relays goes to `third_party`."""
    require_peer("sendmail")
    require_kernel("a host name of its own", _can_make_a_namespace())
    address = "127.0.0.1"
    port = free_port(address)
    with server_directory("sendmail") as directory:
        configuration = lay_out_sendmail(form, directory, address, port, third_party)
        command = sendmail_command(directory, "-bD", "-C", str(configuration), "-X", str(directory / "session.log"))
        with running(command, lambda: greets(address, port), directory, environment("sendmail")):
            yield RelayPeer(directory, address, port, configuration)
        _end_deliveries(directory)
