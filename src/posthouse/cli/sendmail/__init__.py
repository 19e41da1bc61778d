"""sendmail(1): a mail from standard input, handed to the running server over its local socket.

Other programs (cron, mail(1), git send-email) start this by the thousand, so nothing heavy is imported: no click, no
msgspec, not the SMTP engine. The other end of the socket is our own server, which knows the caller by its uid.
Exit status as in sysexits.h; anything but 0 means that nothing was sent, so that a caller may try again.
"""

import os
import sys
from pathlib import Path
from typing import TextIO

from posthouse.cli.sendmail.arguments import HELP, Arguments, Mode, UsageFault, parse_arguments
from posthouse.cli.sendmail.status import Sysexit

_ALIASES = "posthouse: aliases stand in the configuration; `posthouse reload` puts a change in force"


def run(arguments: list[str]) -> int:
    """Acts on one sendmail(1) command line; the exit status is the answer."""
    try:
        given = parse_arguments(arguments)
    except UsageFault as error:
        return _say(f"{error}; see `posthouse sendmail --help`", Sysexit.USAGE)
    try:
        status = _act(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _say("interrupted, nothing was sent", Sysexit.TEMPFAIL)
    except OSError as error:  # what is said of the mail itself is caught where it is handed over
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the end would try the same output again
        return _say(error.strerror or str(error), Sysexit.IOERR)
    return status


def _act(given: Arguments) -> int:
    if given.mode is Mode.HELP:
        print(HELP)
        return Sysexit.OK
    if given.mode is Mode.ALIASES:
        print(_ALIASES)
        return Sysexit.OK
    if given.mode in (Mode.QUEUE, Mode.RETRY):
        return _run_queue(given)
    from posthouse.cli.sendmail.submit import relay_dialogue, submit  # noqa: PLC0415 - not needed for the modes above
    from posthouse.config.error import ConfigError  # noqa: PLC0415
    from posthouse.config.search import find_local  # noqa: PLC0415

    try:
        local = find_local(Path(given.config) if given.config else None)
    except ConfigError as error:
        return _say(str(error), Sysexit.CONFIG)
    if given.mode is Mode.SMTP:
        return relay_dialogue(local.data_dir)
    return submit(given, local, sys.stdin.buffer.read)


def _run_queue(given: Arguments) -> int:
    """mailq and -q are other names for parts of `posthouse queue`."""
    from posthouse.cli.program import run as run_program  # noqa: PLC0415 - click, for people

    action = ["queue", "list"] if given.mode is Mode.QUEUE else ["queue", "retry", "--all"]
    config = ["--config", given.config] if given.config else []
    status = run_program([*action, *config])
    return Sysexit.OK if status in (0, 1) else Sysexit.CONFIG  # 1: nothing waits, which sendmail(1) calls well


def _say(sentence: str, status: Sysexit, out: TextIO | None = None) -> int:
    print(f"posthouse sendmail: {sentence}", file=out or sys.stderr)
    return status


def user_name() -> str:
    """The login name of the caller's uid; `user<uid>` when the system knows none."""
    import pwd  # noqa: PLC0415

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user{os.getuid()}"
