"""`posthouse relay off|on|status`: the relay option itself."""

from pathlib import Path

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
@click.argument("what", type=click.Choice(["off", "on", "status"]))
@config_option
@json_option
def command(what: str, config_path: Path | None, as_json: bool) -> int:
    """0 when it is so, 1 for `status` when relaying is off, else as `plain_faults` says; works without a running server too."""
    data_dir = find_local(config_path).data_dir
    with plain_faults():
        try:
            state = ask(data_dir, f"relay-{what}")["relay"]
            is_running = True
        except ServerNotRunning:
            state = _without_server(data_dir, what)
            is_running = False
    if as_json:
        print_json({"relay": state, "running": is_running})
    else:
        click.echo(_WORDS[state] + ("" if is_running else " (no server is running; it holds from the next start)"))
    return ExitStatus.NO if what == "status" and state == "off" else ExitStatus.DONE


def _without_server(data_dir: Path, what: str) -> str:
    from posthouse.serve.data_dir import DataDir, DataDirError, RelayOption, open_data_dir  # noqa: PLC0415
    from posthouse.serve.privileges import Identity  # noqa: PLC0415

    if what == "status":
        option = DataDir(data_dir, -1).relay_option
        if option is RelayOption.UNKNOWN:
            fail(
                f"{data_dir}/relay-state can't be read: run this as root or as the server's user", ExitStatus.NO_VERDICT
            )
        return option.value
    try:
        data = open_data_dir(data_dir, Identity.of_owner(data_dir))
        try:
            data.set_relay_enabled(what == "on")
        finally:
            data.release()
    except (DataDirError, OSError) as error:
        fail(f"can't turn relaying {what}: {error}")
    return what
