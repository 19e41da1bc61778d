"""Could a stranger relay through another mail server, by its configuration? (RFC 5321 3.6, 7.9)

`audit(kind, path)` reads what Postfix, Exim, OpenSMTPD or sendmail would run with and answers closed, open with a
counterexample, or that it can't tell, with the line that stopped it. It never guesses: what can't be read or asked makes
the answer unknown unless an opening is found elsewhere. It must not know our own configuration, queue or listeners, and
it changes nothing: a server's own programs are only asked to print or to pretend.

Each kind has a room of its own with one function `examine(path, gateways) -> Finding`.
"""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import cast

from posthouse.audit.finding import AuditError, CannotTell, Closed, Counterexample, Finding, Kind, Open
from posthouse.policy.gateways import Gateway

__all__ = ["AuditError", "CannotTell", "Closed", "Counterexample", "Finding", "Kind", "Open", "audit"]


def audit(kind: Kind, path: Path, gateways: Iterable[Gateway] = ()) -> Finding:
    """The finding for the configuration at `path`, a file or a directory. AuditError when none of that kind is there.

    `gateways`: addresses of this machine's surroundings behind which strangers may stand; a trusted network that holds
    one is named among the doubts.
    """
    room = import_module(f"posthouse.audit.{kind.value}")
    return cast("Finding", room.examine(path, tuple(gateways)))
