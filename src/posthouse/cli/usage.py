"""`posthouse usage`: who used this server's relaying."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from posthouse.cli.options import ExitStatus, config_option, fail, json_option, print_json
from posthouse.cli.progress import sign_of_life
from posthouse.config.search import find_local

if TYPE_CHECKING:
    from posthouse.serve.usage_report import Report

_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


@click.command(name="usage", help="Show who used this server's relaying.")
@click.option(
    "--since", default="7d", show_default=True, help="How far back: 24h, 7d, 2w, or a day such as 2026-11-01."
)
@click.option(
    "--limit", "most", type=click.IntRange(0), default=30, show_default=True, help="Lines of each table; 0 shows all."
)
@click.option("--mail", "by_mail", is_flag=True, help="Send it to the postmaster instead; the server does so weekly.")
@config_option
@json_option
def command(since: str, most: int, by_mail: bool, config_path: Path | None, as_json: bool) -> int:
    """By client, login and grant over a period: messages, recipients, octets; and who was refused. Server running or not."""
    from posthouse.cli.faults import plain_faults  # noqa: PLC0415 - not needed for --help
    from posthouse.serve.usage_report import describe, gather  # noqa: PLC0415

    now = time.time()
    with plain_faults(), sign_of_life("adding up the history"):
        report = gather(find_local(config_path).data_dir, _milliseconds(since, now), int(now * 1000) + 1)
    if by_mail:
        _mail(report, config_path)
    elif as_json:
        print_json(_document(report))
    else:
        click.echo("\n".join(describe(report, most)))
    return ExitStatus.DONE


def _milliseconds(since: str, now: float) -> int:
    written = re.fullmatch(r"(\d{1,5})([hdw])", since)
    if written:
        return int((now - int(written[1]) * _SECONDS[written[2]]) * 1000)
    try:
        day = datetime.fromisoformat(since)
    except ValueError:
        fail(f"--since {since!r} is not a period; write 24h, 7d, 2w, or a day such as 2026-11-01")
    begin = int(day.timestamp() * 1000)
    if begin >= now * 1000:
        fail(f"--since {since!r} lies in the future")
    return begin


def _mail(report: "Report", config_path: Path | None) -> None:
    from smtplib import SMTPRecipientsRefused, SMTPResponseException  # noqa: PLC0415

    from posthouse.config import load_config  # noqa: PLC0415
    from posthouse.serve.usage_report import compose, send  # noqa: PLC0415

    config = load_config(config_path)
    if not config.postmaster:
        fail('usage --mail needs to know whom to tell: set "postmaster" in the configuration')
    try:
        send(compose(report, config.hostname, config.postmaster), config.data_dir, config.postmaster)
    except OSError as error:  # those of smtplib as well
        match error:
            case SMTPResponseException() | SMTPRecipientsRefused():
                status = ExitStatus.NO
            case FileNotFoundError() | ConnectionRefusedError() | PermissionError():
                status = ExitStatus.USAGE
            case _:
                status = ExitStatus.NO_VERDICT
        fail(f"the report could not be handed to the server on {config.data_dir}: {error}", status)
    click.echo(f"sent to {config.postmaster}")


def _document(report: "Report") -> dict[str, object]:
    """What --json prints; the keys are public."""
    return {
        "since": _iso(report.since),
        "until": _iso(report.until),
        "usage": report.lines,
        "refusals": [
            {"client": row.client, "login": row.login, "reason": row.slug, "times": row.times}
            for row in report.refusals
        ],
        "messages": sum(line.messages for line in report.lines),
        "recipients": sum(line.recipients for line in report.lines),
        "size_bytes": sum(line.size_bytes for line in report.lines),
    }


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
