"""sendmail's own word: its rule sets, tried one by one in address test mode (-bt), and a session over a socket (-bs).

It runs where there is no network, so that it looks nothing up, and where the host has a name with a dot, since it waits a
minute for one. It reads the configuration and delivers nothing.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from posthouse.policy.networks import Address

_SECONDS = 60.0
_PLACES = ("/usr/libexec/sendmail/sendmail", "/usr/lib/sm.bin/sendmail", "/usr/sbin/sendmail.sendmail")
_MARK = "posthouse-question"


class Question(msgspec.Struct, frozen=True):
    """One stranger, one recipient. `name` "" means that the address has none."""

    address: Address
    hello: str
    reverse_path: str
    forward_path: str
    name: str = ""
    is_encrypted: bool = False


class Answer(msgspec.Struct, frozen=True):
    """What the rule sets said: the first refusal, "" when none; and where the mail would go then."""

    question: Question
    refusal: str
    is_remote: bool
    onward: str
    is_complete: bool


class Sendmail:
    """The sendmail of this machine, asked about one configuration."""

    def __init__(self, program: str, configuration: Path) -> None:
        self.program = program
        self.configuration = configuration

    def version(self) -> str:
        """ "sendmail 8.17.1", or "" when it isn't sendmail or doesn't take the file."""
        said = self._run(["-d0.1", "-bt"], "")
        found = re.search(r"^Version (\S+)", said, re.MULTILINE)
        return f"sendmail {found[1]}" if found and "ADDRESS TEST MODE" in said else ""

    def complaint(self) -> str:
        """What it says instead of taking the file."""
        return " ".join(self._run(["-d0.1", "-bt"], "").split())[-300:]

    def members(self, name: str) -> tuple[str, ...]:
        """A class as it is in force: "w", the names that this host takes mail for, or "R", whom it relays for."""
        said = self._run(["-bt"], f"$={name}\n")
        return tuple(line.strip("> ").strip() for line in said.splitlines()[2:] if line.strip("> ").strip())

    def table(self, kind: str, path: str) -> tuple[str, ...] | None:
        """The lines of a table as it is in force, not of its source; None when no makemap can say them."""
        makemap = Path(self.program).resolve().with_name("makemap")
        program = str(makemap) if makemap.is_file() else shutil.which("makemap")
        if program is None:
            return None
        command = [program, "-C", str(self.configuration), "-u", kind, path]
        try:
            done = subprocess.run(  # noqa: S603 - prints a table
                command, capture_output=True, text=True, errors="replace", check=False, timeout=_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return tuple(done.stdout.splitlines()) if done.returncode == 0 else None

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """All in one run."""
        said = self._run(["-bt"], "=M\n" + "".join(_script(number, one) for number, one in enumerate(questions)))
        remote = set(re.findall(r"mailer \d+ \(([^)]+)\): P=\[(?:IPC|TCP)\]", said))
        return [_answer(one, part, remote) for one, part in zip(questions, _parts(said, len(questions)), strict=True)]

    def converse(self, question: Question) -> str:
        """The reply to RCPT in a session whose client is 127.0.0.2; "" when it came to none."""
        with _connection() as (client, server):
            process = subprocess.Popen(  # noqa: S603 - the machine's own sendmail, for one session that stops at RCPT
                self._command(["-bs"]), stdin=server.fileno(), stdout=server.fileno(), stderr=subprocess.DEVNULL
            )
            try:
                return _talk(client, question)
            except OSError:
                return ""
            finally:
                client.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                process.wait()

    def _command(self, arguments: list[str]) -> list[str]:
        name = socket.gethostname()
        name = name if "." in name else f"{name}.localdomain"
        inside = ["sh", "-c", 'hostname "$1"; shift; exec "$@"', "sh", name]
        return ["unshare", "--net", "--uts", *inside, self.program, "-C", str(self.configuration), *arguments]

    def _run(self, arguments: list[str], stdin: str) -> str:
        try:
            done = subprocess.run(  # noqa: S603 - the machine's own sendmail, asked to pretend
                self._command(arguments),
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return done.stdout + done.stderr


def _script(number: int, question: Question) -> str:
    """Macros as a session would set them, then the rule sets in its order."""
    address = str(question.address)
    address = address if question.address.version == 4 else f"IPv6:{question.address.exploded}"
    name = question.name or f"[{address}]"
    domain = question.reverse_path.rpartition("@")[2]
    macros = {
        "{client_addr}": address,
        "{client_name}": name,
        "{client_ptr}": name,
        "{client_resolve}": "OK" if question.name else "FAIL",
        "{client_port}": "1025",
        "_": name,
        "s": question.hello,
        "r": "ESMTPS" if question.is_encrypted else "ESMTP",
        "f": question.reverse_path or "<>",
        "{mail_addr}": question.reverse_path or "<>",
        "{mail_host}": f"{domain}." if domain else "",
        "{mail_mailer}": "esmtp",
        "{auth_type}": "",
        "{auth_authen}": "",
        "{auth_author}": "",
        "{tls_version}": "TLSv1.3" if question.is_encrypted else "",
        "{cipher}": "TLS_AES_256_GCM_SHA384" if question.is_encrypted else "",
        "{cipher_bits}": "256" if question.is_encrypted else "",
        "{verify}": "NO" if question.is_encrypted else "",
        "{daemon_flags}": "",
        "{deliveryMode}": "b",
    }
    lines = [f".D{macro}{value}" for macro, value in macros.items()]
    lines += [
        f"{_MARK} {number}",
        f"check_relay {name} $| {address}",
        f"check_mail <{question.reverse_path}>",
        f"check_rcpt <{question.forward_path}>",
        f"3,0 {question.forward_path}",
    ]
    return "\n".join(lines) + "\n"


def _parts(said: str, count: int) -> list[str]:
    """What was said between one mark and the next: each is an unknown rule set's complaint."""
    parts = re.split(rf"[^\n]*{_MARK}[^\n]*\n", said)[1:]
    return [*parts, *[""] * count][:count]


