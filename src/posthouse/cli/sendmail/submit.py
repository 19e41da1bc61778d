"""Handing a mail over: a plain SMTP dialogue on the server's local socket, one command at a time.

Nothing that could end a command goes into one: addresses are checked before the first octet is sent.
"""

import re
import select
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from posthouse.cli.sendmail.arguments import Arguments
from posthouse.cli.sendmail.compose import Draft, read_until_dot
from posthouse.cli.sendmail.status import Sysexit, status_of
from posthouse.config.search import LocalServer
from posthouse.net.listen import unix_address

_CONNECT_SECONDS = 10.0
_REPLY_SECONDS = 600.0  # RFC 5321 4.5.3.2.6: the answer to the final dot may take ten minutes
_printable = re.compile(r"[^\x00-\x20\x7f<>]+").fullmatch
_quoted = re.compile(r'"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"@[^\x00-\x20\x7f<>]+').fullmatch
_line_dot = re.compile(rb"^\.", re.MULTILINE)
_xtext = re.compile(r"[+=]|[^!-~]")


class Refused(Exception):
    """The mail was not taken; the text says why, `status` is what the caller is told."""

    def __init__(self, words: str, status: Sysexit) -> None:
        super().__init__(words)
        self.status = status


def submit(given: Arguments, local: LocalServer, read: Callable[[], bytes]) -> int:
    """Reads the mail, makes it whole and hands it over; the exit status."""
    try:
        octets = read()
        draft = Draft(octets if given.ignores_dots else read_until_dot(octets))
        reverse_path = _address(_reverse_path(given, local.hostname), local.hostname)
        recipients = _recipients(given, draft, local.hostname)
        draft.complete(reverse_path, given.full_name or _full_name(), local.hostname, time.time())
        _hand_over(given, local, reverse_path, recipients, draft)
    except Refused as refusal:
        print(f"posthouse sendmail: {refusal}", file=sys.stderr)
        return refusal.status
    except OSError as error:
        print(f"posthouse sendmail: the message cannot be read: {error.strerror}", file=sys.stderr)
        return Sysexit.IOERR
    return Sysexit.OK


def relay_dialogue(data_dir: Path) -> int:
    """-bs: what comes on standard input goes to the server, what it answers to standard output."""
    try:
        with _connect(data_dir) as server:
            return _pump(server)
    except Refused as refusal:
        print(f"421 4.3.2 {refusal}\r")
        return refusal.status


def _pump(server: socket.socket) -> int:
    sources: list[socket.socket | int] = [server, sys.stdin.fileno()]
    while True:
        for source in select.select(sources, [], [])[0]:
            if source is server:
                octets = server.recv(65536)
                if not octets:
                    return Sysexit.OK
                sys.stdout.buffer.write(octets)
                sys.stdout.buffer.flush()
            else:
                octets = sys.stdin.buffer.raw.read(65536) if hasattr(sys.stdin.buffer, "raw") else b""
                if octets:
                    server.sendall(octets)
                else:
                    sources.remove(source)
                    server.shutdown(socket.SHUT_WR)


def _reverse_path(given: Arguments, hostname: str) -> str:
    from posthouse.cli.sendmail import user_name  # noqa: PLC0415 - a module of this package runs before us

    return f"{user_name()}@{hostname}" if given.reverse_path is None else given.reverse_path


def _full_name() -> str:
    """The caller's name from the user table."""
    import os  # noqa: PLC0415
    import pwd  # noqa: PLC0415

    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return ""
    return entry.pw_gecos.partition(",")[0].replace("&", entry.pw_name.capitalize())


def _recipients(given: Arguments, draft: Draft, hostname: str) -> list[str]:
    found = list(given.recipients)
    if given.reads_recipients:
        try:
            found += draft.recipients()
        except ValueError as error:
            raise Refused(str(error), Sysexit.DATAERR) from error
        draft.drop_bcc()
    if not found:
        raise Refused("no recipients: name them, or give -t and a To, Cc or Bcc field", Sysexit.USAGE)
    return list(dict.fromkeys(_address(recipient, hostname) for recipient in found))


