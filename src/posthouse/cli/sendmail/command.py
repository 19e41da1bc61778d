"""`sendmail` as the table of commands shows it; its own options are sendmail(1)'s, and click does not look at them."""

import sys
from pathlib import Path

import click

from posthouse.cli.options import config_option
from posthouse.cli.sendmail import run


@click.command(
    "sendmail",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Take a mail from standard input, as sendmail(1) does.",
)
@config_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command(config_path: Path | None, words: tuple[str, ...]) -> None:
    """Take a mail from standard input, as sendmail(1) does."""
    place = ["--config", str(config_path)] if config_path else []
    sys.exit(run([*place, *words]))
