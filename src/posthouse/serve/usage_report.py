"""Who used this server's relaying: gathered from the history, put into words, and mailed to the postmaster.

The owner of an abused relay is typically unaware of it. So a line says when its client or login was not there in the
period before: a stolen password shows first as a login from somewhere new.
"""

import smtplib
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from pathlib import Path

import msgspec

from posthouse.net.listen import unix_address
from posthouse.spool.recall import Refusals, Usage, refusals, usage


class Line(msgspec.Struct, frozen=True):
    """What one client, under one login, used by one kind of grant. `is_new`: not seen in the period before."""

    client: str
    login: str
    grant: str
    messages: int
    recipients: int
    size_bytes: int
    is_new: bool


class Report(msgspec.Struct, frozen=True):
    """The usage of a period; times are milliseconds since 1970. Nobody is new when the history is too short to tell."""

    since: int
    until: int
    lines: tuple[Line, ...]
    refusals: tuple[Refusals, ...]


def gather(data_dir: Path, since: int, until: int) -> Report:
    """Reads the history of all shards, server running or not. SpoolError when it can't be read."""
    before = usage(data_dir, since - (until - since), since)
    known = {_who(row) for row in before}
    lines = tuple(
        Line(
            row.client,
            row.login,
            row.grant,
            row.messages,
            row.recipients,
            row.size_bytes,
            is_new=bool(before) and _who(row) not in known,
        )
        for row in usage(data_dir, since, until)
    )
    return Report(since, until, lines, tuple(refusals(data_dir, since, until)))


def describe(report: Report, most: int) -> list[str]:
    """The report for people, at most `most` lines of each table (0: all), in words that are safe on a terminal."""
    text = [f"Relaying from {_day(report.since)} to {_day(report.until)}", ""]
    if not report.lines:
        text.append("Nobody used it.")
    else:
        rows = [
            (
                str(line.messages),
                str(line.recipients),
                _size(line.size_bytes),
                _safe(line.client) or "local",
                _safe(line.login) or "-",
                line.grant,
                "new" if line.is_new else "",
            )
            for line in report.lines
        ]
        text += _table(("messages", "recipients", "size", "client", "login", "grant", ""), rows, most, right=3)
        total = (sum(line.messages for line in report.lines), sum(line.recipients for line in report.lines))
        text += ["", f"In all {total[0]} messages to {total[1]} recipients."]
        if any(line.is_new for line in report.lines):
            text.append("new: this client with this login was not there in the period before. Do you know it?")
    text += ["", "Refused:" if report.refusals else "No recipient and no login was refused."]
    if report.refusals:
        refused = [
            (str(row.times), _safe(row.client) or "local", _safe(row.login) or "-", row.slug) for row in report.refusals
        ]
        text += _table(("times", "client", "login", "reason"), refused, most, right=1)
    return text


def compose(report: Report, hostname: str, postmaster: str) -> EmailMessage:
    """The report as a mail."""
    mail = EmailMessage()
    new = sum(line.is_new for line in report.lines)
    mail["From"] = f"Posthouse on {hostname} <{postmaster}>"
    mail["To"] = postmaster
    mail["Subject"] = f"Who relayed through {hostname}" + (f": {new} new" if new else "")
    mail["Date"] = format_datetime(datetime.now(UTC))
    mail["Message-ID"] = make_msgid(domain=hostname)
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834 5: nobody's vacation program shall answer
    mail.set_content("\n".join(describe(report, most=50)) + "\n\nMore: posthouse usage, posthouse queue list\n")
    return mail


class _LocalSmtp(smtplib.SMTP):
    """SMTP over the server's local socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__("localhost", timeout=60)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        del host, port
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.settimeout(timeout)
        try:
            with unix_address(self._path) as address:
                one.connect(address)
        except OSError:
            one.close()
            raise
        return one


def send(mail: EmailMessage, data_dir: Path, postmaster: str) -> None:
    """Hands it to the running server, with the null reverse-path: nobody wants a bounce of it. OSError, smtplib.SMTPException."""
    with _LocalSmtp(data_dir / "submit.sock") as server:
        server.send_message(mail, from_addr="", to_addrs=[postmaster])


def _who(row: Usage) -> tuple[str, str]:
    return row.client, row.login


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], most: int, *, right: int) -> list[str]:
    """Columns as wide as they must be; the first `right` are numbers."""
    shown = rows[:most] if most else rows
    widths = [max(len(row[n]) for row in [head, *shown]) for n in range(len(head))]
    lines = [
        "  ".join(cell.rjust(widths[n]) if n < right else cell.ljust(widths[n]) for n, cell in enumerate(row)).rstrip()
        for row in [head, *shown]
    ]
    return [*lines, f"... and {len(rows) - len(shown)} more"] if len(shown) < len(rows) else lines


def _safe(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _day(milliseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(milliseconds / 1000))


def _size(octets: int) -> str:
    size = float(octets)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