def _address(written: str, hostname: str) -> str:
    """An address as MAIL and RCPT take it: a bare name gets our host name, save `postmaster` (RFC 5321 4.5.1)."""
    address = written.strip().removeprefix("<").removesuffix(">")
    if not address or address.lower() == "postmaster":
        return address
    if "@" not in address:
        address = f"{address}@{hostname}"
    if not (_printable(address) or _quoted(address)):
        raise Refused(f"{written!r} is not a mail address", Sysexit.USAGE)
    return address


def _connect(data_dir: Path) -> socket.socket:
    path = data_dir / "submit.sock"
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.settimeout(_CONNECT_SECONDS)
    try:
        with unix_address(path) as address:
            server.connect(address)
    except OSError as error:
        server.close()
        words = (
            f"no server answers at {path} ({error.strerror}); is `posthouse serve` running, with this configuration?"
        )
        raise Refused(words, Sysexit.TEMPFAIL) from error
    server.settimeout(_REPLY_SECONDS)
    return server


class _Dialogue:
    """Commands and replies, in turn."""

    def __init__(self, server: socket.socket, is_verbose: bool) -> None:
        self._server = server
        self._replies = server.makefile("rb")
        self._is_verbose = is_verbose

    def ask(self, command: str) -> list[str]:
        """Sends a command, answers the lines of a positive reply. Refused for a negative one."""
        if command:
            self._show(f"-> {command}")
            self._server.sendall(command.encode() + b"\r\n")
        return self.read()

    def send(self, octets: bytes) -> None:
        """Sends content; no reply is awaited."""
        self._server.sendall(octets)

    def read(self) -> list[str]:
        """The lines of a positive reply, codes cut off. Refused for a negative one."""
        lines: list[str] = []
        while True:
            octets = self._replies.readline(4096)
            if not octets.endswith(b"\n") or not octets[:3].isdigit():
                raise Refused("the server closed the connection; nothing was sent", Sysexit.TEMPFAIL)
            line = octets.decode("utf-8", "backslashreplace").rstrip()
            self._show(f"<- {line}")
            lines.append(line[4:])
            if line[3:4] != "-":
                break
        code = int(octets[:3])
        if code >= 400:
            enhanced = lines[0].partition(" ")[0]
            raise Refused(f"{code} {' '.join(lines)}", status_of(code, enhanced))
        return lines

    def _show(self, line: str) -> None:
        if self._is_verbose:
            print(line, file=sys.stderr)


def _hand_over(
    given: Arguments, local: LocalServer, reverse_path: str, recipients: Iterable[str], draft: Draft
) -> None:
    with _connect(local.data_dir) as server:
        dialogue = _Dialogue(server, given.is_verbose)
        try:
            dialogue.read()
            offers = {line.partition(" ")[0].upper() for line in dialogue.ask(f"EHLO {local.hostname}")}
            dialogue.ask(
                f"MAIL FROM:<{reverse_path}>{_mail_parameters(given, offers, draft, [reverse_path, *recipients])}"
            )
            for recipient in recipients:
                notify = f" NOTIFY={given.notify}" if given.notify and "DSN" in offers else ""
                dialogue.ask(f"RCPT TO:<{recipient}>{notify}")
            dialogue.ask("DATA")
            dialogue.send(_line_dot.sub(b"..", draft.octets) + b".\r\n")
            dialogue.read()
            dialogue.ask("QUIT")
        except TimeoutError as error:
            raise Refused("the server does not answer; nothing was sent", Sysexit.TEMPFAIL) from error
        except OSError as error:
            raise Refused(f"the connection to the server broke ({error.strerror})", Sysexit.TEMPFAIL) from error


def _mail_parameters(given: Arguments, offers: set[str], draft: Draft, addresses: list[str]) -> str:
    parameters = []
    if "SIZE" in offers:
        parameters.append(f"SIZE={len(draft.octets)}")
    if "8BITMIME" in offers and (given.body == "8BITMIME" or draft.is_8bit):
        parameters.append("BODY=8BITMIME")
    if not all(address.isascii() for address in addresses):
        parameters.append("SMTPUTF8")
    if "DSN" in offers:
        if given.ret:
            parameters.append(f"RET={given.ret}")
        if given.envelope_id:
            escaped = _xtext.sub(
                lambda match: "".join(f"+{octet:02X}" for octet in match[0].encode()), given.envelope_id
            )
            parameters.append(f"ENVID={escaped}")
    return "".join(f" {parameter}" for parameter in parameters)
