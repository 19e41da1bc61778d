"""`posthouse watch`: has the tester of [watch] test this server now, and says what it said."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from posthouse.cli.options import ExitStatus, config_option, fail, json_option, print_json
from posthouse.cli.progress import sign_of_life

if TYPE_CHECKING:
    from posthouse.config import Config
    from posthouse.serve.watch import Look


@click.command(name="watch", help="Have this server tested from outside by the tester of [watch].")
@click.option("--mail", "by_mail", is_flag=True, help="Send a change of verdict to the postmaster, as the server does.")
@click.option("--last", "is_last", is_flag=True, help="Ask nobody; tell what was said last.")
@config_option
@json_option
def command(config_path: Path | None, as_json: bool, by_mail: bool, is_last: bool) -> int:
    """0 closed, 1 open, 3 no verdict; 2 when [watch] names no tester."""
    from posthouse.config import load_config  # noqa: PLC0415 - not needed for --help
    from posthouse.serve.watch import Look, keep_record, look, read_record, untold  # noqa: PLC0415

    config = load_config(config_path)
    if not config.watch.tester:
        fail('no tester is named: set `tester = "https://..."` in a section [watch]')
    before = read_record(config.data_dir)
    if is_last:
        found = Look(before)
    else:
        with sign_of_life(f"waiting for {config.watch.tester}"):
            found = look(config.watch.tester, _nonce(config), before)
        is_told = not by_mail or _mail(config, found)
        try:
            keep_record(config.data_dir, found.record if is_told else untold(before, found))
        except OSError as error:
            fail(f"the verdict can't be kept in {config.data_dir}: {error.strerror}")
    _print(found, as_json=as_json)
    return found.verdict.exit_status if found.verdict is not None and not found.failures else ExitStatus.NO_VERDICT


def _nonce(config: "Config") -> str:
    """By which the running server will know the test; without one it is tested all the same."""
    from posthouse.serve.control import ControlError, ServerNotRunning, ask  # noqa: PLC0415

    try:
        return str(ask(config.data_dir, "echo-nonce")["nonce"])
    except (ServerNotRunning, ControlError) as error:
        click.echo(f"posthouse: the test goes without an echo: {error}", err=True)
        return ""


def _mail(config: "Config", found: "Look") -> bool:
    """False when there is something to tell and it could not be told now."""
    from posthouse.serve.usage_report import send  # noqa: PLC0415
    from posthouse.serve.watch import compose, tells_postmaster  # noqa: PLC0415

    changes = [change for change in found.changes if tells_postmaster(change)]
    if not changes:
        return True
    if not config.postmaster:
        click.echo('posthouse: nobody is told of the change: set "postmaster" in the configuration', err=True)
        return True
    try:
        send(
            compose(changes, config.watch.tester, config.hostname, config.postmaster),
            config.data_dir,
            config.postmaster,
        )
    except OSError as error:  # those of smtplib as well
        click.echo(f"posthouse: the change could not be mailed to {config.postmaster}: {error}", err=True)
        return False
    return True


def _print(found: "Look", *, as_json: bool) -> None:
    if as_json:
        print_json({"verdict": found.verdict, "outcome": found.outcome, **_fields(found)})
        return
    for one in found.record.verdicts:
        click.echo(f"{one.verdict}: {one.address} by {one.family}: {one.words}")
        for line in (*one.doubts, one.remedy):
            if line:
                click.echo(f"  {line}")
    for change in found.changes:
        click.echo(f"changed: {change.sentence}")
    for failure in found.failures:
        click.echo(f"no verdict {failure}")
    if not found.record.verdicts and not found.failures:
        click.echo("nothing is known yet")


def _fields(found: "Look") -> dict[str, object]:
    return {
        "tester": found.record.tester,
        "asked_at": found.record.asked_at,
        "verdicts": found.record.verdicts,
        "changes": found.changes,
        "failures": found.failures,
    }
