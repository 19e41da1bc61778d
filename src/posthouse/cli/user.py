"""`posthouse user add|passwd|remove|list`: the accounts for SMTP AUTH. A running server knows of a change at the next login."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from posthouse.cli.options import ExitStatus, as_typed, config_option, fail, json_option, print_json

if TYPE_CHECKING:
    from posthouse.config import Config
    from posthouse.serve.account_file import AccountFile

_password_option = click.option(
    "--password-stdin", "from_stdin", is_flag=True, help="Read the password from standard input, for programs."
)


@click.group(name="user", help="Manage the accounts for SMTP AUTH.")
@config_option
def command(config_path: Path | None) -> None:
    """The group; its commands take --config as well."""
    del config_path


@command.command(name="add", help="Make an account and set its password.")
@click.argument("name")
@_password_option
@config_option
def add(name: str, from_stdin: bool, config_path: Path | None) -> None:
    """1 when there is such an account already."""
    with _accounts(config_path) as file:
        file.require_free(name)
        file.add(name, _password(name, from_stdin=from_stdin))
    click.echo(f"{name} may log in now")


@command.command(name="passwd", help="Set the password of an account.")
@click.argument("name")
@_password_option
@config_option
def passwd(name: str, from_stdin: bool, config_path: Path | None) -> None:
    """1 when there is no such account."""
    with _accounts(config_path) as file:
        file.require(name)
        file.set_password(name, _password(name, from_stdin=from_stdin))
    click.echo(f"the password of {name} is changed")


@command.command(name="remove", help="Take an account away.")
@click.argument("name")
@config_option
def remove(name: str, config_path: Path | None) -> None:
    """1 when there is no such account."""
    with _accounts(config_path) as file:
        file.remove(name)
    click.echo(f"{name} may not log in any more")


@command.command(name="list", help="Show who may log in.")
@config_option
@json_option
def list_accounts(config_path: Path | None, as_json: bool) -> None:
    """The names, one a line."""
    with _accounts(config_path) as file:
        names = sorted(file.read())
    if as_json:
        print_json({"accounts": [{"name": name} for name in names]})
    elif names:
        click.echo("\n".join(names))
    else:
        click.echo(as_typed("there are no accounts; `posthouse user add NAME` makes one"), err=True)


@contextlib.contextmanager
def _accounts(config_path: Path | None) -> "Iterator[AccountFile]":
    """The accounts' file of the configuration; what is wrong with them ends the command in one sentence."""
    from posthouse.config import load_config  # noqa: PLC0415 - not needed for --help
    from posthouse.serve.account_file import (  # noqa: PLC0415
        AccountError,
        AccountExists,
        AccountFile,
        AccountMissing,
        accounts_path,
    )

    config = load_config(config_path)
    _make_data_dir(config)
    try:
        yield AccountFile(accounts_path(config))
    except (AccountExists, AccountMissing) as error:
        fail(str(error), ExitStatus.NO)
    except AccountError as error:
        fail(str(error))


def _make_data_dir(config: "Config") -> None:
    """Accounts may be made before the first start: then the data directory is made here, and as the server would."""
    from posthouse.serve.data_dir import DataDirError, open_data_dir  # noqa: PLC0415
    from posthouse.serve.privileges import Identity, PrivilegeError  # noqa: PLC0415

    if config.data_dir.exists():
        return
    try:
        open_data_dir(config.data_dir, Identity(config.user)).release()
    except (DataDirError, PrivilegeError) as error:
        fail(str(error))


def _password(name: str, *, from_stdin: bool) -> str:
    """The first line of standard input, or what is typed twice without an echo."""
    if from_stdin:
        return sys.stdin.buffer.readline(4096).decode("utf-8", "surrogateescape").rstrip("\r\n")
    if not sys.stdin.isatty():
        fail("standard input is no terminal to ask for a password; use --password-stdin")
    password: str = click.prompt(f"New password for {name}", hide_input=True, confirmation_prompt="Once more", err=True)
    return password
