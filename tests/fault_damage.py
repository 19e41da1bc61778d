"""Queues that are damaged on disk, thousands of them: what can be read is delivered unaltered, the rest is told, nothing crashes."""

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from fault_oracle import digest
from posthouse.mail.envelope import Envelope
from posthouse.mail.message import Content, Message
from posthouse.smtp.event import DotForm
from posthouse.spool.api import SpoolDamaged, SpoolError, SpoolForeign
from posthouse.spool.clock import wall_clock
from posthouse.spool.sqlite import SqliteSpool
from posthouse.spool.verify import verify
from posthouse.transports.final import ContentUnreadable, plain_pieces
from spooling import SMALL, accept, deferred, envelope, relayed

KINDS = ("bit", "bit", "bit", "octets", "truncate", "page", "delete", "swap", "grow")
_DOMAINS = ("one.example", "two.example", "three.example")
_SIZES = (400, 900, 3000, 20_000, 20_000, 70_000)

Stored = dict[int, tuple[Envelope, str]]
"""By queue id: the envelope, the digest of the content."""


class Damages(msgspec.Struct):
    """What was done and found. `problems` must be empty."""

    mutations: int = 0
    kinds: dict[str, int] = {}
    unharmed: int = 0
    """Mutations after which every message was there."""
    salvaged: int = 0
    refused: int = 0
    """Queues that were refused with a sentence (a version that does not exist yet)."""
    told: int = 0
    """Mutations that `posthouse queue verify` tells of."""
    messages_lost: int = 0
    """Over all mutations; each of these was told."""
    messages_kept: int = 0
    problems: list[str] = []


def content_for(number: int) -> bytes:
    """Unlike any other."""
    size = _SIZES[number % len(_SIZES)]
    return random.Random(number).randbytes(size // 2).hex().encode() + b"\r\n"


async def _fill(directory: Path, copy_to: Path) -> Stored:
    """A queue of two dozen messages of every kind, left as a running server has it."""
    an_hour_ago = wall_clock() - 3_600_000  # verify gives what has just come time to arrive
    spool = SqliteSpool(directory, 1, loop=asyncio.get_running_loop(), settings=SMALL, clock=lambda: an_hour_ago)
    stored: Stored = {}
    for number in range(24):
        octets = content_for(number)
        queue_id = spool.new_queue_id()
        paths = [f"user{number}@{domain}" for domain in _DOMAINS[: 1 + number % 3]]
        body = Content(len(octets), DotForm.PLAIN, False, (octets,))
        if len(octets) > 65_536:
            sink = spool.open_sink(queue_id)
            sink.write(octets)
            body = await sink.finish(DotForm.PLAIN, is_8bit=False)
        one = envelope(queue_id, *paths, reverse_path=f"from{number}@example.org")
        await accept(spool, (one, Message(b"Received: by us\r\n", body)))
        stored[queue_id] = (one, digest(octets))
        if number % 5 == 1:
            spool.record([deferred(queue_id)])
        if number % 8 == 7:  # gone again
            spool.record([relayed(queue_id, n) for n in range(len(paths))])
            del stored[queue_id]
        if number == 15:
            spool.flush()
            spool._batches._pages = 1 << 30  # a checkpoint: half of the queue is in the tables, half in the log
            spool._batches.upkeep(is_idle=False)
    spool.flush()
    shutil.copytree(directory, copy_to)
    spool.close()
    return stored


def damage_often(times: int, seed: int = 0, progress: Callable[[Damages], None] = lambda _: None) -> Damages:
    """So many damaged queues, each looked at by verify, opened as a server opens it, and read whole."""
    chance = random.Random(seed or random.SystemRandom().randrange(1 << 30))
    found = Damages()
    kinds: Counter[str] = Counter()
    shm = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="posthouse-damage-", dir=shm if shm.is_dir() else None))
    try:
        template = place / "running"
        stored = asyncio.run(_fill(place / "closed", template))
        for number in range(times):
            data = place / "data"
            shutil.rmtree(data, ignore_errors=True)
            shutil.copytree(template if number % 2 else place / "closed", data / "spool" / "1")
            kind, words = _mutate(data / "spool" / "1", chance)
            kinds[kind] += 1
            asyncio.run(_look(data, stored, found, f"{number}: {words}"))
            found.mutations += 1
            found.kinds = dict(kinds)
            if number % 50 == 49:
                progress(found)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return found


