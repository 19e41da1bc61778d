"""A sync that the kernel makes by itself while the loop goes on: Linux's asynchronous I/O (io_submit(2), IOCB_CMD_FDSYNC).

A thread that waits in fdatasync needs the interpreter's lock before and after; beside a busy loop that is two waits of up to a
switch interval, some ten task switches, and a fifth of what a message costs. The kernel needs none of it: it is told what to
sync, and says on an eventfd how that ended.

Where it isn't to be had (a container that forbids io_setup, a filesystem or kernel without it), the commit thread syncs.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

_REFUSED = (ValueError, SystemError, RuntimeError)
"""What the library raises for the kernel's EINVAL, EAGAIN, EPERM and ENOSYS; OSErrors pass as they are."""


class KernelSync:
    """Syncs one file at a time. OSError from the constructor, or from `begin`: not to be had here."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            from caio import linux_aio  # noqa: PLC0415 - fails where it was not built for
        except ImportError as error:
            raise OSError(f"no asynchronous I/O: {error}") from error
        if linux_aio is None:  # how the library says that the kernel has none, or keeps it from us
            raise OSError("no asynchronous I/O")
        try:
            self._context = linux_aio.Context(1)
        except _REFUSED as error:
            raise OSError(f"no asynchronous I/O: {error}") from error
        self._make = linux_aio.Operation.fdsync
        self._loop = loop
        self._operation: Any = None
        self._result: int | None = None
        self._done: Callable[[OSError | None], None] | None = None
        loop.add_reader(self._context.fileno, self._collect)

    @property
    def is_busy(self) -> bool:
        """A sync is under way."""
        return self._done is not None

    def begin(self, fd: int, done: Callable[[OSError | None], None]) -> None:
        """Begins fdatasync(fd). `done` is called in the loop with what came of it, or from within `wait`."""
        operation = self._make(fd)
        operation.set_callback(self._ended)
        try:
            self._context.submit(operation)
        except _REFUSED as error:
            raise OSError(f"no asynchronous sync: {error}") from error
        self._operation = operation  # the kernel's word finds it only while we hold it
        self._done = done

    def wait(self) -> None:
        """Blocks until the sync that is under way has ended, and calls its `done`."""
        self._context.process_events(1, 1, -1)
        self._finish()

    def close(self) -> None:
        """Lets go of the kernel's part. Nothing may be under way."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._context.fileno)
        del self._context

    def _collect(self) -> None:
        self._context.poll()
        self._context.process_events()
        self._finish()

    def _ended(self, result: int) -> None:
        self._result = result  # no more in here: the library would swallow what goes wrong

    def _finish(self) -> None:
        result, done = self._result, self._done
        if result is None or done is None:
            return
        self._result = self._done = self._operation = None
        done(OSError(-result, os.strerror(-result)) if result < 0 else None)
