"""`posthouse scan FILE`: the relay test over a list of hosts, all of them authorised."""

from pathlib import Path

import click

from posthouse.cli.options import collector_option, config_option, deadline_option, json_option, source_option


@click.command(name="scan", help="Test the hosts of a list, all of them authorised.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option(
    "--at-once", type=click.IntRange(1, 1000), default=20, metavar="HOSTS", help="Hosts side by side.  [default: 20]"
)
@click.option(
    "--sessions",
    type=click.IntRange(1, 16),
    default=2,
    metavar="NUMBER",
    help="Sessions with one host side by side.  [default: 2]",
)
@deadline_option("For each host.")
@collector_option
@source_option
@click.option("--transcript", "keeps_dialogues", is_flag=True, help="With --json: keep the dialogues.")
@config_option
@json_option
def command(
    config_path: Path | None,
    as_json: bool,
    file: Path,
    at_once: int,
    sessions: int,
    deadline: float,
    collector: str,
    source: str,
    keeps_dialogues: bool,
) -> int:
    """0 all closed, 1 one is open, 3 one has no verdict or was not tested; 2 when the list can't be read."""
    from posthouse.cli.scan_run import ScanWishes, run_scan  # noqa: PLC0415 - not needed for --help
    from posthouse.config import load_config  # noqa: PLC0415

    wishes = ScanWishes(file, at_once, sessions, deadline, collector, source, keeps_dialogues)
    return run_scan(load_config(config_path), wishes, as_json=as_json)
