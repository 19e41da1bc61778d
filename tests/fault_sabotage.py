"""What the controls break, in the victim's process alone: each must make the programme fail, or the programme measures nothing.

The product has no switch for any of this. `no-sync` is a filter in the kernel that answers 0 to every sync without doing
it (what eatmydata does in the C library); the others replace a function of the victim before it starts.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SYNCS = {"x86_64": (74, 75, 162, 277, 26, 306, 206), "aarch64": (82, 83, 81, 84, 227, 267, 0)}
"""fsync, fdatasync, sync, sync_file_range, msync, syncfs; io_setup, without which the commit thread syncs."""

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000  # with errno 0: "it went well", and nothing was done


def python_path() -> str:
    """PYTHONPATH of a process that runs one of these modules."""
    return os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))


def can_filter() -> bool:
    """Whether `no-sync` knows this machine's system calls."""
    return platform.machine() in _SYNCS


def no_sync() -> None:
    """From here on no sync of this process and its children reaches the kernel; each says that it went well."""
    numbers = _SYNCS[platform.machine()]
    program = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # load the system call's number
    for position, number in enumerate(numbers):
        program.append(struct.pack("HBBI", 0x15, len(numbers) - position, 0, number))  # equal: jump to the last
    program.append(struct.pack("HBBI", 0x06, 0, 0, _RET_ALLOW))
    program.append(struct.pack("HBBI", 0x06, 0, 0, _RET_ERRNO))
    octets = b"".join(program)
    buffer = ctypes.create_string_buffer(octets, len(octets))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def no_directory_sync() -> None:
    """New names in directories are never synced."""
    from posthouse.spool import content
    from posthouse.transports import maildir

    nothing: Any = lambda _directory: None  # noqa: E731
    content.sync_directory = nothing
    maildir._sync_directory = nothing


def early_250() -> None:
    """Acknowledges as soon as the message is handed to the spool, like servers that don't wait for the disk."""
    from posthouse.spool.sqlite import SqliteSpool

    real: Any = SqliteSpool.accept

    def accept(self: SqliteSpool, envelope: Any, message: Any, durable: Callable[..., None]) -> None:
        real(self, envelope, message, lambda _error: None)
        durable(None)

    SqliteSpool.accept = accept  # type: ignore[method-assign, assignment]


def thread_sync() -> None:
    """No sabotage: as where a container forbids asynchronous I/O, the commit thread syncs. Its calls can be struck one by one."""
    from posthouse.spool import commit

    commit._kernel_sync = lambda _loop: None


def forgive_errors() -> None:
    """A commit that failed passes for a good one: what a server does that ignores what fsync says."""
    from posthouse.spool.batch import Batches

    real: Any = Batches.commit

    def commit(self: Batches, batch: Any) -> None:
        try:
            real(self, batch)
        except Exception:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    Batches.commit = commit  # type: ignore[method-assign]


def early_record() -> None:
    """Notes an outcome as relayed before the next hop was asked: the order that loses mail when a worker dies in between."""
    from posthouse.relay.scheduler import Scheduler

    real: Any = Scheduler.prepare

    def prepare(self: Any, site: Any, parcel: Any) -> Any:
        from posthouse.mail.envelope import shard_of
        from posthouse.mail.outcome import Relayed
        from posthouse.mail.reason import Reason, Slug
        from posthouse.spool.api import Done, Fate

        attempt = real(self, site, parcel)
        if attempt is not None and site is not None:
            outcome = Relayed("2.0.0", Reason(Slug.RELAYED, "too early"), "", "")
            fates = [Fate(parcel.queue_id, i, outcome, Done(), 1, self._clock()) for i in parcel.indices]
            self.spools[shard_of(parcel.queue_id)].record(fates)
        return attempt

    Scheduler.prepare = prepare  # type: ignore[method-assign]


