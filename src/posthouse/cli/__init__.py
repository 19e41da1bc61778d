"""The `posthouse` command: one module a command, loaded only when it is called.

Programs call `sendmail` by the thousand, so it is told apart here, before click or anything else heavy is imported.
A module of this room reads options, calls one room below and prints; what it prints is decided there.
"""

import os
import sys

# The names by which other programs know parts of this one (a link to `posthouse`); sendmail(1) has always done so.
_NAMES = {"sendmail": (), "mailq": ("-bp",), "newaliases": ("-bi",)}


def main() -> None:
    """The program: acts by the name it was called, else by its first word. Leaves by SystemExit."""
    arguments = sys.argv[1:]
    name = os.path.basename(sys.argv[0])  # noqa: PTH119 - pathlib costs a tenth of sendmail's start-up
    if name in _NAMES:
        _run_sendmail([*_NAMES[name], *arguments])
    elif arguments[:1] == ["sendmail"]:
        _run_sendmail(arguments[1:])
    from posthouse.cli.program import run, write_whole  # noqa: PLC0415 - click is for people, who can wait for it

    write_whole()
    raise SystemExit(run(arguments))


def _run_sendmail(arguments: list[str]) -> None:
    from posthouse.cli.sendmail import run  # noqa: PLC0415 - see above

    raise SystemExit(run(arguments))
