"""What commands share: --config, --json, some of the relay test, exit statuses, and how an answer or a refusal is printed.

Use as decorators on a click command: `@config_option` passes `config_path` (Path or None) and `@json_option` passes
`as_json`. A ConfigError may simply be let through: the program prints it and exits 2.
"""

import enum
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import msgspec

F = TypeVar("F", bound=Callable[..., Any])


class ExitStatus(enum.IntEnum):
    """What a command answers to its caller."""

    DONE = 0
    NO = 1
    USAGE = 2
    NO_VERDICT = 3


class Fault(click.ClickException):
    """A refusal in one sentence, and the exit status."""

    def __init__(self, sentence: str, status: int = ExitStatus.USAGE) -> None:
        super().__init__(sentence)
        self.status = int(status)

    def show(self, file: Any = None) -> None:
        """One line on standard error."""
        print(f"posthouse: {as_typed(self.message)}", file=file or sys.stderr)


def as_typed(sentence: str) -> str:
    """A sentence whose commands (`posthouse serve`) are written as this user must type them: a checkout has no command in PATH.

    The checkout's launcher says in POSTHOUSE_CALLED how it was called.
    """
    called = os.environ.get("POSTHOUSE_CALLED", "")
    return sentence.replace("`posthouse ", f"`{called} ") if called else sentence


def fail(sentence: str, status: int = ExitStatus.USAGE) -> NoReturn:
    """Ends the command: the sentence goes to standard error, the status to the caller."""
    raise Fault(sentence, status)


def _remember_config(context: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
    """`posthouse --config F queue list` is `posthouse queue list --config F`; the nearer one counts."""
    if value is not None:
        context.meta["posthouse.config"] = value
        return value
    found = context.meta.get("posthouse.config")
    return found if isinstance(found, Path) else None


def config_option(command: F) -> F:
    """Adds `--config FILE`, passed as `config_path`: a Path, or None to search the usual places."""
    option = click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        callback=_remember_config,
        help="The configuration file.  [default: ./posthouse.toml, /etc/posthouse/posthouse.toml, or the embedded one]",
    )
    return option(command)


def json_option(command: F) -> F:
    """Adds `--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for programs.")(command)


def source_option(command: F) -> F:
    """Adds `--source ADDRESS`, passed as `source`; "" for any."""
    meaning = "Come from this address of this machine."
    return click.option("--source", default="", metavar="ADDRESS", help=meaning)(command)


def deadline_option(meaning: str) -> Callable[[F], F]:
    """Adds `--deadline SECONDS`, passed as `deadline`; `meaning` is what the help says of it."""
    seconds = click.FloatRange(1, 86400)
    return click.option("--deadline", type=seconds, default=300.0, metavar="SECONDS", help=f"{meaning}  [default: 300]")


def collector_option(command: F) -> F:
    """Adds `--collector`, passed as `collector`: "auto" or "none"."""
    meaning = "Ask the configured collector what has arrived, or none.  [default: auto]"
    return click.option("--collector", type=click.Choice(["auto", "none"]), default="auto", help=meaning)(command)


def print_json(answer: Any) -> None:
    """One JSON document on standard output and nothing else; structs, enums, paths and tuples are understood."""
    sys.stdout.write(msgspec.json.encode(answer, enc_hook=str).decode() + "\n")
