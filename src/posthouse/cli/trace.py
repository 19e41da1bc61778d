"""`posthouse trace ADDRESS`: what would happen to a mail for that address."""

import asyncio
from ipaddress import ip_address
from pathlib import Path

import click

from posthouse.cli.options import ExitStatus, as_typed, config_option, fail, json_option, print_json
from posthouse.smtp import address as smtp_address
from posthouse.smtp.address import AddressError


@click.command(name="trace", help="Say step by step what would happen to a mail for an address.")
@click.argument("address")
@click.option("--connect", "connects", is_flag=True, help="Talk to the next hop as far as RCPT; show the dialogue.")
@click.option("--from", "reverse_path", default="", metavar="ADDRESS", help="The reverse-path.  [default: <>]")
@click.option("--client", default="", metavar="IP", help="As from a client there.  [default: a local user]")
@click.option("--as-user", "login", default="", metavar="NAME", help="As from a client that has logged in.")
@config_option
@json_option
def command(
    address: str, connects: bool, reverse_path: str, client: str, login: str, config_path: Path | None, as_json: bool
) -> int:
    """0 it goes on, 1 it is refused, 3 that can't be told now."""
    from posthouse.config import load_config  # noqa: PLC0415 - not needed for --help
    from posthouse.serve.tracing import Case, Verdict, trace  # noqa: PLC0415

    case = Case(_forward_path(address), _reverse_path(reverse_path), _client(client), login.strip(), connects)
    answer = asyncio.run(trace(load_config(config_path), case))
    if as_json:
        print_json(answer)
    else:
        width = max(len(step.step) for step in answer.steps)
        for step in answer.steps:
            click.echo(f"{step.step:<{width}}  {as_typed(step.words)}")
        for line in answer.dialogue:
            click.echo(f"    {line}")
        click.echo(_WORDS[answer.verdict.value])
    return {
        Verdict.GOES_ON: ExitStatus.DONE,
        Verdict.REFUSED: ExitStatus.NO,
        Verdict.UNKNOWN: ExitStatus.NO_VERDICT,
    }[answer.verdict]


_WORDS = {
    "goes-on": "so: the mail would go on",
    "refused": "so: the mail would be refused, or returned to its sender",
    "unknown": "so: nobody can tell now; a mail would wait and be tried again",
}


def _forward_path(text: str) -> smtp_address.Path:
    try:
        return smtp_address.parse_forward_path(_bare(text), smtputf8=True)
    except AddressError as error:
        fail(f"{text!r} is not a mail address: {error}")


def _reverse_path(text: str) -> smtp_address.Path:
    try:
        return smtp_address.parse_reverse_path(_bare(text), smtputf8=True)
    except AddressError as error:
        fail(f"--from {text!r} is not a mail address: {error}")


def _bare(text: str) -> bytes:
    return text.strip().removeprefix("<").removesuffix(">").encode("utf-8", "surrogateescape")


def _client(text: str) -> str:
    try:
        return str(ip_address(text)) if text else ""
    except ValueError:
        fail(f"--client {text!r} is not an IP address")
