"""Contents too large to be rows: shared append-only files for the middling, a file of its own for the very large.

A row costs least up to some 16 KB. Beyond, octets go to the end of a file that many messages share, synced once for the
whole batch before the rows that point into it are committed; a file goes when no row points into it any more, and one that
little still points into is emptied by copying the rest to the end of the current one. Contents that do not fit into memory
stream to a file of their own as they arrive.

In a shared file each content stands behind a header of its length and CRC-32, so a damaged one is noticed when it is read.
"""

import asyncio
import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from posthouse.mail.message import Content, ContentFile
from posthouse.smtp.event import DotForm
from posthouse.spool.api import ContentMissing, SpoolBroken, SpoolError
from posthouse.spool.schema import spool_error
from posthouse.spool.shard import sync_directory

ROW_MAX = 16 * 1024
"""Octets up to which a content is a row."""

FILE_MAX = 64 * 1024 * 1024
"""Octets after which a shared file is sealed and the next one begun."""

CONGESTED = 256 * 1024
"""Octets waiting in a sink beyond which its client must stop."""

_HEADER = struct.Struct(">II")
_WRITEV_MAX = 512
_PIECES = 64  # of a content, written as they came; more are joined before
DIRECTORY_NAME = "content"


class Chunk(msgspec.Struct, frozen=True):
    """A content to be written at its reserved place."""

    file: str
    offset: int
    pieces: tuple[bytes, ...]
    length: int


class _Use:
    """What still points into one shared file."""

    __slots__ = ("contents", "octets", "size")

    def __init__(self) -> None:
        self.size = self.octets = self.contents = 0


