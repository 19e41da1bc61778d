"""Postfix: main.cf, master.cf with its overrides, and the restriction lists in the order in which smtpd(8) asks them."""

from pathlib import Path

from posthouse.audit.finding import CannotTell, Finding, existing
from posthouse.policy.gateways import Gateway


def examine(path: Path, gateways: tuple[Gateway, ...]) -> Finding:
    """The finding for a configuration directory or its main.cf."""
    del gateways
    main = existing(path, names=("main.cf",))
    return CannotTell(file=str(main), line=0, words="Postfix's configuration can't be read yet", rests_on=str(main))
