"""A process that takes mail in as fast as it can and says on standard output what it has acknowledged, until it is killed.

Lines: "a ID" after the message became durable, "s ID" before its end is recorded.
"""

import asyncio
import os
import sys
from pathlib import Path

from posthouse.mail.message import Content, Message
from posthouse.smtp.event import DotForm
from posthouse.spool.sqlite import SqliteSpool
from spooling import SMALL, envelope, relayed

SIZES = (100, 4096, 30_000, 4096, 500, 150_000)


def content_of(queue_id: int) -> bytes:
    """What the message of that id holds."""
    size = SIZES[queue_id % len(SIZES)]
    unit = f"{queue_id}\r\n".encode()
    return (unit * (size // len(unit) + 1))[:size]


async def _one(spool: SqliteSpool, number: int) -> None:
    queue_id = spool.new_queue_id()
    octets = content_of(queue_id)
    content = Content(len(octets), DotForm.NONE, False, (octets,))
    if len(octets) > 65_536:
        sink = spool.open_sink(queue_id)
        sink.write(octets[:50_000])
        sink.write(octets[50_000:])
        content = await sink.finish(DotForm.NONE, is_8bit=False)
    end: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    spool.accept(envelope(queue_id), Message(b"Received: x\r\n", content), end.set_result)
    error = await end
    if error is not None:
        os.write(1, f"e {error}\n".encode())
        raise SystemExit(3)
    os.write(1, f"a {queue_id}\n".encode())
    if number % 3 == 0:
        os.write(1, f"s {queue_id}\n".encode())
        spool.record([relayed(queue_id)])


async def _session(spool: SqliteSpool, numbers: range) -> None:
    for number in numbers:
        await _one(spool, number)


async def main(directory: str, sessions: int, each: int) -> None:
    loop = asyncio.get_running_loop()

    def on_broken(error: object) -> None:
        os.write(1, f"b {error}\n".encode())
        os._exit(70)

    spool = SqliteSpool(Path(directory), 1, loop=loop, settings=SMALL, on_broken=on_broken)
    os.write(1, b"ready\n")
    await asyncio.gather(*[_session(spool, range(n, n + each)) for n in range(sessions)])
    spool.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
