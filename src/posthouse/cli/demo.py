"""`posthouse demo`: one minute for a newcomer. A relay, a next hop and a stranger, on loopback, in a directory that goes away.

Both servers are real ones, started as `posthouse serve`, and what is shown of the queue is what the commands print.
"""

import contextlib
import re
import shlex
import signal
import smtplib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

import click

from posthouse.cli.options import ExitStatus, as_typed, config_option, fail

T = TypeVar("T")

_PATIENCE = 30.0
"""Seconds that one step may take before the demo gives up."""

_NEXT_HOP = """\
hostname = "next-hop.example"
data_dir = "next-hop"
workers = 1
[[listener]]
address = "127.0.0.1:0"
[relay]
local_domains = ["friends.example"]
trusted_networks = []
[[route]]
domain = "friends.example"
to = "maildir:mailboxes/{local_part}"
[limits]
free_space = "1MB"
[log]
level = "error"
"""

_RELAY = """\
hostname = "relay.example"
data_dir = "relay"
workers = 1
[[listener]]
address = "127.0.0.1:0"
[relay]
trusted_networks = ["127.0.0.1"]
[[route]]
domain = "friends.example"
to = "smtp://127.0.0.1:%d"
[[route]]
domain = "away.example"
to = "smtp://127.0.0.1:1"
[limits]
free_space = "1MB"
[log]
level = "error"
"""

_MESSAGE = "From: jane@relay.example\r\nTo: {0}\r\nSubject: {1}\r\n\r\nHello from the demo.\r\n"
_ready_at = re.compile(r"^ready\b.*? 127\.0\.0\.1:(\d+)", re.MULTILINE).search


@click.command(name="demo", help="See a relay at work in one minute: loopback only, nothing left behind.")
@config_option
def command(config_path: Path | None) -> int:
    """0 when all went as it should, 1 when not."""
    del config_path  # the demo brings its own, and touches nobody's
    signal.signal(signal.SIGTERM, _leave)
    with tempfile.TemporaryDirectory(prefix="posthouse-demo-") as name:
        _show_all(Path(name))
    click.echo(as_typed("\nThat was all; nothing is left of it. Your own: `posthouse init`, then `posthouse serve`."))
    return ExitStatus.DONE


def _leave(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM: the servers end and the directory goes, as at the end."""
    raise KeyboardInterrupt


def _show_all(directory: Path) -> None:
    with (
        _server(directory / "next-hop.toml", _NEXT_HOP) as next_hop,
        _server(directory / "relay.toml", _RELAY % next_hop) as relay,
    ):
        _title("A relay and a next hop are running")
        click.echo(f"the relay     127.0.0.1:{relay}   relays for 127.0.0.1 and nobody else")
        click.echo(f"the next hop  127.0.0.1:{next_hop}   has the mailboxes of friends.example")
        queue_id = _show_relaying(relay, directory)
        _show_stranger(relay)
        _show_queue(relay, directory)
        _title("And everything can be asked why")
        _run(directory, "why", queue_id)


def _show_relaying(port: int, directory: Path) -> str:
    """A mail relayed; its queue id."""
    _title("A client at 127.0.0.1, which is trusted, sends a mail to ann@friends.example")
    answer = _send(port, "127.0.0.1", "ann@friends.example", "relayed")
    click.echo(answer)
    found = re.search(r"as (\S+)", answer)
    if found is None or not answer.startswith("250"):
        fail(f"the relay did not take the mail: {answer}", ExitStatus.NO)
    mailbox = directory / "mailboxes" / "ann" / "new"
    mail = _await("the mail to reach the mailbox", lambda: next(iter(mailbox.glob("*")), None))
    click.echo("It is in ann's mailbox at the next hop; on top stands the way it took:")
    for line in mail.read_text().partition("\n\n")[0].splitlines():
        click.echo(f"    {line}")
    return found[1]


def _show_stranger(port: int) -> None:
    _title("A stranger at 127.0.0.2 tries the same, and a few tricks")
    for recipient in (
        "ann@friends.example",
        "ann%friends.example@relay.example",
        '"ann@friends.example"@relay.example',
    ):
        answer = _send(port, "127.0.0.2", recipient, "spam")
        click.echo(f"RCPT TO:<{recipient}>\n    {answer}")
        if not answer.startswith("5"):
            fail(f"the stranger was not refused: {answer}", ExitStatus.NO)


def _show_queue(port: int, directory: Path) -> None:
    _title("A mail for a server that is down waits in the queue, on disk, and is tried again")
    click.echo(_send(port, "127.0.0.1", "bob@away.example", "later"))
    _await("the first attempt to fail", lambda: "refused" in _output(directory, "queue", "list") or None)
    _run(directory, "queue", "list")


def _send(port: int, source: str, recipient: str, subject: str) -> str:
    """Hands one mail in from an address of this machine; the decisive answer."""
    try:
        with smtplib.SMTP("127.0.0.1", port, "client.example", _PATIENCE, (source, 0)) as client:
            client.ehlo_or_helo_if_needed()
            client.mail("jane@relay.example")
            code, text = client.rcpt(recipient)
            if code == 250:
                code, text = client.data(_MESSAGE.format(recipient, subject))
    except (OSError, smtplib.SMTPException) as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # smtplib's QUIT read the answer we were interrupted at
            raise KeyboardInterrupt from error
        fail(f"the relay does not answer: {error}", ExitStatus.NO)
    return f"{code} {text.decode('utf-8', 'replace')}"


@contextlib.contextmanager
def _server(config: Path, text: str) -> Iterator[int]:
    """A running server; its port."""
    config.write_text(text)
    said = config.with_suffix(".log")
    command_line = [sys.executable, "-m", "posthouse", "serve", "--config", str(config)]
    with said.open("wb") as log, subprocess.Popen(command_line, stderr=log, stdin=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            yield _await("a server to be ready", lambda: _port_of(process, said))
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _port_of(process: "subprocess.Popen[bytes]", said: Path) -> int | None:
    """The port that the server's `ready` line names; None until it is there."""
    text = said.read_text(errors="replace")
    found = _ready_at(text)
    if found is None and process.poll() is not None:
        fail(f"a server did not start:\n{text}", ExitStatus.NO)
    return int(found[1]) if found else None


def _await(what: str, look: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + _PATIENCE
    while (found := look()) is None:
        if time.monotonic() > deadline:
            fail(f"waited {_PATIENCE:g} s in vain for {what}", ExitStatus.NO)
        time.sleep(0.05)
    return found


def _output(directory: Path, *words: str) -> str:
    line = [sys.executable, "-m", "posthouse", *words, "--config", str(directory / "relay.toml")]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout  # noqa: S603


def _run(directory: Path, *words: str) -> None:
    """Shows a command and what it prints."""
    click.echo(click.style(f"$ posthouse {shlex.join(words)}", bold=True))
    click.echo(_output(directory, *words).rstrip())


def _title(words: str) -> None:
    click.echo(f"\n{click.style(words, bold=True)}")
