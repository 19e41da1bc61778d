"""Exim's own word: a whole session, played as if from an address, by `exim -bh` (specification, chapter 5).

Nothing is delivered and no line leaves the machine: Exim runs where there is no network, since -bh would look names up and
call other hosts out. What then can't be decided it answers with 4xx, which is no verdict.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec

from posthouse.audit.exim.session import Session

_SECONDS = 30.0
_REPLY = re.compile(r"^(\d{3}) (.*)$", re.MULTILINE)
_DISCARDED = re.compile(r"^LOG: .*: discarded by (?:MAIL|RCPT) ACL", re.MULTILINE)  # the reply doesn't tell
_TRANSPORT = re.compile(r"^  router = \S+, transport = (\S+)$", re.MULTILINE)


class Played(msgspec.Struct, frozen=True):
    """What Exim answered to RCPT: a code, 0 when it came to none, and the words. `is_discarded`: 250, and thrown away."""

    code: int
    words: str
    is_discarded: bool = False

    @property
    def is_taken(self) -> bool:
        """Accepted, and not to be thrown away."""
        return 200 <= self.code < 300 and not self.is_discarded


class Exim:
    """The Exim of this machine, asked about one configuration."""

    def __init__(self, program: str, configuration: Path) -> None:
        self.program = program
        self.configuration = configuration

    def version(self) -> str:
        """Words about program and configuration; "" when Exim can't read it."""
        done = "".join(self._run("-bV"))
        found = re.search(r"Exim version (\S+)", done)
        return f"Exim {found[1]}" if found and "onfiguration file is" in done else ""

    def complaint(self) -> str:
        """What Exim says against the configuration."""
        return " ".join("".join(self._run("-bV")).split())[-300:]

    def say(self, session: Session) -> Played:
        """The session up to RCPT. What TLS would change can't be played."""
        lines = (
            f"EHLO {session.hello}",
            f"MAIL FROM:<{session.reverse_path}>",
            f"RCPT TO:<{_path(session.local_part)}@{session.domain}>",
            "QUIT",
        )
        said, log = self._run("-bh", str(session.address), stdin="".join(f"{line}\r\n" for line in lines))
        replies = [(int(code), words) for code, words in _REPLY.findall(said.replace("\r", ""))]
        # 220, EHLO, MAIL, RCPT, QUIT; a refusal further up stands for all that follow.
        for code, words in replies[:3]:
            if code >= 400:
                return Played(code, words)
        discarded = _DISCARDED.search(log) is not None
        return Played(*replies[3], discarded) if len(replies) > 3 else Played(0, "no reply to RCPT")

    def transports(self, session: Session) -> tuple[str, ...]:
        """The transports that the recipient is routed to (-bt); "" for one that hangs on a look-up in the network."""
        said, _ = self._run("-f", session.reverse_path or "<>", "-bt", "--", session.forward_path)
        waits = ("",) if "cannot be resolved at this time" in said else ()
        return (*_TRANSPORT.findall(said), *waits)

    def _run(self, *arguments: str, stdin: str = "") -> tuple[str, str]:
        """What it prints, and its log and complaints."""
        try:
            done = subprocess.run(  # noqa: S603 - the machine's own Exim, asked to pretend
                ["unshare", "--net", self.program, "-C", str(self.configuration), *arguments],  # noqa: S607
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{error}", ""
        return done.stdout, done.stderr


def _path(local_part: str) -> str:
    return f'"{local_part}"' if "@" in local_part else local_part


def find_exim(configuration: Path) -> Exim | None:
    """The Exim of this machine; None where there is none, or no way to run it without a network."""
    program = shutil.which("exim4") or shutil.which("exim")
    if program is None or shutil.which("unshare") is None or os.geteuid() != 0:
        return None
    return Exim(program, configuration)
