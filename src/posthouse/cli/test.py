"""`posthouse test HOST[:PORT]`: the relay test of one host, on all its addresses."""

from pathlib import Path
from typing import Any

import click

from posthouse.cli.options import collector_option, config_option, deadline_option, fail, json_option, source_option


@click.command(name="test", help="Test from outside whether a host relays for strangers.")
@click.argument("host", required=False, metavar="HOST[:PORT]")
@click.option("--ports", default="", metavar="PORT,...", help="Test these ports too: 25,465,587,2525, say.")
@click.option("-4", "family", flag_value="4", help="IPv4 addresses only.")
@click.option("-6", "family", flag_value="6", help="IPv6 addresses only.")
@source_option
@deadline_option("Answer by then.")
@collector_option
@click.option(
    "--delivery",
    type=click.FloatRange(0, 86400),
    default=30.0,
    metavar="SECONDS",
    help="Wait so long for accepted probes to arrive at the collector.  [default: 30]",
)
@click.option(
    "--case", "numbers", type=int, multiple=True, metavar="NUMBER", help="Say this case only; may be repeated."
)
@click.option("--domain", default="", metavar="NAME", help="A domain that the host takes mail for.  [default: a guess]")
@click.option("--hello", "hello_name", default="", metavar="NAME", help="The tester's name.  [default: configured]")
@click.option("--from", "reverse_path", default="", metavar="ADDRESS", help="The tester's reverse-path.")
@click.option(
    "--to", "third_party", default="", metavar="ADDRESS", help="The third party, where no collector takes part."
)
@click.option("--nonce", default="", metavar="NONCE", help="That of `posthouse relay nonce` on the host, for the echo.")
@click.option("--diff", "shows_changes", is_flag=True, help="Say what has changed since the last test of the host.")
@click.option("--watch", "is_watch", is_flag=True, help="Test again and again, and say what changes.")
@click.option("--every", default="1d", metavar="TIME", help="For --watch: how often, 30m or 1d, say.  [default: 1d]")
@click.option("--rounds", type=click.IntRange(0), default=0, metavar="NUMBER", help="For --watch: end after so many.")
@click.option(
    "--metrics",
    "metrics_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="For --watch: keep the figures there, for Prometheus' node_exporter (textfile).",
)
@click.option("-q", "--quiet", is_flag=True, help="The verdict only.")
@click.option("--transcript", "shows_dialogues", is_flag=True, help="Print the dialogues too.")
@click.option("--list", "lists_cases", is_flag=True, help="Print the table of cases and test nothing.")
@click.option("--prove", type=click.Choice(["dns", "banner", "postmaster"]), help="Prove that you control the host.")
@click.option("--token", "typed", default="", metavar="TOKEN", help="For --prove postmaster: what its mail says.")
@config_option
@json_option
def command(
    config_path: Path | None,
    as_json: bool,
    host: str | None,
    lists_cases: bool,
    is_watch: bool,
    every: str,
    rounds: int,
    metrics_file: Path | None,
    **given: Any,
) -> int:
    """0 closed, 1 open, 3 no verdict; 2 when the host may not be tested."""
    from posthouse.cli.test_run import print_cases, run_test, wishes_of  # noqa: PLC0415 - not needed for --help
    from posthouse.config import load_config  # noqa: PLC0415

    if lists_cases:
        return print_cases(as_json=as_json)
    if not host:
        fail("test needs a host: `posthouse test mx.example.org`, or 192.0.2.1:587")
    config = load_config(config_path)
    wishes = wishes_of(host, **given)
    if wishes.prove:
        from posthouse.cli.consent import prove_control  # noqa: PLC0415

        port = wishes.ports[0] if wishes.ports else 25
        return prove_control(config, wishes.place.host, port, wishes.prove, typed=wishes.typed, as_json=as_json)
    if is_watch:
        from posthouse.cli.test_watch import rhythm_of, run_watch  # noqa: PLC0415

        return run_watch(config, wishes, rhythm_of(every, rounds, metrics_file), as_json=as_json)
    if metrics_file is not None or rounds or every != "1d":
        fail("--every, --rounds and --metrics go with --watch")
    return run_test(config, wishes, as_json=as_json)
