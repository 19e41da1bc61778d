"""The exit status of each fault of the server or of its queue, the same for every command that meets one.

A server's no is 1. No server, or one that is closed to this user, is 2, as is a queue that can't be read or changed: another
place or another user is the remedy. A server that does not answer is 3: what was asked for may have happened or not.
"""

import contextlib
from collections.abc import Iterator

from posthouse.cli.options import ExitStatus, fail
from posthouse.serve.control import ControlError, NoAnswer, NotAllowed, ServerNotRunning
from posthouse.spool.api import SpoolError


@contextlib.contextmanager
def plain_faults() -> Iterator[None]:
    """Ends the command with one sentence and that status. Faults of permission on files are the program's to answer, with 2."""
    try:
        yield
    except (ServerNotRunning, NotAllowed, SpoolError) as error:
        fail(str(error), ExitStatus.USAGE)
    except NoAnswer as error:
        fail(str(error), ExitStatus.NO_VERDICT)
    except ControlError as error:
        fail(str(error), ExitStatus.NO)
