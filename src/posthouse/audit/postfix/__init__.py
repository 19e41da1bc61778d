"""Postfix: main.cf, master.cf with its overrides, and the restriction lists in the order in which smtpd(8) asks them.

The files are read for their lines, and postconf(1), where there is one, for what is in force. Then one stranger of every
class that the lists and tables tell apart is walked through every smtpd that strangers reach, with every kind of recipient.
What the configuration leaves to a server, a policy service or a file that can't be read stays unknown.
"""

from pathlib import Path

from posthouse.audit.finding import Finding, existing
from posthouse.audit.postfix.conclusion import Conclusion
from posthouse.audit.postfix.configuration import Configuration
from posthouse.policy.gateways import Gateway


def examine(path: Path, gateways: tuple[Gateway, ...]) -> Finding:
    """The finding for a configuration directory or its main.cf. AuditError when it can't be used."""
    return Conclusion(Configuration(existing(path, names=("main.cf",))), gateways).finding()
