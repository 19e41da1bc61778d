"""The fork server: a small process with the program in its memory, of which each worker and the web's process is a fork.

A fork shares its parent's memory, page by page, until either writes there. So what is imported is there once for the whole
server, the supervisor too, as far as nobody writes to it; and a worker that died is back without importing anything.

    begun    Forked from the supervisor, which has one thread and no event loop yet. It closes what it inherited, and has
             itself no thread, no event loop and no open file, ever: nothing that a fork would have to put right.
    asked    A role and descriptors come in. It imports the role, once, and forks twice: the grandchild, whose parent ends at once,
             becomes the supervisor's own child (PR_SET_CHILD_SUBREAPER), which so learns how it ends. It keeps those
             descriptors and no others, under the numbers that the supervisor has for them. Its pid goes back.
    killed   Nothing else ends. For the next child the supervisor begins another, by exec: it can't fork any more. Who was just
             being born ends too, and is in its process group, by which the supervisor finds it.
    left     The supervisor is gone, and it ends.

Objects are kept out of the garbage collector's sight (gc.freeze), since it writes to each that it looks at: a fork that has
done nothing but collect is 13 MB then, not 20. What only a child would import is imported before the fork (serve.worker).
"""

import asyncio
import collections
import contextlib
import ctypes
import enum
import fcntl
import gc
import importlib
import io
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import msgspec

from posthouse.observe import log

BIRTH_SECONDS = 30.0
"""How long a fork may take, the imports before the first included; a fork server that takes longer hangs and is killed."""

_MOST_DESCRIPTORS = 64  # in one message; the kernel's limit is 253
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class Role(enum.Enum):
    """What a child becomes: the module whose `main(channel_fd, sockets_fd)` it runs. Its exit status is what that returns."""

    WORKER = "posthouse.serve.worker"
    WEB = "posthouse.serve.web_process"


_NAMES = {Role.WORKER: b"posthouse-work", Role.WEB: b"posthouse-web"}
"""What `ps -e` and `top` call them; 15 octets at most."""


class _Wanted(msgspec.Struct, frozen=True):
    """A child, please, which has the descriptors that come along under these numbers; `is_all`: and no more of them follow."""

    role: Role
    numbers: tuple[int, ...]
    is_all: bool


class _Born(msgspec.Struct, frozen=True, tag=True):
    """The child that was wanted."""

    pid: int


class _Unborn(msgspec.Struct, frozen=True, tag=True):
    """There is no child, and why."""

    words: str


class Child:
    """A process that was forked, as the supervisor sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def is_running(self) -> bool:
        """Its end is not known yet."""
        return not self._ended.done()

    async def wait(self) -> int:
        """Waits until it has ended; its exit status, negative for a signal."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: signal.Signals) -> None:
        """To this process, and never to another: until its end is known here nobody else gets its pid."""
        if self.is_running:
            os.kill(self.pid, number)

    def end(self, status: int) -> None:
        """It has ended."""
        self._ended.set_result(status)


