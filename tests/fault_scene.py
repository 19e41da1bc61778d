"""A spool's life in small, for the model of crash states: everything that it ever does to its disk, once or twice.

    python fault_scene.py DIRECTORY

Each step says on standard output what is true from then on: "sends ID", "acknowledged ID", "settles ID" (its end is being
recorded), "settled ID" (its end is on disk). The contents are those of `content_of`.
"""

import asyncio
import os
import sys
from pathlib import Path

from posthouse.mail.message import Content, Message
from posthouse.smtp.event import DotForm
from posthouse.spool import batch, content
from posthouse.spool.api import Verb
from posthouse.spool.sqlite import SqliteSpool
from spooling import SMALL, accept, deferred, envelope, relayed

STREAMED = 6_000
_SIZES = {"row": 900, "shared": 20_000, "own": STREAMED}


def say(word: str, queue_id: int) -> None:
    os.write(1, f"{word} {queue_id}\n".encode())


def content_of(queue_id: int, kind: str) -> bytes:
    """What that message holds."""
    unit = f"{kind} {queue_id}\r\n".encode()
    return (unit * (_SIZES[kind] // len(unit) + 1))[: _SIZES[kind]]


def kind_of(octets: bytes) -> str:
    """The kind of a content, "" when it is none of ours."""
    kind = octets.split(b" ", 1)[0].decode(errors="replace")
    return kind if kind in _SIZES else ""


class Life:
    """One run of the spool, from its opening to its close."""

    def __init__(self, directory: Path) -> None:
        self.spool = SqliteSpool(directory, 1, loop=asyncio.get_running_loop(), settings=SMALL)

    async def take(self, *kinds: str) -> list[int]:
        """Messages of these kinds, in one batch."""
        stored = []
        for kind in kinds:
            queue_id = self.spool.new_queue_id()
            octets = content_of(queue_id, kind)
            say("sends", queue_id)
            body = Content(len(octets), DotForm.NONE, False, (octets,))
            if kind == "own":
                sink = self.spool.open_sink(queue_id)
                sink.write(octets[: STREAMED // 2])
                sink.write(octets[STREAMED // 2 :])
                body = await sink.finish(DotForm.NONE, is_8bit=False)
            stored.append((envelope(queue_id), Message(b"Received: x\r\n", body)))
        await accept(self.spool, *stored)
        ids = [one.queue_id for one, _ in stored]
        for queue_id in ids:
            say("acknowledged", queue_id)
        return ids

    def settle(self, ids: list[int]) -> None:
        """Their end."""
        for queue_id in ids:
            say("settles", queue_id)
        self.spool.record([relayed(queue_id) for queue_id in ids])
        self.spool.flush()
        for queue_id in ids:
            say("settled", queue_id)

    def put_off(self, ids: list[int]) -> None:
        """Tried again later."""
        self.spool.record([deferred(queue_id) for queue_id in ids])
        self.spool.flush()

    async def rest(self) -> None:
        """Upkeep has its turn: checkpoints, files that may go, sparse ones emptied."""
        for _ in range(3):
            self.spool._commit.tend()
            self.spool._commit.quiesce()
            if self.spool._batches.compact():
                self.spool._commit.want()
            await asyncio.sleep(0.01)


async def first_life(directory: Path) -> None:
    life = Life(directory)
    kept = await life.take("row")
    small = await life.take("row", "row", "row")
    shared = await life.take("shared", "row")
    own = await life.take("own")
    life.put_off(small[:1] + shared[:1])
    life.settle(small[1:] + own)
    await life.rest()
    more = await life.take("shared", "shared", "own", "row")
    life.settle(shared[1:] + more[:1])
    await life.rest()
    life.spool.act(Verb.HOLD, kept)
    life.spool.act(Verb.RELEASE, kept)
    await life.take("row")
    life.spool.close()


async def second_life(directory: Path) -> None:
    life = Life(directory)
    new = await life.take("row", "shared")
    await life.take("shared", "shared", "shared", "shared")
    waiting = [w.queue_id for w in life.spool.due("example.net", 1 << 60, 100)]
    life.settle(waiting[:3])
    await life.rest()
    await life.take("own", "row")
    life.settle(new)
    await life.rest()
    await life.take("row")
    os.write(1, b"over 0\n")
    os._exit(0)  # dies: the last states are those of a killed process


if __name__ == "__main__":
    batch.CHECKPOINT_PAGES = 20
    content.FILE_MAX = 50_000
    os.write(1, b"begins 0\n")
    asyncio.run(first_life(Path(sys.argv[1])))
    asyncio.run(second_life(Path(sys.argv[1])))
