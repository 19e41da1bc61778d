"""`posthouse reload`: the running server reads its configuration again, or says why not."""

from pathlib import Path
from typing import Any

import click

from posthouse.cli.faults import plain_faults
from posthouse.cli.options import ExitStatus, config_option, fail, json_option, print_json
from posthouse.config.search import find_config, find_local
from posthouse.serve.control import ControlError, NoAnswer, ServerNotRunning, ask


@click.command(name="reload", help="Have the running server read its configuration again, and show what changes.")
@config_option
@json_option
def command(config_path: Path | None, as_json: bool) -> int:
    """0 when it is in force, 1 when it was refused, 2 when no server runs or it runs another file, 3 when it does not answer."""
    data_dir = find_local(config_path).data_dir
    with plain_faults():
        try:
            _check_same_file(find_config(config_path), ask(data_dir, "status")["config"])
            answer = ask(data_dir, "reload", timeout=180.0)
        except ServerNotRunning as error:
            fail(f"{error}; if data_dir is changed in the file, only a restart puts that in force")
        except NoAnswer:
            raise
        except ControlError as error:
            if not as_json:
                fail(f"reload refused: {error}", ExitStatus.NO)
            print_json({"accepted": False, "refused_because": str(error), "changes": [], "other_changes": []})
            return ExitStatus.NO
    if as_json:
        print_json({"accepted": True, **answer})
    else:
        _print_for_people(answer)
    return ExitStatus.DONE


def _check_same_file(found: Path | None, running: str) -> None:
    """A server reads the file that it was started on: who edited another one must know. Fault."""
    if found is None or str(found.absolute()) == running:
        return
    if running and Path(running).exists() and found.samefile(running):
        return
    if running:
        fail(f"the server runs {running}, not {found}: edit that file, or restart the server with --config {found}")
    fail(f"the server runs the embedded default, not {found}: restart it to have that file in force")


def _print_for_people(answer: dict[str, Any]) -> None:
    for change in [*(answer["changes"] or ["nothing changes in who may relay where"]), *answer["other_changes"]]:
        click.echo(change)
    for warning in answer["warnings"]:
        click.echo(f"mind: {warning}")
    click.echo(f"{answer['configuration']} is in force")
