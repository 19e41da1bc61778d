"""What arrived at the collector, and how a test asks for it.

A collector receives probe mail and keeps a receipt for each arrival. A test asks it for the receipts of its own id, until
all probes that were accepted have arrived or its patience is over. Where the collector is does not matter to the test:
in this process, on this machine (its data directory), or at another Posthouse that shares the key.
"""

import asyncio
from collections.abc import Collection
from typing import Protocol

import msgspec

from posthouse.tester.token import Purpose

POLL_SECONDS = 0.25
"""Between two looks for receipts."""


COLLECTOR_BANNER = "Posthouse collector: takes probes of relay tests, relays nothing"
"""In a collector's greeting, so that whoever tests a collector knows that a probe it takes has not been relayed."""


class CollectorFault(Exception):
    """The collector can't be asked now; the text is one sentence. It says nothing about what has arrived."""


class Receipt(msgspec.Struct, frozen=True):
    """One arrival. A token that arrives twice has two receipts, and counts once.

    `arrived_at` is in seconds since 1970; `client` the address that brought it, `hello_name` what it called itself.
    `received` holds the values of the Received fields as they came, newest first, ours not among them; `header` the whole
    header section as it came, cut to what the collector keeps.
    """

    test_id: int
    case_number: int
    purpose: Purpose
    token: str
    arrived_at: float
    client: str
    hello_name: str
    reverse_path: str
    forward_path: str
    received: tuple[str, ...] = ()
    header: str = ""
    size_bytes: int = 0

    @property
    def is_bounce(self) -> bool:
        """It came to the probe's reverse-path: a notice about the probe, not the probe."""
        return self.purpose is Purpose.BOUNCE


class CollectorClient(Protocol):
    """Whom a test asks what has arrived. All clients may be asked by many tests at once."""

    @property
    def domain(self) -> str:
        """The domain whose mail the collector takes: probes go to TOKEN@domain (and their notices too)."""

    async def receipts(self, test_id: int) -> tuple[Receipt, ...]:
        """All arrivals of that test so far, in order of arrival. CollectorFault."""

    async def close(self) -> None:
        """Nothing more will be asked."""


async def await_receipts(
    collector: CollectorClient, test_id: int, wanted: Collection[int], patience_seconds: float
) -> tuple[Receipt, ...]:
    """All receipts of the test, as soon as a probe of each wanted case has arrived, or when patience is over.

    CollectorFault when the last look failed: then nothing is known, and a probe that was not seen may have arrived.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_seconds
    while True:
        fault: CollectorFault | None = None
        found: tuple[Receipt, ...] = ()
        try:
            found = await collector.receipts(test_id)
        except CollectorFault as error:
            fault = error
        if fault is None and set(wanted) <= {one.case_number for one in found if not one.is_bounce}:
            return found
        if loop.time() >= deadline:
            if fault is not None:
                raise fault
            return found
        await asyncio.sleep(min(POLL_SECONDS, max(0.0, deadline - loop.time())))
