"""`posthouse reload`: the running server reads its configuration again, or says why not."""

from pathlib import Path

import click

from posthouse.cli.options import ExitStatus, config_option, fail, json_option, print_json
from posthouse.config.search import find_local
from posthouse.serve.control import ControlError, NoAnswer, ServerNotRunning, ask


@click.command(name="reload", help="Have the running server read its configuration again, and show what changes.")
@config_option
@json_option
def command(config_path: Path | None, as_json: bool) -> int:
    """0 when it is in force, 1 when it was refused, 2 when no server runs, 3 when it does not answer."""
    try:
        answer = ask(find_local(config_path).data_dir, "reload", timeout=180.0)
    except ServerNotRunning as error:
        fail(str(error))
    except NoAnswer as error:
        fail(str(error), ExitStatus.NO_VERDICT)
    except ControlError as error:
        if not as_json:
            fail(f"reload refused: {error}", ExitStatus.NO)
        print_json({"accepted": False, "refused_because": str(error), "changes": []})
        return ExitStatus.NO
    if as_json:
        print_json({"accepted": True, "changes": answer["changes"]})
        return ExitStatus.DONE
    for change in answer["changes"] or ["nothing changes in who may relay where"]:
        click.echo(change)
    click.echo("the new configuration is in force")
    return ExitStatus.DONE
