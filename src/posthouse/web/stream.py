"""A test as it happens: lines for a terminal, server-sent events for a page, one JSON document for a program that waits."""

from collections.abc import AsyncIterator

import msgspec

from posthouse.web.event import Event, as_advice, as_sse, as_text
from posthouse.web.job import Job


async def as_lines(job: Job, base: str) -> AsyncIterator[bytes]:
    """For `curl -N` and `nc`, to the verdict and what to do about it."""
    yield f"Posthouse relay test of {job.subject.address}, the address you call from. {base}{job.document.links.page}\n".encode()
    async for event in job.watch():
        text = "" if event is None else as_text(event)
        if text:
            yield text.encode()
    yield as_advice(job.document, base).encode()


async def as_events(job: Job, after: int) -> AsyncIterator[bytes]:
    """For EventSource, from the event behind number `after` on (its Last-Event-ID)."""
    yield b"retry: 2000\n\n"
    async for event in job.watch(after):
        yield b": still here\n\n" if event is None else as_sse(event)


async def as_document(job: Job) -> AsyncIterator[bytes]:
    """The document when the test is over. White space, which JSON allows in front, keeps proxies from giving up."""
    async for event in job.watch():
        if event is None:
            yield b"\n"
    yield msgspec.json.encode(job.document) + b"\n"


async def told_again(events: tuple[Event, ...], after: int) -> AsyncIterator[bytes]:
    """The events of a test that is over and was read from disk."""
    for event in events[after:]:
        yield as_sse(event)
