"""Acts on the queue, as a worker carries them out."""

import asyncio

import pytest

from posthouse.mail.envelope import queue_id_text
from posthouse.relay.lease import Leased, Tenant
from posthouse.serve.worker import Worker
from posthouse.spool.api import SpoolFull
from relaying import Bench


def test_mail_flows_on_after_an_act_that_found_the_disk_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> list[int]:
        raise SpoolFull("the disk is full")

    async def scene() -> None:
        bench = Bench()
        tenant = bench.scheduler.outgoing.leases = Tenant(lambda _report: None)
        worker = Worker()
        worker._scheduler, worker._spools = bench.scheduler, {0: bench.spool}  # type: ignore[dict-item]
        envelope = await bench.accept("a@there.test")
        await bench.until(lambda: any(site.waiting for site in bench.scheduler.sites.values()))
        with monkeypatch.context() as patch:
            patch.setattr(bench.spool, "act", full)
            with pytest.raises(SpoolFull):
                worker._act_on_queue("hold", {"ids": [queue_id_text(envelope.queue_id)]})
        leased = Leased("site of there.test", 1)
        tenant.leased(leased)
        bench.scheduler.outgoing.leased(leased)
        await bench.until(lambda: bench.queued() == 0)

    asyncio.run(asyncio.wait_for(scene(), 20))
