"""The model: every state in which a crash could leave the disk, by the strictest reading of what a file system promises.

The system calls of a spool's life (`fault_scene`) are recorded by strace with all their octets. Replayed up to any point, they
leave some things certain and others not (the idea of ALICE, Pillai et al., OSDI 2014):

- a write is certain once a later sync of its file has ended; until then any subset of the writes may be there, and the
  last one may be torn;
- a name (created, renamed, removed) is certain once a later sync of its directory has ended; a sync of the file is not enough.

For each point: all uncertain writes, none, each one alone, all but each one, the last torn; times all uncertain names, none,
each one alone, all but each one (the last two with all writes and none). Real file systems promise more; ext4 by far.
"""

import hashlib
import os
import random
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

_CALL = re.compile(r"^(\d+) +(\w+)\((.*)$", re.DOTALL)
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_PATH = re.compile(r"<((?:\\x[0-9a-f]{2})+)>")
_RESULT = re.compile(r"\) += (-?\d+)")


class Write(msgspec.Struct, frozen=True):
    """Octets put into a file; a `size` of 0 or more instead cuts it."""

    file: int
    offset: int
    octets: bytes
    size: int = -1


class Name(msgspec.Struct, frozen=True):
    """A change of one directory: `name` now stands for `file`, or for nothing when that is -1."""

    directory: str
    name: str
    file: int
    is_directory: bool = False


class Sync(msgspec.Struct, frozen=True):
    """A sync of a file (by number) or a directory (by path) has ended; it covers what ended before `began`."""

    file: int
    directory: str
    began: int


class Said(msgspec.Struct, frozen=True):
    """What the scene said: from here on it is true."""

    word: str
    queue_id: int


Op = Write | Name | Sync | Said


