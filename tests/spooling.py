"""Messages, fates and spools for the tests of the queue."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath

from posthouse.mail.envelope import Envelope, Origin, Recipient
from posthouse.mail.grant import Grant
from posthouse.mail.message import Content, Message
from posthouse.mail.outcome import Deferred, Failed, Relayed
from posthouse.mail.reason import Reason, Slug
from posthouse.policy.decide import restore_grant
from posthouse.smtp.address import Path
from posthouse.smtp.event import DotForm
from posthouse.spool.api import Done, Fate, Retry, Spool, SpoolError
from posthouse.spool.space import SpaceLimits
from posthouse.spool.sqlite import SpoolSettings, SqliteSpool

NOW = 1_795_000_000_000
SMALL = SpoolSettings(space=SpaceLimits(free_bytes=0, free_inodes=0, reserve_bytes=0))
ORIGIN = Origin("192.0.2.7", "ESMTPSA", "client.example", "alice", "TLSv1.3", "127.0.0.1:2525", -1, 4711)


def grant(words: str = "192.0.2.7 is in the trusted network 192.0.2.0/24.") -> Grant:
    return restore_grant("trusted-network", "trusted-network", words)


def envelope(
    queue_id: int,
    *forward_paths: str,
    arrived_at: int = NOW,
    reverse_path: str = "sender@example.org",
    origin: Origin = ORIGIN,
) -> Envelope:
    return Envelope(
        queue_id,
        path(reverse_path),
        tuple(Recipient(path(p), grant()) for p in forward_paths or ("one@example.net",)),
        origin,
        arrived_at,
    )


def path(text: str) -> Path:
    local_part, _, domain = text.rpartition("@")
    return Path(local_part.encode(), domain)


def message(content: bytes = b"Subject: hello\r\n\r\nA line.\r\n", *, trace: bytes = b"Received: by us\r\n") -> Message:
    return Message(trace, Content(len(content), DotForm.NONE, False, (content,)))


def relayed(queue_id: int, index: int = 0) -> Fate:
    outcome = Relayed("2.0.0", Reason(Slug.RELAYED, "The next hop took it."), "mx.example.net [192.0.2.9]:25", "250 ok")
    return Fate(queue_id, index, outcome, Done(), 1, NOW + 50)


def failed(queue_id: int, index: int = 0) -> Fate:
    outcome = Failed("5.1.1", Reason(Slug.NEXT_HOP_REFUSED, "No such mailbox there."), "mx", "550 5.1.1 no")
    return Fate(queue_id, index, outcome, Done(), 1, NOW + 50)


def deferred(queue_id: int, index: int = 0, *, next_at: int = NOW + 300_000, attempts: int = 1) -> Fate:
    outcome = Deferred("4.4.1", Reason(Slug.NEXT_HOP_UNREACHABLE, "The next hop does not answer."), "mx", "")
    return Fate(queue_id, index, outcome, Retry(next_at), attempts, NOW + 50)


@contextlib.contextmanager
def sqlite_spool(directory: FilePath, **options: object) -> Iterator[SqliteSpool]:
    """A spool in the running loop (call it inside a coroutine), closed at the end."""
    options.setdefault("settings", SMALL)
    spool = SqliteSpool(directory, 1, loop=asyncio.get_running_loop(), **options)  # type: ignore[arg-type]
    try:
        yield spool
    finally:
        spool.close()


async def accept(spool: Spool, *stored: tuple[Envelope, Message]) -> None:
    """Accepts messages and returns when all are durable; raises what one of them got."""
    loop = asyncio.get_running_loop()
    ends: list[asyncio.Future[SpoolError | None]] = []
    for one in stored:
        end: asyncio.Future[SpoolError | None] = loop.create_future()
        spool.accept(*one, end.set_result)
        ends.append(end)
    for error in await asyncio.gather(*ends):
        if error is not None:
            raise error


async def accept_many(spool: Spool, count: int, *forward_paths: str) -> Sequence[int]:
    """Ids of so many small messages, all durable."""
    ids = [spool.new_queue_id() for _ in range(count)]
    await accept(spool, *[(envelope(i, *forward_paths), message()) for i in ids])
    return ids
