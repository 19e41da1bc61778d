"""Reading the history back, over the days."""

import asyncio
from pathlib import Path

from posthouse.mail.envelope import QueueIds
from posthouse.spool.history import DAY_MS
from posthouse.spool.recall import last_ids
from spooling import NOW, accept, deferred, envelope, message, sqlite_spool


def test_the_last_messages_are_found_though_old_ones_were_tried_today(tmp_path: Path) -> None:
    ids = QueueIds(1)
    old = [ids.next(NOW + n) for n in range(3)]
    later = [ids.next(NOW + 2 * DAY_MS + n) for n in range(3)]

    async def scene() -> None:
        for now, fresh in ((NOW, old), (NOW + 2 * DAY_MS, later)):
            with sqlite_spool(tmp_path / "spool" / "1", clock=lambda now=now: now) as spool:
                await accept(spool, *[(envelope(each, arrived_at=now), message()) for each in fresh])
        now = NOW + 3 * DAY_MS
        with sqlite_spool(tmp_path / "spool" / "1", clock=lambda: now) as spool:
            spool.record([deferred(each, next_at=now + 1) for each in old])

    asyncio.run(scene())
    assert len(list(tmp_path.rglob("????????-???.db"))) == 3
    assert [queue_id for _, queue_id in last_ids(tmp_path, 4)] == [*reversed(later), old[-1]]
    assert [queue_id for _, queue_id in last_ids(tmp_path, 2)] == [later[-1], later[-2]]
    assert len(last_ids(tmp_path, 100)) == 6