class Recording:
    """The ops of a life below one directory, in their order."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self.ops: list[Op] = []
        self._files: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        self._next_file = 0
        self._open_calls: dict[str, tuple[str, str, int]] = {}

    def read(self, trace: Path) -> "Recording":
        """Takes a trace in."""
        for line in trace.read_text().splitlines():
            resumed = _RESUMED.match(line)
            if resumed is not None:
                call, arguments, began = self._open_calls.pop(resumed[1])
                self._take(call, arguments + resumed[3].lstrip(), began)
                continue
            found = _CALL.match(line)
            if found is None:
                continue
            if found[3].endswith("<unfinished ...>"):
                self._open_calls[found[1]] = (
                    found[2],
                    found[3].removesuffix("<unfinished ...>").rstrip(),
                    len(self.ops),
                )
            else:
                self._take(found[2], found[3], len(self.ops))
        return self

    def _take(self, call: str, arguments: str, began: int) -> None:
        result = _RESULT.match(arguments, arguments.rfind(")"))  # octets are escaped: no other bracket comes later
        if result is None or int(result[1]) < 0:
            return
        count = int(result[1])
        strings = [_decode(one) for one in _STRING.findall(arguments)]
        if call == "openat":
            self._opened(strings[0].decode(), arguments)
        elif call in {"mkdir", "mkdirat"}:
            self._name(strings[0].decode(), -1, is_directory=True)
        elif call == "unlink":
            self._unlinked(strings[0].decode())
        elif call == "rename":
            self._renamed(strings[0].decode(), strings[1].decode())
        else:
            self._changed(call, arguments, b"".join(strings)[:count], began)

    def _changed(self, call: str, arguments: str, octets: bytes, began: int) -> None:
        path_found = _PATH.search(arguments)
        path = _decode(path_found[1]).decode(errors="replace") if path_found else ""
        if call == "write" and arguments.startswith("1<"):
            word, _, queue_id = octets.decode().strip().partition(" ")
            self.ops.append(Said(word, int(queue_id)))
            return
        if not self._is_ours(path):
            return
        if call in {"fdatasync", "fsync"}:
            is_file = path in self._files
            self.ops.append(Sync(self._files.get(path, -1), "" if is_file else path, began))
            return
        file = self._files[path]
        if call == "ftruncate":
            size = int(re.findall(r", (\d+)\)", arguments)[-1])
            self.ops.append(Write(file, 0, b"", size))
        elif call in {"pwrite64", "pwritev", "pwritev2"}:
            numbers = re.findall(
                r", (\d+)(?=[,)])",
                arguments.rsplit('"', 1)[-1] if "]" not in arguments else arguments.rsplit("]", 1)[-1],
            )
            offset = int(numbers[1])
            self.ops.append(Write(file, offset, octets))
        elif call in {"write", "writev"}:
            offset = self._positions.get(path, 0)
            self._positions[path] = offset + len(octets)
            self.ops.append(Write(file, offset, octets))
        elif call != "fallocate":
            raise AssertionError(f"the model does not know {call}")

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self._root) and not path.endswith("-shm") and "(deleted)" not in path

    def _opened(self, path: str, arguments: str) -> None:
        if not self._is_ours(path) or path in self._files or "O_CREAT" not in arguments:
            if path in self._files and "O_TRUNC" in arguments:
                self.ops.append(Write(self._files[path], 0, b"", 0))
            return
        self._positions.pop(path, None)
        self._name(path, self._next_file)
        self._files[path] = self._next_file
        self._next_file += 1

    def _name(self, path: str, file: int, *, is_directory: bool = False) -> None:
        if self._is_ours(path):
            directory, _, name = path.rpartition("/")
            self.ops.append(Name(directory, name, file, is_directory))

    def _unlinked(self, path: str) -> None:
        if path in self._files:
            del self._files[path]
            self._name(path, -1)

    def _renamed(self, old: str, new: str) -> None:
        if old in self._files:
            file = self._files.pop(old)
            self._name(new, file)
            self._name(old, -1)
            self._files[new] = file


def _decode(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


class State(msgspec.Struct, frozen=True):
    """One state: the ops before `point` that took effect, those of them torn, and how it came about, in words."""

    point: int
    kept: tuple[int, ...]
    torn: int
    words: str


def states_at(ops: Sequence[Op], point: int) -> Iterator[State]:
    """Every state that a crash after the first `point` ops may leave."""
    certain, writes, names = _sort(ops, point)
    for chosen_names, name_words in _choices(names, "name"):
        is_plain = chosen_names in (names, [])
        for chosen, words in _choices(writes, "write") if is_plain else ((writes, "all writes"), ([], "no write")):
            kept = tuple(sorted((*certain, *chosen_names, *chosen)))
            yield State(point, kept, -1, f"{words}, {name_words}")
        if is_plain and writes:
            kept = tuple(sorted((*certain, *chosen_names, *writes)))
            yield State(point, kept, writes[-1], f"all writes, the last torn, {name_words}")


def _sort(ops: Sequence[Op], point: int) -> tuple[list[int], list[int], list[int]]:
    synced_files: dict[int, int] = {}
    synced_directories: dict[str, int] = {}
    for op in ops[:point]:
        if isinstance(op, Sync):
            if op.directory:
                synced_directories[op.directory] = op.began
            else:
                synced_files[op.file] = max(op.began, synced_files.get(op.file, 0))
    certain: list[int] = []
    writes: list[int] = []
    names: list[int] = []
    for index, op in enumerate(ops[:point]):
        if isinstance(op, Write):
            (certain if index < synced_files.get(op.file, -1) else writes).append(index)
        elif isinstance(op, Name):
            (certain if index < synced_directories.get(op.directory, -1) else names).append(index)
    return certain, writes, names


def _choices(uncertain: list[int], what: str) -> Iterator[tuple[list[int], str]]:
    yield uncertain, f"all {what}s"
    if not uncertain:
        return
    yield [], f"no {what}"
    if len(uncertain) > 1:
        for one in uncertain:
            yield [one], f"only {what} {one}"
            yield [other for other in uncertain if other != one], f"all {what}s but {one}"


def build(ops: Sequence[Op], state: State, old_root: Path, new_root: Path) -> str:
    """Makes the state's files below `new_root`; a digest of them, the same for states that don't differ."""
    contents: dict[int, bytearray] = {}
    entries: dict[str, Name] = {}
    for index in state.kept:
        op = ops[index]
        if isinstance(op, Name):
            entries[f"{op.directory}/{op.name}"] = op
        elif isinstance(op, Write):
            _apply(contents.setdefault(op.file, bytearray()), op, index == state.torn)
    shutil.rmtree(new_root, ignore_errors=True)
    new_root.mkdir(parents=True)
    found = hashlib.sha256()
    for path in sorted(entries):  # parents first
        entry = entries[path]
        if entry.file < 0 and not entry.is_directory:
            continue
        place = new_root / os.path.relpath(path, old_root)
        if not place.parent.is_dir():
            continue  # its directory is not there: neither is it
        octets = bytes(contents.get(entry.file, b""))
        if entry.is_directory:
            place.mkdir(exist_ok=True)
        else:
            place.write_bytes(octets)
        found.update(path.encode() + b"\0" + hashlib.sha256(octets).digest())
    return found.hexdigest()


def _apply(content: bytearray, write: Write, is_torn: bool) -> None:
    if write.size >= 0:
        if len(content) > write.size:
            del content[write.size :]
        else:
            content.extend(bytes(write.size - len(content)))
        return
    octets = write.octets[: len(write.octets) // 2 // 512 * 512] if is_torn else write.octets
    if len(content) < write.offset:
        content.extend(bytes(write.offset - len(content)))
    content[write.offset : write.offset + len(octets)] = octets


def without_syncs(ops: Sequence[Op], *, directories: bool = False) -> list[Op]:
    """For controls: the same life on a disk that syncs nothing, or no directories."""
    kept: list[Op] = []
    for op in ops:
        if isinstance(op, Sync) and (op.directory or not directories):
            kept.append(Said("nothing", 0))  # the ops' numbers stay
        else:
            kept.append(op)
    return kept


def points(ops: Sequence[Op], sample: int, seed: int) -> Iterable[int]:
    """Where to crash: after every op, or after `sample` of them, each after something changed."""
    all_points = [n + 1 for n, op in enumerate(ops) if not (isinstance(op, Said) and op.word in {"nothing", "begins"})]
    if not sample or sample >= len(all_points):
        return all_points
    return sorted(random.Random(seed).sample(all_points, sample))
