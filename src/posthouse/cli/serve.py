"""`posthouse serve`: run the mail relay in the foreground."""

import sys
from pathlib import Path

import click

from posthouse.cli.options import as_typed, config_option, fail


@click.command(name="serve", help="Run the mail relay in the foreground.")
@config_option
def command(config_path: Path | None) -> int:
    """Every role that the configuration names; 2 when it can't start, before anything listens."""
    from posthouse.serve.admission import NotAdmitted, admission_of  # noqa: PLC0415 - `serve --help` needs no server
    from posthouse.serve.supervisor import CannotStart, run  # noqa: PLC0415

    try:
        return run(admission_of(config_path), _say)
    except (NotAdmitted, CannotStart) as error:
        fail(str(error))


def _say(line: str) -> None:
    """For people: standard error, at once."""
    sys.stderr.write(as_typed(line) + "\n")
    sys.stderr.flush()