def _mutate(directory: Path, chance: random.Random) -> tuple[str, str]:
    content = sorted((directory / "content").iterdir())
    databases = [directory / "queue.db", directory / "queue.db-wal"]
    targets = [path for path in databases if path.exists() and path.stat().st_size] * 3 + content
    path, kind = chance.choice(targets), chance.choice(KINDS)
    octets = bytearray(path.read_bytes())
    at = chance.randrange(len(octets))
    words = f"{kind} of {path.name} at {at}"
    if kind == "delete":
        path.unlink()
        return kind, words
    if kind == "swap":
        one, two = chance.sample(content, 2)
        left, right = one.read_bytes(), two.read_bytes()
        one.write_bytes(right)
        two.write_bytes(left)
        return kind, f"{one.name} and {two.name} swapped"
    if kind == "bit":
        octets[at] ^= 1 << chance.randrange(8)
    elif kind == "octets":
        octets[at : at + 100] = chance.randbytes(min(100, len(octets) - at))
    elif kind == "truncate":
        del octets[at:]
    elif kind == "page":
        start = at // 4096 * 4096
        octets[start : start + 4096] = bytes(min(4096, len(octets) - start))
    else:
        octets += chance.randbytes(5000)
    path.write_bytes(octets)
    return kind, words


async def _look(data: Path, stored: Stored, found: Damages, words: str) -> None:
    try:
        told = verify(data).damages
    except Exception as error:
        found.problems.append(f"{words}: verify fails with {error!r}")
        told = []
    try:
        try:
            kept, is_salvaged = await _read(data / "spool" / "1", stored, found, words)
        except SpoolDamaged:  # found at work: the worker ends, and its successor salvages
            kept, is_salvaged = await _read(data / "spool" / "1", stored, found, words)
    except SpoolForeign:
        found.refused += 1
        return
    except SpoolError as error:
        found.problems.append(f"{words}: the queue does not open: {error}")
        return
    except Exception as error:
        found.problems.append(f"{words}: it crashes with {error!r}")
        return
    found.salvaged += is_salvaged
    missing = stored.keys() - kept
    told = told or verify(data).damages
    found.told += bool(told)
    found.unharmed += not missing
    found.messages_kept += len(kept)
    found.messages_lost += len(missing)
    if missing and not told:
        found.problems.append(f"{words}: {len(missing)} messages are missing and nothing tells")


async def _read(directory: Path, stored: Stored, found: Damages, words: str) -> tuple[set[int], bool]:
    """Ids of all messages that are whole and would be delivered to all their recipients; whether the database was salvaged."""
    kept: dict[int, int] = {}
    spool = SqliteSpool(directory, 1, loop=asyncio.get_running_loop(), settings=SMALL)
    try:
        is_salvaged = any(directory.glob("damaged-*.json"))
        for destination, _, _ in spool.destinations():
            for waiting in spool.due(destination, 1 << 60, 1000):
                if _is_whole(spool, waiting.queue_id, stored, found, words):
                    kept[waiting.queue_id] = kept.get(waiting.queue_id, 0) + 1
        wanted = {queue_id: len(one.recipients) for queue_id, (one, _) in stored.items()}
        return {queue_id for queue_id, count in kept.items() if count == wanted.get(queue_id)}, is_salvaged
    finally:
        spool.close()


def _is_whole(spool: SqliteSpool, queue_id: int, stored: Stored, found: Damages, words: str) -> bool:
    try:
        one, message = spool.load(queue_id)
        octets = b"".join(plain_pieces(message.content))
    except (SpoolError, KeyError, ContentUnreadable):
        return False  # the relay sets it aside
    if queue_id not in stored:
        found.problems.append(f"{words}: {queue_id} is there, and was settled or never sent")
        return False
    wanted, wanted_digest = stored[queue_id]
    if (
        digest(octets) != wanted_digest
        or one.recipients != wanted.recipients
        or one.reverse_path != wanted.reverse_path
    ):
        found.problems.append(f"{words}: {queue_id} would be delivered altered")
        return False
    return True