class ForkServer:
    """The supervisor's end. Made before there is an event loop or a second thread; closed when its children have ended."""

    def __init__(self, roles: Iterable[Role]) -> None:
        """`roles` are the ones that will surely be wanted: what is imported before the fork is the supervisor's memory too."""
        self._starting = asyncio.Lock()  # many at once would have more under way than the socket takes
        self._unborn: collections.deque[asyncio.Future[Child]] = collections.deque()
        self._children: dict[int, Child] = {}
        self._left: set[int] = set()  # process groups of fork servers that have ended
        self._control: socket.socket
        self._pid = 0
        for role in roles:
            importlib.import_module(role.value)
        log.rest()
        gc.collect()
        gc.freeze()
        if threading.active_count() == 1:  # else by exec, like a second one
            with contextlib.suppress(OSError):  # what stands in the way `start` will meet too, and say
                self._begin(_fork)

    async def start(self, role: Role, descriptors: list[int]) -> Child:
        """A new process, which keeps `descriptors`: its ends of a channel's two ways, then what else it needs. OSError."""
        async with self._starting:
            return await self._start(role, descriptors)

    async def _start(self, role: Role, descriptors: list[int]) -> Child:
        if not self._pid:
            self._begin(_exec)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._control, self._hear)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        _adopt_orphans(is_wanted=True)
        born: asyncio.Future[Child] = loop.create_future()
        self._unborn.append(born)
        try:
            for first in range(0, len(descriptors), _MOST_DESCRIPTORS):
                some = descriptors[first : first + _MOST_DESCRIPTORS]
                wanted = _Wanted(role, tuple(some), is_all=first + len(some) == len(descriptors))
                socket.send_fds(self._control, [msgspec.json.encode(wanted)], some)
            async with asyncio.timeout(BIRTH_SECONDS):
                return await born
        except OSError as error:
            if not born.done() or born.cancelled():  # it does not listen, or does not answer
                born.cancel()
                self._kill()
            raise OSError(str(error) or "the fork server does not answer") from error

    def close(self) -> None:
        """Ends it."""
        if self._pid:
            self._control.close()
            self._kill()
            os.waitpid(self._pid, 0)
            self._pid = 0

    def _kill(self) -> None:
        if self._pid:  # not 0, which would be our own process group
            os.kill(self._pid, signal.SIGKILL)

    def _begin(self, make: Callable[[socket.socket], int]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs:
            self._pid = make(theirs)

    def _hear(self) -> None:
        try:
            told = self._control.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            told = b""
        if not told:
            self._lost()
            return
        match msgspec.json.decode(told, type=_Born | _Unborn):
            case _Born(pid=pid):
                child = self._children[pid] = Child(pid)
                born = self._unborn.popleft()
                if born.done():
                    child.send_signal(signal.SIGKILL)  # nobody waits for it any more
                else:
                    born.set_result(child)
                self._reap()  # it may have ended before it was known
            case _Unborn(words=words):
                self._refuse(self._unborn.popleft(), words)
        if not self._unborn:
            _adopt_orphans(is_wanted=False)  # what a worker leaves behind is init's to bury, not ours

    def _reap(self) -> None:
        for pid in list(self._children):
            self._take_end(pid)
        for group in list(self._left):
            try:
                while self._take_end(-group):
                    pass
            except ChildProcessError:
                self._left.discard(group)

    def _take_end(self, whose: int) -> int:
        """The pid of one of these children that has ended, 0 for none."""
        ended, status = os.waitpid(whose, os.WNOHANG)
        child = self._children.pop(ended, None)
        if child is not None:
            child.end(os.waitstatus_to_exitcode(status))
        return ended

    def _lost(self) -> None:
        asyncio.get_running_loop().remove_reader(self._control)
        self._kill()
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._control.close()
        log.error("fork-server-ended", pid=self._pid, status=status, words="the next process is forked from another")
        self._left.add(self._pid)
        self._pid = 0
        while self._unborn:
            self._refuse(self._unborn.popleft(), "the fork server ended")
        _adopt_orphans(is_wanted=False)
        self._reap()

    @staticmethod
    def _refuse(born: asyncio.Future[Child], words: str) -> None:
        if not born.done():
            born.set_exception(OSError(words))


def _fork(control: socket.socket) -> int:
    pid = os.fork()
    if not pid:
        _run(control)
    return pid


def _exec(control: socket.socket) -> int:
    control.set_inheritable(True)
    command = [sys.executable, "-P", "-m", __name__, str(control.fileno())]
    return os.posix_spawn(sys.executable, command, os.environ, setpgroup=0)


def _run(control: socket.socket) -> NoReturn:
    """The fork server itself."""
    status = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C in a terminal is for the supervisor, which ends them in good order
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)  # in its children too: the supervisor tells them what these mean
        # As we may have been started it is ignored, and then nobody can be waited for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _close_all_but({0, 1, 2, control.fileno()})
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
            os.environ.pop(name, None)
        _show_as(b"posthouse-fork")
        gc.disable()
        _serve(control)
        status = 0
    except BaseException:  # noqa: BLE001, RUF100 - whatever it is, this process must not go on as a second supervisor
        traceback.print_exc()
    finally:
        os._exit(status)


