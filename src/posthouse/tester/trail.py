"""Which way a relayed probe took, by its receipt: the host that was tested, and the host that brought it to the collector.

The tested host is the input of a relay; where it hands on to a smart host, that one is the output, and a blocklist that
looks at the output alone lists the wrong host. The two differ when the names by which the first and the last server signed
their Received fields differ (RFC 5321 4.4); addresses alone do not tell, as a host may send from another address than it
listens on, and two may share one behind NAT. Received fields below the tested host's can't be there: the probe had none.
"""

import re

from posthouse.tester.collector import Receipt
from posthouse.tester.report import Hop, Path

_comments = re.compile(r"\([^()]*\)")
_by = re.compile(r"(?:^|\s)by\s+([^\s;()\[\]]+)", re.IGNORECASE).search
_NAMES_OF_NOBODY = frozenset(("localhost", "localhost.localdomain", "127.0.0.1", "unknown"))
"""What filters on the same host sign with."""


def signed_by(received: str) -> str:
    """The host that wrote a Received field, as it names itself, in lower case; "" when it does not say, or says localhost."""
    found = _by(_comments.sub(" ", received))
    name = found[1].lower().rstrip(".") if found else ""
    return "" if name in _NAMES_OF_NOBODY else name


def path_of(receipt: Receipt, target_address: str) -> Path:
    """The way of the probe that this is the receipt of; `target_address` is where it was handed in."""
    signatures = [name for name in map(signed_by, receipt.received) if name]
    is_multi_hop = signatures[0] != signatures[-1] if signatures else receipt.client != target_address
    return Path(
        case_number=receipt.case_number,
        input_host=target_address,
        output_host=receipt.client,
        output_hello_name=receipt.hello_name,
        is_multi_hop=is_multi_hop,
        arrived_at=receipt.arrived_at,
        hops=tuple(Hop(field) for field in reversed(receipt.received)),
    )