def _answer(question: Question, part: str, remote: set[str]) -> Answer:
    refusal = ""
    complete = True
    for rules in ("check_relay", "check_mail", "check_rcpt"):
        said = _result(rules, part)
        complete = complete and said is not None
        found = re.match(r"\$# (error|discard)\b(.*)", said or "")
        if found and not refusal:
            refusal = f"{rules}: {' '.join(found[2].split())}"
    end = re.match(r"\$# (\S+)(?: \$@ (.*?))? \$: (.*)", _result("parse", part) or "")
    onward = "".join((end[3] if end else "").split()).replace("<@", "@").rstrip(">").rstrip(".")
    return Answer(question, refusal, end is not None and end[1] in remote, onward, complete and end is not None)


def _result(rules: str, part: str) -> str | None:
    """What the rule set returned when it was called by name: its last word."""
    found = re.findall(rf"^>?\s*{rules}\s+returns: (.*)$", part, re.MULTILINE)
    return found[-1] if found else None


@contextlib.contextmanager
def _connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection on this machine whose client is 127.0.0.2: no address of the machine's own, to sendmail."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        with socket.socket() as client:
            client.settimeout(_SECONDS)
            client.bind(("127.0.0.2", 0))
            client.connect(listener.getsockname())
            with listener.accept()[0] as server:
                yield client, server


def _talk(client: socket.socket, question: Question) -> str:
    lines = (
        f"EHLO {question.hello}",
        f"MAIL FROM:<{question.reverse_path}>",
        f"RCPT TO:<{question.forward_path}>",
        "QUIT",
    )
    with client.makefile("rwb") as stream:
        reply = _reply(stream.readline)
        for line in lines:
            if not reply.startswith("2"):
                return reply
            if line == "QUIT":
                return reply
            stream.write(f"{line}\r\n".encode())
            stream.flush()
            reply = _reply(stream.readline)
    return reply


def _reply(read_line: Callable[[], bytes]) -> str:
    while True:
        line = read_line().decode(errors="replace")
        if line[3:4] != "-":
            return line.strip()


def find_sendmail(configuration: Path) -> Sendmail | None:
    """The sendmail of this machine, not a program of another server by that name; None where there is none."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        return None
    for program in (*_PLACES, shutil.which("sendmail") or ""):
        if program and Path(program).is_file() and b"sendmail.cf" in Path(program).resolve().read_bytes():
            return Sendmail(program, configuration)
    return None
