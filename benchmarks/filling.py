"""A queue of deferred messages, written through the spool's own interface, much faster than they could be sent and refused."""

import random
import time
from pathlib import Path

from posthouse.spool.sqlite import SqliteSpool
from spooling import SMALL, deferred, envelope, message

DOMAINS = 1000
_AT_ONCE = 2000
_HOUR_MS = 3_600_000


def fill(data_dir: Path, workers: int, count: int, size: int = 4096, domains: int = DOMAINS) -> float:
    """`count` messages to many domains, spread over the shards of so many workers, each tried before and due again in one to
    four hours. How many seconds it took."""
    began = time.perf_counter()
    text = message(b"From: a@src.test\r\nSubject: deferred\r\n\r\n" + (b"x" * 76 + b"\r\n") * (size // 78))
    for directory in (data_dir, data_dir / "spool"):
        directory.mkdir(mode=0o700, exist_ok=True)
    for shard in range(workers):
        spool = SqliteSpool(data_dir / "spool" / str(shard), shard, settings=SMALL)
        try:
            left = count // workers + (shard < count % workers)
            while left:
                some = min(left, _AT_ONCE)
                _add(spool, some, text, domains)
                left -= some
        finally:
            spool.close()
    return time.perf_counter() - began


def _add(spool: SqliteSpool, count: int, text, domains: int) -> None:
    now = time.time_ns() // 1_000_000
    for _ in range(count):
        queue_id = spool.new_queue_id()
        to = f"user{queue_id % 100}@deferred{random.randrange(domains)}.test"
        spool.accept(envelope(queue_id, to, arrived_at=now), text, _stored)
        due = now + random.randrange(_HOUR_MS, 4 * _HOUR_MS)
        spool.record([deferred(queue_id, next_at=due, attempts=3)])
    spool.flush()


def _stored(error: Exception | None) -> None:
    if error is not None:
        raise error