def one_lane() -> None:
    """All destinations together may have one connection: the relay in which a dead one delays all others."""
    from posthouse.relay.scheduler import Scheduler

    real: Any = Scheduler.__init__

    def init(self: Scheduler, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        self.outgoing.most = 1

    Scheduler.__init__ = init  # type: ignore[method-assign, assignment]


def abrupt_stop() -> None:
    """Told to stop, it just goes."""
    from posthouse.serve.worker import Worker

    async def stop(self: Worker, arguments: dict[str, Any]) -> dict[str, Any]:
        os._exit(0)

    Worker._stop = stop  # type: ignore[method-assign]


def short_patience() -> None:
    """No sabotage, but what RFC 5321 4.5.3.2 counts in minutes is here a second: for next hops that hang."""
    import msgspec

    from posthouse.net.client import ClientTimeouts
    from posthouse.serve import wiring

    real: Any = wiring.smtp_settings_of
    brief = ClientTimeouts(*[1.0] * len(ClientTimeouts.__struct_fields__))

    def smtp_settings_of(*arguments: Any) -> Any:
        return msgspec.structs.replace(real(*arguments), timeouts=brief)

    wiring.smtp_settings_of = smtp_settings_of


CLOCK = "POSTHOUSE_FAULT_CLOCK"
"""An environment variable: the file in which `jumping_clock` finds by how many nanoseconds the wall clock is wrong."""


def set_clock(directory: Path, seconds: float) -> None:
    """From now on the clock of victims in that directory is wrong by so much."""
    (directory / "clock").write_bytes(struct.pack("q", int(seconds * 1e9)))


def jumping_clock() -> None:
    """The wall clock, as Python code reads it, jumps when `set_clock` says so. What counts intervals does not."""
    import time

    file = os.open(os.environ[CLOCK], os.O_RDONLY)
    real = time.time_ns

    def time_ns() -> int:
        return real() + int(struct.unpack("q", os.pread(file, 8, 0))[0])

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


def naive_clock() -> None:
    """The queue goes by the wall clock wherever that jumps."""
    from posthouse.spool.clock import SteadyClock, wall_clock

    SteadyClock.__call__ = lambda _self: wall_clock()  # type: ignore[method-assign]
    SteadyClock.jump = property(lambda _self: 0)  # type: ignore[method-assign, assignment]


def naive_dns() -> None:
    """Believes that what was not answered does not exist, and that every address is a public one."""
    from posthouse.dns import mx
    from posthouse.mail.reason import Reason, Slug

    nowhere: Any = lambda domain, words: mx.NoSuchDomain(Reason(Slug.NO_SUCH_DOMAIN, f"{domain}: {words}"), "5.1.2")  # noqa: E731
    mx._deferred = nowhere
    mx.is_public = lambda _address: True


CURED = "POSTHOUSE_FAULT_CURED"
"""An environment variable: while that file is missing, poison kills."""

POISON = b"X-Poison: "
"""A field of messages that kill the worker that sends them; behind it how."""


def poison() -> None:
    """No sabotage, but a fault in the code that sends: some messages kill the process in the midst of their attempt.

    How: `segv` (a wild pointer in C), `kill` (as the kernel does when memory is short), `load` (as soon as it is read from the queue).
    """
    from posthouse.serve import wiring
    from posthouse.spool.sqlite import SqliteSpool

    real_transports: Any = wiring.transports_of
    real_load: Any = SqliteSpool.load

    class Feed:
        def __init__(self, feed: Any) -> None:
            self._feed = feed

        def __getattr__(self, name: str) -> Any:
            return getattr(self._feed, name)

        def take(self) -> Any:
            attempt = self._feed.take()
            if attempt is not None:
                _suffer(attempt.message, {b"segv", b"kill"})
            return attempt

    class Transport:
        def __init__(self, transport: Any) -> None:
            self._transport = transport

        async def run(self, feed: Any) -> Any:
            return await self._transport.run(Feed(feed))

    def transports_of(config: Any) -> Any:
        make = real_transports(config)
        return lambda next_hop: Transport(make(next_hop))

    def load(self: Any, queue_id: int) -> Any:
        found = real_load(self, queue_id)
        _suffer(found[1], {b"load"})
        return found

    wiring.transports_of = transports_of
    SqliteSpool.load = load  # type: ignore[method-assign]


def _suffer(message: Any, ways: set[bytes]) -> None:
    octets = b"".join(message.content.pieces)
    if message.content.file is not None:
        octets = Path(message.content.file.path).read_bytes()[:2000]
    _, is_there, rest = octets.partition(POISON)
    way = rest[:4]
    if not is_there or way not in ways or Path(os.environ[CURED]).exists():
        return
    if way == b"segv":
        ctypes.string_at(0)
    os.kill(os.getpid(), 9)


def hold_all() -> None:
    """Contents are held in memory, however large and however many."""
    from posthouse.relay import session

    session.SPILL_OCTETS = session.MOST_ARRIVING = 1 << 40


def no_reserve() -> None:
    """Strangers may hold every descriptor there is."""
    from posthouse.net import server

    server._room = lambda most: (most, 0)


def install(directory: Path, name: str) -> str:
    """Has the workers of a real server begin with that sabotage, by a module of Python's start; the PYTHONPATH to run it with."""
    (directory / "sitecustomize.py").write_text(
        AT_WORKERS
        + f"""
def sabotage():
    import fault_sabotage
    fault_sabotage.SABOTAGE[{name!r}]()
"""
    )
    return os.pathsep.join((str(directory), python_path()))


AT_WORKERS = """\
import sys
if "serve" in sys.orig_argv or "posthouse.serve.fork_server" in sys.orig_argv:
    from posthouse.serve import worker
    honest = worker.main
    def main(*descriptors):
        sabotage()
        return honest(*descriptors)
    worker.main = main
"""
"""The head of a sitecustomize.py: each worker calls its `sabotage` first. A worker is a fork: this is no process's command line."""


def no_journal() -> None:
    """Nobody notes what is under way."""
    from posthouse.spool.under_way import UnderWay

    nothing: Any = lambda _self, _key: None  # noqa: E731
    UnderWay.begins = nothing  # type: ignore[method-assign]


SABOTAGE: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "no-sync": no_sync,
    "no-directory-sync": no_directory_sync,
    "early-250": early_250,
    "thread-sync": thread_sync,
    "forgive-errors": forgive_errors,
    "early-record": early_record,
    "one-lane": one_lane,
    "abrupt-stop": abrupt_stop,
    "short-patience": short_patience,
    "jumping-clock": jumping_clock,
    "naive-clock": naive_clock,
    "poison": poison,
    "no-journal": no_journal,
    "naive-dns": naive_dns,
    "hold-all": hold_all,
    "no-reserve": no_reserve,
}
