"""`posthouse check --mta`: the same question asked of another server's configuration, printed for people or programs."""

from pathlib import Path

import click

from posthouse.audit.finding import AuditError, CannotTell, Closed, Counterexample, Finding, Kind, Open
from posthouse.cli.options import ExitStatus, fail, print_json
from posthouse.cli.progress import sign_of_life

_NAMES = {Kind.POSTFIX: "Postfix", Kind.EXIM: "Exim", Kind.OPENSMTPD: "OpenSMTPD", Kind.SENDMAIL: "sendmail"}


def check_mta(kind: Kind, path: Path | None, *, as_json: bool) -> int:
    """0 closed, 1 open, 3 when it can't be told; 2 by a Fault when the path holds no such configuration."""
    from posthouse.audit import audit  # noqa: PLC0415 - not needed for --help
    from posthouse.serve.machine import look_around  # noqa: PLC0415

    if path is None:
        fail(
            f"name the configuration of {_NAMES[kind]}: its directory or main file, as in `posthouse check --mta {kind} PATH`"
        )
    around = look_around()
    try:
        with sign_of_life(f"asking {_NAMES[kind]}'s configuration for every class of stranger"):
            finding = audit(kind, path, around.gateways)
    except AuditError as error:
        fail(str(error))
    doubts = (*finding.doubts, *around.unread)
    if as_json:
        print_json(_document(kind, path, finding, doubts))
    else:
        _print_for_people(kind, path, finding, doubts)
    if isinstance(finding, Closed):
        return ExitStatus.DONE
    return ExitStatus.NO if isinstance(finding, Open) else ExitStatus.NO_VERDICT


def _document(kind: Kind, path: Path, finding: Finding, doubts: tuple[str, ...]) -> dict[str, object]:
    """What --json prints; the keys are public."""
    openings = (finding.counterexample, *finding.others) if isinstance(finding, Open) else ()
    stops = ((finding.file, finding.line, finding.words), *finding.others) if isinstance(finding, CannotTell) else ()
    return {
        "verdict": _verdict(finding),
        "mta": kind,
        "configuration": path,
        "openings": openings,
        "unknown": [{"file": file, "line": line, "words": words} for file, line, words in stops],
        "doubts": doubts,
        "rests_on": finding.rests_on,
    }


def _verdict(finding: Finding) -> str:
    if isinstance(finding, Closed):
        return "closed"
    return "open" if isinstance(finding, Open) else "unknown"


def _print_for_people(kind: Kind, path: Path, finding: Finding, doubts: tuple[str, ...]) -> None:
    name = _NAMES[kind]
    if isinstance(finding, Closed):
        click.echo(f"closed: no stranger can relay through this {name} ({path})")
    elif isinstance(finding, Open):
        click.echo(f"OPEN: a stranger can relay through this {name} ({path})")
        for opening in (finding.counterexample, *finding.others):
            click.echo("")
            for line in _opening_lines(opening):
                click.echo(f"  {line}")
    else:
        click.echo(f"can't tell whether a stranger can relay through this {name} ({path})")
        for file, number, words in ((finding.file, finding.line, finding.words), *finding.others):
            click.echo(f"  {_place(file, number)}: {words}")
    click.echo("")
    for doubt in doubts:
        click.echo(f"mind: {doubt}")
    click.echo(f"This rests on {finding.rests_on}.")
    click.echo("It holds as long as client addresses are real; `posthouse test` asks from outside.")


def _opening_lines(opening: Counterexample) -> list[str]:
    heads = [f"client      {opening.client}"]
    if opening.listener:
        heads.append(f"listener    {opening.listener}{', over TLS' if opening.over_tls else ''}")
    if opening.hello:
        heads.append(f"HELO        {opening.hello}")
    return [
        *heads,
        f"MAIL FROM   <{opening.reverse_path}>",
        f"RCPT TO     <{opening.forward_path}>",
        f"let in by   {_place(opening.file, opening.line)}",
        opening.words,
    ]


def _place(file: str, line: int) -> str:
    return f"{file}, line {line}" if line else file
