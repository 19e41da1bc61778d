"""`posthouse relay off|on|status|trust|nonce`: the relay option itself, and whether trusted networks count."""

import time
from pathlib import Path
from typing import Any

import click

from posthouse.cli.faults import plain_faults
from posthouse.cli.options import ExitStatus, config_option, fail, json_option, print_json
from posthouse.config.search import find_local
from posthouse.serve.control import ServerNotRunning, ask

_WORDS = {
    "off": "relay is off: only mail for local domains is taken and delivered, what is queued for elsewhere is held",
    "on": "relay is on, as the configuration allows",
}


@click.command(name="relay", help="Turn relaying off or on at once, or show which it is.")
@click.argument("what", type=click.Choice(["off", "on", "status", "trust", "nonce"]))
@click.argument("listener", required=False)
@config_option
@json_option
def command(what: str, listener: str | None, config_path: Path | None, as_json: bool) -> int:
    """Turn relaying off or on at once, or show which it is.

    off     only delivery to local domains is left, until `on`

    on      as the configuration allows

    status  which it is, and at which listeners trusted networks are suspended, and why

    trust LISTENER  lifts such a suspension on purpose, "192.0.2.1:25" say

    nonce   prints a word for a test from outside: `posthouse test HOST --nonce WORD`, run on another machine, shows whether
    this server sees the addresses that its clients have
    """
    if (listener is None) is (what == "trust"):
        fail(
            "`posthouse relay trust` takes the listener, as `posthouse relay status` names it; the others take nothing"
        )
    data_dir = find_local(config_path).data_dir
    with plain_faults():
        if what == "nonce":
            return _nonce(data_dir, as_json=as_json)
        if what == "trust":
            return _trust(data_dir, listener or "", as_json=as_json)
        try:
            answer = ask(data_dir, f"relay-{what}")
            is_running = True
        except ServerNotRunning:
            answer = _without_server(data_dir, what)
            is_running = False
    if as_json:
        print_json({**answer, "running": is_running})
    else:
        state = answer["relay"]
        click.echo(_WORDS[state] + ("" if is_running else " (no server is running; it holds from the next start)"))
        _print_networks(answer)
    return ExitStatus.NO if what == "status" and answer["relay"] == "off" else ExitStatus.DONE


def _print_networks(answer: dict[str, Any]) -> None:
    for one in answer.get("suspended", ()):
        click.echo(f"SUSPENDED: {one['words']}")
    for one in answer.get("echoes", ()):
        click.echo(one["words"])


def _nonce(data_dir: Path, *, as_json: bool) -> int:
    answer = ask(data_dir, "echo-nonce")
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["nonce"])
        until = time.strftime("%H:%M", time.localtime(answer["expires_at"]))
        click.echo(
            f"good until {until}: run `posthouse test HOST --nonce {answer['nonce']}` on another machine", err=True
        )
    return ExitStatus.DONE


def _trust(data_dir: Path, listener: str, *, as_json: bool) -> int:
    try:
        answer = ask(data_dir, "relay-trust", listener=listener)
    except ServerNotRunning:
        answer = _trust_without_server(data_dir, listener)
    if as_json:
        print_json(answer)
    else:
        click.echo(f"trusted networks count again at {listener}; have it tested from outside: `posthouse relay nonce`")
        _print_networks(answer)
    return ExitStatus.DONE


def _trust_without_server(data_dir: Path, listener: str) -> dict[str, Any]:
    from posthouse.serve.data_dir import DataDirError, open_data_dir  # noqa: PLC0415
    from posthouse.serve.masking import FindingsUnreadable, findings_text, lifted, read_findings, status_of  # noqa: PLC0415
    from posthouse.serve.privileges import Identity  # noqa: PLC0415

    try:
        data = open_data_dir(data_dir, Identity.of_owner(data_dir))
        try:
            findings = read_findings(data_dir)
            if listener not in findings.suspended:
                fail(f"the networks of {listener} are not suspended", ExitStatus.NO)
            findings = lifted(findings, listener)
            data.set_findings(findings_text(findings))
        finally:
            data.release()
    except (DataDirError, FindingsUnreadable, OSError) as error:
        fail(f"can't have the networks of {listener} count again: {error}")
    return status_of(findings)


def _without_server(data_dir: Path, what: str) -> dict[str, Any]:
    from posthouse.serve.data_dir import DataDir, DataDirError, RelayOption, open_data_dir  # noqa: PLC0415
    from posthouse.serve.privileges import Identity  # noqa: PLC0415

    if what == "status":
        option = DataDir(data_dir, -1).relay_option
        if option is RelayOption.UNKNOWN:
            fail(
                f"{data_dir}/relay-state can't be read: run this as root or as the server's user", ExitStatus.NO_VERDICT
            )
        return {"relay": option.value, **_networks_without_server(data_dir)}
    try:
        data = open_data_dir(data_dir, Identity.of_owner(data_dir))
        try:
            data.set_relay_enabled(what == "on")
        finally:
            data.release()
    except (DataDirError, OSError) as error:
        fail(f"can't turn relaying {what}: {error}")
    return {"relay": what}


def _networks_without_server(data_dir: Path) -> dict[str, Any]:
    from posthouse.serve.masking import FindingsUnreadable, read_findings, status_of  # noqa: PLC0415

    try:
        return status_of(read_findings(data_dir))
    except FindingsUnreadable as error:
        fail(str(error), ExitStatus.NO_VERDICT)
