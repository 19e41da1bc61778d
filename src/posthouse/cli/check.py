"""`posthouse check`: could a stranger relay through this server? The relay matrix, or the counterexample."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from posthouse.cli.options import ExitStatus, config_option, fail, json_option, print_json
from posthouse.cli.progress import sign_of_life

if TYPE_CHECKING:
    from posthouse.policy.lab import Lab
    from posthouse.policy.matrix import Matrix
    from posthouse.serve.closure import Closure

_OTHER_SERVERS = ("postfix", "exim", "opensmtpd", "sendmail")


@click.command(name="check", help="Decide whether a stranger could relay, and print the relay matrix.")
@click.option(
    "--mta", type=click.Choice(_OTHER_SERVERS), help="Ask the same of another server's configuration, at PATH."
)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@config_option
@json_option
def command(config_path: Path | None, as_json: bool, mta: str | None, path: Path | None) -> int:
    """0 closed, 1 open with a counterexample, 2 when the configuration can't be used, 3 when --mta can't tell."""
    if mta is not None:
        from posthouse.audit.finding import Kind  # noqa: PLC0415 - not needed for --help
        from posthouse.cli.check_mta import check_mta  # noqa: PLC0415

        return check_mta(Kind(mta), path, as_json=as_json)
    if path is not None:
        fail(f"check takes the configuration by --config: `posthouse check --config {path}`")
    return _check(config_path, as_json=as_json)


def _check(config_path: Path | None, *, as_json: bool) -> int:
    from posthouse.config import find_warnings, load_config  # noqa: PLC0415 - not needed for --help
    from posthouse.policy.matrix import relay_matrix  # noqa: PLC0415
    from posthouse.serve.admission import check_surroundings  # noqa: PLC0415
    from posthouse.serve.closure import examine  # noqa: PLC0415
    from posthouse.serve.masking import seen_from_outside  # noqa: PLC0415
    from posthouse.serve.rules import check_labs, rules_of  # noqa: PLC0415
    from posthouse.serve.self_test import rehearse  # noqa: PLC0415
    from posthouse.serve.wiring import routes_of  # noqa: PLC0415

    with sign_of_life("asking for every class of stranger and every domain"):
        config = load_config(config_path)
        minded = check_surroundings(config)
        routes_of(config)
        rules = rules_of(config)
        check_labs(config, rules, time.time())
        closure = examine(rules)
        matrix = relay_matrix(rules)
        tested = rehearse(config, rules)
    seen = seen_from_outside(config)
    doubts = (*closure.doubts, *find_warnings(config), *minded)
    if as_json:
        verdict = {} if tested.is_closed else {"verdict": "open"}
        document = _document(config.place, closure, matrix, doubts, rules.labs)
        print_json({**document, **verdict, "self_test": tested, **seen.document})
    else:
        if tested.relayed is not None:
            click.echo(f"OPEN: {tested.relayed.sentence}")
        _print_for_people(config.place, closure, matrix, doubts, rules.labs)
        for line in (*tested.lines, *seen.lines):
            click.echo(line)
    return ExitStatus.DONE if closure.is_closed and tested.is_closed else ExitStatus.NO


def _document(
    source: str, closure: "Closure", matrix: "Matrix", doubts: tuple[str, ...], labs: "tuple[Lab, ...]"
) -> dict[str, object]:
    """What --json prints; the keys are public."""
    from posthouse.policy.decide import path_text  # noqa: PLC0415
    from posthouse.policy.facts import Unknown  # noqa: PLC0415
    from posthouse.policy.networks import network_text  # noqa: PLC0415
    from posthouse.policy.proof import ASSUMPTION  # noqa: PLC0415

    opening = closure.opening
    return {
        "verdict": "open" if not closure.is_closed else "open-on-purpose" if labs else "closed",
        "configuration": source,
        "opening": opening
        and {
            "kind": opening.kind,
            "client": str(
                opening.facts.client.value if isinstance(opening.facts.client, Unknown) else opening.facts.client
            ),
            "role": opening.facts.role,
            "forward_path": path_text(opening.facts.forward_path),
            "grant": opening.grant.kind,
            "words": opening.sentence,
        },
        "masked": [
            {
                "network": str(one.network),
                "address": str(one.gateway.address),
                "what": one.gateway.what,
                "words": one.sentence,
            }
            for one in closure.masked
        ],
        "labs": [
            {
                "listener": lab.name,
                "networks": [network_text(network) for network in lab.networks.networks],
                "destinations": list(lab.destinations.patterns),
                "until": lab.ends_at,
                "words": _lab_sentence(lab),
            }
            for lab in labs
        ],
        "matrix": matrix.rows,
        "doubts": doubts,
        "assumption": ASSUMPTION,
    }


def _lab_sentence(lab: "Lab") -> str:
    return f"open, on purpose, until {lab.until}: the lab on {lab.name} relays {lab.bounds}"


def _print_for_people(
    source: str, closure: "Closure", matrix: "Matrix", doubts: tuple[str, ...], labs: "tuple[Lab, ...]"
) -> None:
    from posthouse.policy.proof import ASSUMPTION  # noqa: PLC0415

    for lab in labs:
        click.echo(_lab_sentence(lab))
    if closure.is_closed and labs:
        click.echo(f"closed otherwise: no stranger can relay through this server ({source})")
    elif closure.is_closed:
        click.echo(f"closed: no stranger can relay through this server ({source})")
    else:
        click.echo(f"OPEN: a stranger can relay through this server ({source})")
        for sentence in closure.sentences:
            click.echo(f"  {sentence}")
    click.echo("")
    for line in matrix.lines():
        click.echo(f"  {line}")
    click.echo("")
    for doubt in doubts:
        click.echo(f"mind: {doubt}")
    click.echo(ASSUMPTION)