def _serve(control: socket.socket) -> None:
    while (asked := _take(control)) is not None:
        try:
            answer: _Born | _Unborn = _Born(_bear(*asked))
        except (ImportError, OSError) as error:
            answer = _Unborn(str(error))
        try:
            control.send(msgspec.json.encode(answer))
        except ConnectionError:
            return


def _take(control: socket.socket) -> tuple[Role, list[int], list[int]] | None:
    """What is asked next: what the child becomes, its descriptors and their numbers there; None when nobody is there to ask."""
    received: list[int] = []
    numbers: list[int] = []
    while True:
        try:
            octets, some, _, _ = socket.recv_fds(control, 65536, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        if not some:
            return None
        wanted = msgspec.json.decode(octets, type=_Wanted)
        received += some
        numbers += wanted.numbers
        if wanted.is_all:
            return wanted.role, received, numbers


def _bear(role: Role, received: list[int], numbers: list[int]) -> int:
    """Forks, twice; the grandchild's pid. ImportError, OSError."""
    try:
        if role.value not in sys.modules:
            importlib.import_module(role.value)
            gc.collect()
            gc.freeze()
        reading, writing = os.pipe()
        with io.FileIO(reading) as told, io.FileIO(writing, "w") as telling:
            between = os.fork()
            if not between:
                _fork_and_leave(telling, role, received, numbers)
            telling.close()
            octets = told.read(32)
        os.waitpid(between, 0)  # only after this has its child another parent
        if not octets:
            raise OSError("no more processes can be made")
        return int(octets)
    finally:
        for fd in received:
            os.close(fd)


def _fork_and_leave(telling: io.FileIO, role: Role, received: list[int], numbers: list[int]) -> NoReturn:
    try:
        pid = os.fork()
        if not pid:
            _become(role, received, numbers)
        telling.write(b"%d" % pid)
    finally:
        os._exit(0)


def _become(role: Role, received: list[int], numbers: list[int]) -> NoReturn:
    """The child. It never returns into the frames below it, which are the fork server's and the supervisor's."""
    status = 1
    try:
        _keep(received, numbers)
        _show_as(_NAMES[role])
        gc.enable()
        status = sys.modules[role.value].main(*numbers[:2])
    except BaseException:  # noqa: BLE001, RUF100 - as where a program ends by a fault
        traceback.print_exc()
    finally:
        log.flush()
        os._exit(status)


def _keep(received: list[int], numbers: list[int]) -> None:
    """These descriptors and no others, from 3 on, each under its number."""
    free = max(*received, *numbers) + 1
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in received]
    for fd, number in zip(above, numbers, strict=True):
        os.dup2(fd, number, inheritable=False)
    _close_all_but({0, 1, 2, *numbers})


def _close_all_but(kept: set[int]) -> None:
    """Closes what is open. Going through all numbers up to the limit takes a minute where that is a billion (as in some
    containers), Python was built without close_range(2), or something forbids that."""
    try:
        open_now: Iterable[int] = [int(one.name) for one in Path("/proc/self/fd").iterdir()]
    except OSError:
        open_now = range(os.sysconf("SC_OPEN_MAX"))
    for fd in open_now:
        if fd not in kept:
            with contextlib.suppress(OSError):  # the one that the list was read from
                os.close(fd)


def _show_as(name: bytes) -> None:
    """By prctl: /proc/self/comm is root's where root was given up."""
    _prctl(_PR_SET_NAME, name, 0, 0, 0)


def _adopt_orphans(*, is_wanted: bool) -> None:
    """Whether a process below this one whose parent ends becomes a child of this one, not of init. OSError: then nobody may be
    forked, since nobody would learn of its end."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, is_wanted, 0, 0, 0) != 0:
        raise OSError(f"the kernel refuses PR_SET_CHILD_SUBREAPER: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    _run(socket.socket(fileno=int(sys.argv[1])))
