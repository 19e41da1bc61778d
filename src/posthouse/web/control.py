"""Showing control of a host: what the pages ask of the tester's consent."""

from typing import Protocol

from posthouse.policy.networks import Address
from posthouse.web.document import Proof
from posthouse.web.job import Job, Subject


class Control(Protocol):
    """Whom a visitor may have tested besides the address that he calls from. `serve` gives the real one."""

    async def begin(self, host: str, caller: Address) -> tuple[Subject, Proof]:
        """What is to be tested when control of `host` is shown, and how to show it. Problem when it may not be tested."""

    async def look(self, job: Job, way: str, answer: str) -> None:
        """Looks for the proof by that way; `answer` is what came to the postmaster. Problem "not-proved" when it isn't there."""