class SharedFiles:
    """The shared files of a shard: places are reserved in the loop, octets written and synced on the commit thread."""

    def __init__(self, directory: Path, file_max: int = FILE_MAX) -> None:
        self.directory = directory
        self._file_max = file_max
        self._uses: dict[str, _Use] = {}
        self._empty: list[str] = []
        self._unreadable: set[str] = set()
        self._sequence = 0
        self._current = ""
        self._next_offset = 0
        self._fd = -1  # of `_open_name`; the commit thread's
        self._open_name = ""

    def recount(self, used: Iterable[tuple[str, int, int]]) -> None:
        """Takes stock anew after a transaction was undone: (file, contents, octets) as the rows have it."""
        for use in self._uses.values():
            use.contents = use.octets = 0
        for name, contents, octets in used:
            if name.startswith("c"):
                use = self._uses.setdefault(name, _Use())
                use.size = max(use.size, octets)
                use.contents, use.octets = contents, octets

    def resume(self, used: Iterable[tuple[str, int, int]]) -> None:
        """Takes stock at start: (file, contents, octets) as the rows have it. Files without a row go."""
        known = {name: (contents, octets) for name, contents, octets in used}
        for path in self.directory.iterdir():
            if path.name.startswith("c"):
                with contextlib.suppress(ValueError):
                    self._sequence = max(self._sequence, int(path.name[1:]))
            if path.name not in known:
                path.unlink(missing_ok=True)
            elif path.name.startswith("c"):
                use = self._uses[path.name] = _Use()
                use.size = path.stat().st_size
                use.contents, use.octets = known[path.name]

    def reserve(self, length: int) -> tuple[str, int]:
        """A place for a content: (file, offset)."""
        if not self._current or self._next_offset >= self._file_max:
            self.retire_current()
            self._sequence += 1
            self._current = f"c{self._sequence:08d}"
            self._next_offset = 0
            self._uses[self._current] = _Use()
        use = self._uses[self._current]
        offset = self._next_offset
        self._next_offset += _HEADER.size + length
        use.size = self._next_offset
        use.octets += length
        use.contents += 1
        return self._current, offset

    def release(self, file: str, length: int) -> str | None:
        """One content less. The file's name when it may go once that is committed."""
        use = self._uses.get(file)
        if use is None:
            return None
        use.contents -= 1
        use.octets -= length
        if use.contents <= 0 and file != self._current:
            del self._uses[file]
            return file
        return None

    def retire_current(self) -> None:
        """Seals the current file if nothing is in it any more, so that it may go."""
        use = self._uses.get(self._current)
        if use is not None and use.contents <= 0:
            del self._uses[self._current]
            self._empty.append(self._current)
            self._current = ""

    def take_empty(self) -> list[str]:
        """Files that were sealed with nothing in them: they may go after the next commit."""
        empty, self._empty = self._empty, []
        return empty

    def leave_alone(self, file: str) -> None:
        """A damaged file is not worth copying from."""
        self._unreadable.add(file)

    def sparsest(self) -> str | None:
        """A sealed file of which less than a quarter is still needed."""
        sealed = (
            (use.octets / use.size, name)
            for name, use in self._uses.items()
            if name != self._current and use.size and name not in self._unreadable
        )
        share, name = min(sealed, default=(1.0, ""))
        return name if share < 0.25 else None

    @property
    def octets_on_disk(self) -> int:
        """All shared files together."""
        return sum(use.size for use in self._uses.values())

    def write(self, chunks: list[Chunk]) -> None:
        """On the commit thread: writes and syncs. SpoolFull leaves the places empty; SpoolBroken after a failed sync."""
        at = 0
        while at < len(chunks):
            end = at
            while end < len(chunks) and chunks[end].file == chunks[at].file:
                end += 1
            self._write_one_file(chunks[at:end])
            at = end

    def _write_one_file(self, chunks: list[Chunk]) -> None:
        name = chunks[0].file
        try:
            if self._open_name != name:
                self.close()
                self._fd = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._sync_name(name)
                self._open_name = name
            for chunk in chunks:
                pieces = chunk.pieces if len(chunk.pieces) <= _PIECES else (b"".join(chunk.pieces),)
                checksum = 0
                for piece in pieces:
                    checksum = zlib.crc32(piece, checksum)
                _write_all(self._fd, [_HEADER.pack(chunk.length, checksum), *pieces], chunk.offset)
        except OSError as error:
            raise spool_error(error, f"writing {self.directory / name}") from error
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise spool_error(error, f"syncing {self.directory / name}", is_sync=True) from error

    def _sync_name(self, name: str) -> None:
        """A sync that fails is the end, for want of space too."""
        try:
            sync_directory(self.directory)
        except OSError as error:
            raise spool_error(error, f"syncing the name of {self.directory / name}", is_sync=True) from error

    def read(self, file: str, offset: int, length: int) -> bytes:
        """A content from its place. ContentMissing when it isn't what was written, SpoolError when it can't be looked at now."""
        try:
            fd = os.open(self.directory / file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                octets = os.pread(fd, _HEADER.size + length, offset)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise spool_error(error, f"reading {self.directory / file}") from error
            raise ContentMissing(f"{self.directory / file}: {error.strerror}") from error
        if len(octets) != _HEADER.size + length:
            raise ContentMissing(f"{self.directory / file} ends before the content at {offset}")
        content = octets[_HEADER.size :]
        if _HEADER.unpack_from(octets) != (length, zlib.crc32(content)):
            raise ContentMissing(f"{self.directory / file} is damaged at {offset}")
        return content

    def remove(self, names: Iterable[str]) -> None:
        """Unlinks files that nothing points into any more, own files too."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (self.directory / name).unlink()

    def close(self) -> None:
        """Closes the current file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._open_name = ""


class OwnFiles:
    """Files of one content each, written as it arrives by a few threads beside the loop."""

    def __init__(
        self, directory: Path, loop: asyncio.AbstractEventLoop, on_broken: Callable[[SpoolBroken], None]
    ) -> None:
        self.directory = directory
        self.loop = loop
        self.on_broken = on_broken
        self.threads = ThreadPoolExecutor(2, thread_name_prefix="posthouse-content")
        self.finished: dict[str, tuple[int, int]] = {}
        """name → (length, CRC-32) of contents that are synced and not stored yet."""
        self._unstored: set[str] = set()  # opened, and neither stored nor abandoned
        self._taken: set[str] = set()  # of those: accept has them
        self.octets_in_flight = 0
        self._is_closed = False

    def open(self, name: str) -> "FileSink":
        """A new file."""
        self._unstored.add(name)
        return FileSink(self, name)

    def take(self, file: ContentFile) -> bool:
        """Accept has it now, and its sink no more. False when it isn't a finished content of ours."""
        path, _, name = file.path.rpartition("/")
        if path != str(self.directory) or name not in self.finished or name in self._taken:
            return False
        self._taken.add(name)
        return True

    def give_up(self, name: str, length: int) -> bool:
        """Its sink wants it no more. False when it is none of the sink's business any more: accepted, or given up before."""
        if name not in self._unstored or name in self._taken:
            return False
        self._unstored.discard(name)
        self.finished.pop(name, None)
        self.octets_in_flight -= length
        return True

    def stored(self, file: ContentFile) -> None:
        """A row points to it."""
        name = file.path.rpartition("/")[2]
        self._taken.discard(name)
        self._unstored.discard(name)
        self.finished.pop(name, None)
        self.octets_in_flight -= file.length

    def not_stored(self, file: ContentFile) -> None:
        """It is its sink's again, to be abandoned."""
        self._taken.discard(file.path.rpartition("/")[2])

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        """Has a thread do it; once they have ended, does it here."""
        if self._is_closed:
            work(*arguments)
        else:
            self.threads.submit(work, *arguments)

    def close(self) -> None:
        """Waits for the threads."""
        self._is_closed = True
        self.threads.shutdown(wait=True, cancel_futures=False)


class FileSink:
    """One content on its way into a file of its own; see `api.ContentSink`."""

    def __init__(self, files: OwnFiles, name: str) -> None:
        self._files = files
        self.name = name
        self._path = files.directory / name
        self._fd = -1
        self._checksum = 0
        self._length = 0
        self._waiting: list[bytes] = []
        self._waiting_octets = 0
        self._is_writing = False
        self._is_abandoned = False
        self._error: SpoolError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def write(self, data: bytes) -> None:
        """Takes some octets."""
        if self._error is not None:
            raise self._error
        self._waiting.append(data)
        self._waiting_octets += len(data)
        self._length += len(data)
        self._files.octets_in_flight += len(data)
        if not self._is_writing:
            self._pump()

    @property
    def is_congested(self) -> bool:
        """More than `CONGESTED` octets wait to be written."""
        return self._waiting_octets > CONGESTED

    async def drained(self) -> None:
        """Returns when writing may go on; raises what went wrong."""
        while self.is_congested and self._error is None:
            await self._wait()
        if self._error is not None:
            raise self._error

    async def finish(self, dots: DotForm, is_8bit: bool) -> Content:
        """All octets are written and synced."""
        await self._settled()
        self._is_writing = True
        self._files.submit(self._sync)
        await self._settled()
        self._files.finished[self.name] = (self._length, self._checksum)
        return Content(self._length, dots, is_8bit, file=ContentFile(str(self._path), 0, self._length, self._checksum))

    def abandon(self) -> None:
        """The file goes. Harmless after accept has taken it."""
        if not self._files.give_up(self.name, self._length):
            return
        self._is_abandoned = True
        if not self._is_writing:
            self._files.submit(self._remove)

    def _pump(self) -> None:
        pieces, self._waiting = self._waiting, []
        self._is_writing = True
        self._files.submit(self._write, pieces)

    async def _settled(self) -> None:
        while self._is_writing and self._error is None:
            await self._wait()
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        self._waiter = self._files.loop.create_future()
        await self._waiter

    def _write(self, pieces: list[bytes]) -> None:
        error: SpoolError | None = None
        try:
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
            for piece in pieces:
                self._checksum = zlib.crc32(piece, self._checksum)
            _write_all(self._fd, pieces, None)
        except OSError as fault:
            error = spool_error(fault, f"writing {self._path}")
            error.__cause__ = fault
        self._tell(sum(map(len, pieces)), error)

    def _tell(self, octets: int, error: SpoolError | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone: so is everybody who waits
            self._files.loop.call_soon_threadsafe(self._written, octets, error)

    def _written(self, octets: int, error: SpoolError | None) -> None:
        self._waiting_octets -= octets
        self._is_writing = False
        if error is not None:
            self._error = error
            if isinstance(error, SpoolBroken):
                self._files.on_broken(error)
        if self._is_abandoned or self._error is not None:
            self._waiting.clear()
            if self._is_abandoned:
                self._files.submit(self._remove)
        elif self._waiting:
            self._pump()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _sync(self) -> None:
        error: SpoolError | None = None
        try:
            if self._fd < 0:  # an empty content
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.fdatasync(self._fd)
            sync_directory(self._files.directory)
            os.close(self._fd)
            self._fd = -1
        except OSError as fault:
            error = spool_error(fault, f"syncing {self._path}", is_sync=True)
            error.__cause__ = fault
        self._tell(0, error)

    def _remove(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


def read_own(path: Path, length: int, checksum: int) -> ContentFile:
    """Where a content of its own file lies. ContentMissing when the file is gone or of another length; its octets are left
    to be held against the checksum by whoever reads them."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ContentMissing(f"{path}: {error.strerror}") from error
    if size != length:
        raise ContentMissing(f"{path} holds {size} octets, {length} were written")
    return ContentFile(str(path), 0, length, checksum)


def checked(octets: bytes | None, length: int, checksum: int | None, queue_id: int) -> bytes:
    """A content that is a row, if it is what was written; else ContentMissing."""
    if octets is None or len(octets) != length or zlib.crc32(octets) != checksum:
        raise ContentMissing(f"the content of message {queue_id} is damaged")
    return octets


def _write_all(fd: int, pieces: list[bytes], offset: int | None) -> None:
    """Writes all pieces, however little the kernel takes at once; at `offset`, or at the file's position."""
    todo = [memoryview(piece) for piece in pieces if piece]
    while todo:
        batch = todo[:_WRITEV_MAX]
        written = os.writev(fd, batch) if offset is None else os.pwritev(fd, batch, offset)
        if offset is not None:
            offset += written
        done = 0
        while done < len(batch) and written >= len(batch[done]):
            written -= len(batch[done])
            done += 1
        del todo[:done]
        if written:
            todo[0] = todo[0][written:]
