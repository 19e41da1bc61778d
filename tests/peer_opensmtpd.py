"""OpenSMTPD as a relay, closed and open in several ways.

Its paths are compiled in, so it runs in a mount namespace of its own where they lie below the test's directory.
"""

import contextlib
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import trustme

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

_HEAD = """\
table users {{ "postmaster@ours.test" = nobody, "user@ours.test" = nobody, FORWARDS }}
pki opensmtpd.test cert "{directory}/cert.pem"
pki opensmtpd.test key "{directory}/key.pem"
LISTEN
action "keep" maildir "{directory}/mail/%{{rcpt.user}}" virtual <users>
action "relay" relay host "smtp://{third_address}:{third_port}"
"""
_LISTEN = "listen on {address} port {port} hostname opensmtpd.test"
_OURS = f'match from any for domain "{LOCAL_DOMAIN}" action "keep"\n'
_LOCAL = 'match from local for any action "relay"\n'


def _form(
    name: str,
    is_open: bool,
    says: str,
    rules: str,
    listen: str = "",
    forwards: str = '"root@ours.test" = nobody',
) -> Form:
    head = _HEAD.replace("LISTEN", f"{_LISTEN} {listen}".strip()).replace("FORWARDS", forwards)
    return Form(name, is_open, says, head + rules)


OPENSMTPD_FORMS = (
    _form("closed", False, "only local clients may relay", _OURS + _LOCAL),
    _form(
        "closed-auth",
        False,
        "those who logged in may relay",
        _OURS + 'match from any auth for any action "relay"\n' + _LOCAL,
        "tls pki opensmtpd.test auth-optional",
    ),
    _form(
        "closed-reject-first",
        False,
        "a reject stands before",
        "match from any for any reject\n" + 'match from any for any action "relay"\n',
    ),
    _form(
        "closed-forwarding",
        False,
        "an address of its own is forwarded to a fixed address outside",
        _OURS + _LOCAL,
        forwards='"list@ours.test" = "member@third-party.test"',
    ),
    _form("open-any", True, "anyone may relay anywhere", _OURS + 'match from any for any action "relay"\n'),
    _form(
        "open-wide-networks",
        True,
        "half of all addresses are trusted",
        "table trusted {{ 10.0.0.0/8, 0.0.0.0/1 }}\n" + _OURS + 'match from src <trusted> for any action "relay"\n',
    ),
    _form(
        "open-wildcard-domain",
        True,
        "a star is among the relay domains",
        'table partners {{ "dept.ours.test", "*" }}\n'
        + _OURS
        + 'match from any for domain <partners> action "relay"\n'
        + _LOCAL,
    ),
    _form(
        "open-hello",
        True,
        "a name said in HELO is believed",
        _OURS + 'match from any helo "opensmtpd.test" for any action "relay"\n' + _LOCAL,
    ),
    _form(
        "open-reverse-path",
        True,
        "a reverse-path in the own domain is believed",
        _OURS + 'match from any mail-from "@ours.test" for any action "relay"\n' + _LOCAL,
    ),
    _form(
        "open-nameless",
        True,
        "clients whose address has no name may relay",
        _OURS + 'match !from rdns for any action "relay"\n',
    ),
    _form(
        "open-negation",
        True,
        "everyone but one network may relay",
        _OURS + 'match !from src 192.0.2.0/24 for any action "relay"\n',
    ),
    _form(
        "open-local-part",
        True,
        "anybody's postmaster may be written to",
        _OURS + 'match from any for any rcpt-to regex "^postmaster" action "relay"\n' + _LOCAL,
    ),
    _form(
        "open-order",
        True,
        "the reject stands below the rule that grants",
        _OURS + _LOCAL + 'match from any for any action "relay"\nmatch from any for any reject\n',
    ),
)
"""OpenSMTPD's forms. None of them needs TLS: Debian 12's OpenSMTPD 6.8 cannot speak it with the OpenSSL beside it."""


def write_certificate(directory: Path) -> None:
    """A certificate and key that any test server may show: cert.pem and key.pem."""
    certificate = trustme.CA().issue_cert(
        "localhost", key_type=trustme.KeyType.RSA
    )  # OpenSMTPD 6.8 signs with no other
    (directory / "cert.pem").write_bytes(certificate.cert_chain_pems[0].bytes())
    (directory / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    (directory / "key.pem").chmod(0o600)


def _can_make_a_mount_namespace() -> bool:
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


def opensmtpd_command(directory: Path, *arguments: str) -> list[str]:
    """Runs smtpd where /var/spool, /var/lib and /run are the test's own, and which knows no name server."""
    for name in ("spool", "lib/opensmtpd/empty", "run"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    mounts = [(directory / "spool", "/var/spool"), (directory / "lib", "/var/lib"), (directory / "run", "/run")]
    mounts.append((Path(program("opensmtpd", "usr/libexec")), "/usr/libexec"))
    (directory / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    mounts.append((directory / "resolv.conf", "/etc/resolv.conf"))
    lines = [f"mount --bind {shlex.quote(str(source))} {target}" for source, target in mounts]
    lines.append(f"exec {shlex.join([program('opensmtpd', 'usr/sbin/smtpd'), *arguments])}")
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-e", "-c", "\n".join(lines)]


@contextlib.contextmanager
def opensmtpd_relay(form: Form, third_party: NextHop) -> Iterator[RelayPeer]:
    """OpenSMTPD in one of its forms; all that it relays goes to `third_party`."""
    require_peer("opensmtpd")
    require_kernel("a mount namespace", _can_make_a_mount_namespace())
    address = "127.0.0.1"
    port = free_port(address)
    with server_directory("opensmtpd") as directory:
        (directory / "mail").mkdir()
        (directory / "mail").chmod(0o777)
        write_certificate(directory)
        configuration = directory / "smtpd.conf"
        where = {"third_address": third_party.address, "third_port": third_party.port}
        configuration.write_text(form.text.format(directory=directory, address=address, port=port, **where))
        command = opensmtpd_command(directory, "-d", "-f", str(configuration))
        with running(command, lambda: greets(address, port), directory, environment("opensmtpd")):
            yield RelayPeer(directory, address, port, configuration)
