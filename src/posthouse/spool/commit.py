"""Group commit: many waiters, one sync, on a thread of its own.

Arrivals gather in the event loop. When no commit runs, the loop *stages* all that has gathered (it runs the statements,
with the connection in its hands) and has the kernel sync it (see `kernel_sync`). A batch that is more than one sync goes to
the thread, which *commits* it, and so does the upkeep. Meanwhile new arrivals gather and make the next batch.

A batch waits for company only while there is something else to do: it begins as soon as a turn of the loop has brought
nothing more from clients, and after COMPANY_SECONDS in any case. A lone message never waits; in a crowd three times as
many share a transaction.

The connection has one owner at a time, and the phase says which:

    IDLE        the loop; nothing runs
    CALLED      the loop; a start was asked for and comes when no more is heard from clients
    COMMITTING  the thread, or nobody while the kernel syncs, until the end has been taken
    BROKEN      nobody: a sync failed, and trying it again would lie about what is on disk
    CLOSED      nobody

What need not be on disk at once (`want_within`) rides with the next batch, or starts one when its timer fires. The timer
never counts as a running commit: if it did, a busy queue would move one batch a tick and look like a slow disk.
"""

import asyncio
import enum
import functools
import queue
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from posthouse.observe import log
from posthouse.spool.api import SpoolBroken, SpoolError
from posthouse.spool.kernel_sync import KernelSync

B = TypeVar("B")

COMPANY_SECONDS = 0.005
"""So long a batch is held up at most while clients go on talking."""


class Phase(enum.Enum):
    """Who owns the connection; see the module's text."""

    IDLE = "idle"
    CALLED = "called"
    COMMITTING = "committing"
    BROKEN = "broken"
    CLOSED = "closed"


class Work(Protocol[B]):
    """What a GroupCommit drives. Methods named "on the thread" are the only ones called there."""

    log_fd: int
    """What a batch that `is_written` has to sync."""

    def is_urgent(self) -> bool:
        """Somebody waits who may not wait for the timer."""

    def stage(self) -> B | None:
        """Gathers all that waits into one batch; None when nothing does. SpoolBroken ends everything."""

    def commit(self, batch: B) -> None:
        """Writes and syncs, on the thread. A SpoolError is the end of this batch, SpoolBroken of everything."""

    def is_written(self, batch: B) -> bool:
        """Nothing is left to do for a staged batch but to sync `log_fd`; `committed` or `not_synced` follows."""

    def committed(self, batch: B) -> None:
        """A batch that was written is synced."""

    def not_synced(self, error: OSError) -> SpoolError:
        """What a sync that failed means."""

    def settle(self, batch: B, error: SpoolError | None) -> None:
        """Tells the waiters of a batch."""

    def wants_upkeep(self) -> bool:
        """Asked after each good commit."""

    def upkeep(self, is_idle: bool) -> None:
        """Checkpoints and the like, on the thread; the batch's waiters have been told by then."""

    def broken(self, error: SpoolBroken) -> None:
        """Nothing will be committed any more: tells all who still wait."""


class _Order(enum.Enum):
    """What the thread is given that is no batch."""

    UPKEEP_IDLE = 1
    UPKEEP_BETWEEN = 2
    STOP = 3


class _End(Generic[B]):
    """What the thread has to say. `is_last`: it has let go of the connection."""

    __slots__ = ("batch", "error", "is_last")

    def __init__(self, batch: B | None, error: SpoolError | None, is_last: bool) -> None:
        self.batch = batch
        self.error = error
        self.is_last = is_last


def _kernel_sync(loop: asyncio.AbstractEventLoop | None) -> KernelSync | None:
    if loop is None:
        return None
    try:
        return KernelSync(loop)
    except OSError as error:
        log.info("no-kernel-sync", words=str(error))
        return None


class GroupCommit(Generic[B]):
    """Runs batches one at a time. Without a loop nothing starts by itself: `drain` does the work where it is called."""

    def __init__(
        self, work: Work[B], loop: asyncio.AbstractEventLoop | None, heard: Callable[[], int] = lambda: 0
    ) -> None:
        """`heard` is a number that grows whenever a client is heard from."""
        self._work = work
        self._loop = loop
        self._heard = heard
        self._heard_before = 0
        self._start_by = 0.0
        self._phase = Phase.IDLE
        self._jobs: queue.SimpleQueue[B | _Order] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[_End[B]] = queue.SimpleQueue()
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="posthouse-commit", daemon=True)
        self._thread.start()
        self._kernel = _kernel_sync(loop)

    @property
    def phase(self) -> Phase:
        """The state of the commit."""
        return self._phase

    def want(self) -> None:
        """Something waits: commit it as soon as the thread is free, with all else that comes meanwhile."""
        if self._phase is Phase.IDLE and self._loop is not None:
            self._phase = Phase.CALLED
            self._heard_before = self._heard()
            self._start_by = self._loop.time() + COMPANY_SECONDS
            self._loop.call_soon(self._start_when_quiet, self._loop)

    def want_within(self, seconds: float) -> None:
        """Something waits that may wait so long for company. The first such wish sets the timer."""
        if self._timer is None and self._loop is not None and self._phase not in {Phase.BROKEN, Phase.CLOSED}:
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def tend(self) -> None:
        """Runs upkeep on the thread if nothing else runs."""
        if self._phase is Phase.IDLE:
            self._phase = Phase.COMMITTING
            self._jobs.put(_Order.UPKEEP_IDLE)

    def drain(self) -> None:
        """Blocks until all that waits is committed and its waiters are told, or a batch fails; does not try that again."""
        self.quiesce()
        self._has_failed = False
        while not self._has_failed and self._phase not in {Phase.BROKEN, Phase.CLOSED}:
            self._start()
            if self._phase is not Phase.COMMITTING:
                return
            self.quiesce()

    def quiesce(self) -> None:
        """Blocks until the thread, or the kernel, has let go of the connection (or everything is broken)."""
        while self._phase is Phase.COMMITTING:
            if self._kernel is not None and self._kernel.is_busy:
                self._kernel.wait()
                continue
            self._take(self._ends.get(), goes_on=False)

    def close(self) -> None:
        """Drains, ends the thread, and leaves the connection to the caller."""
        self.drain()
        if self._timer is not None:
            self._timer.cancel()
        if self._phase is not Phase.BROKEN:
            self._phase = Phase.CLOSED
        self._jobs.put(_Order.STOP)
        self._thread.join()
        if self._kernel is not None and not self._kernel.is_busy:
            self._kernel.close()

    def fail(self, error: SpoolBroken) -> None:
        """A sync failed elsewhere (a content file): nothing is acknowledged any more."""
        if self._phase not in {Phase.BROKEN, Phase.CLOSED}:
            self._phase = Phase.BROKEN
            self._work.broken(error)

    def _on_timer(self) -> None:
        self._timer = None
        self._is_due = True
        if self._phase is Phase.IDLE:
            self._start()

    def _start_when_quiet(self, loop: asyncio.AbstractEventLoop) -> None:
        heard = self._heard()
        if heard == self._heard_before or self._phase is not Phase.CALLED or loop.time() > self._start_by:
            self._start()
            return
        self._heard_before = heard
        loop.call_soon(self._start_when_quiet, loop)  # with that pending the loop does not sleep, it only looks

    def _start(self) -> None:
        if self._phase not in {Phase.IDLE, Phase.CALLED}:
            return
        self._phase = Phase.IDLE
        self._is_due = False
        try:
            batch = self._work.stage()
        except SpoolBroken as error:
            self.fail(error)
            return
        if batch is None:
            return
        self._phase = Phase.COMMITTING
        if self._kernel is None or not self._work.is_written(batch) or not self._begin_sync(self._kernel, batch):
            self._jobs.put(batch)

    def _begin_sync(self, kernel: KernelSync, batch: B) -> bool:
        try:
            kernel.begin(self._work.log_fd, functools.partial(self._synced, batch))
        except OSError as error:  # the thread may have better luck; it reports what is wrong with the file
            log.info("no-kernel-sync", words=str(error))
            kernel.close()
            self._kernel = None
            return False
        return True

    def _synced(self, batch: B, failure: OSError | None) -> None:
        """The kernel has synced a batch, or could not."""
        if failure is not None:
            self._take(_End(batch, self._work.not_synced(failure), is_last=True), goes_on=True)
            return
        self._work.committed(batch)
        wants_upkeep = self._work.wants_upkeep()
        self._take(_End(batch, None, is_last=not wants_upkeep), goes_on=True)
        if wants_upkeep and self._phase is Phase.COMMITTING:
            self._jobs.put(_Order.UPKEEP_BETWEEN)

    def _collect(self) -> None:
        try:
            end = self._ends.get_nowait()
        except queue.Empty:
            return  # `quiesce` was here first
        self._take(end, goes_on=True)

    def _take(self, end: _End[B], *, goes_on: bool) -> None:
        if self._phase is Phase.BROKEN:
            if end.batch is not None:  # it may be on disk, but nothing may be acknowledged any more
                self._work.settle(end.batch, SpoolBroken("the spool failed; nothing is acknowledged any more"))
            return
        error = end.error
        self._has_failed |= error is not None
        if isinstance(error, SpoolBroken):
            self._phase = Phase.BROKEN
        if end.batch is not None:
            self._work.settle(end.batch, error)
        if isinstance(error, SpoolBroken):
            self._work.broken(error)
        elif end.is_last:
            self._phase = Phase.IDLE
            if goes_on and (self._is_due or self._work.is_urgent()):
                self.want()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not _Order.STOP:
            if isinstance(job, _Order):
                self._tell(_End(None, self._guarded_upkeep(is_idle=job is _Order.UPKEEP_IDLE), is_last=True))
                continue
            error = self._guarded_commit(job)
            if error is None and self._work.wants_upkeep():
                self._tell(_End(job, None, is_last=False))
                self._tell(_End(None, self._guarded_upkeep(is_idle=False), is_last=True))
            else:
                self._tell(_End(job, error, is_last=True))

    def _guarded_commit(self, batch: B) -> SpoolError | None:
        try:
            self._work.commit(batch)
        except SpoolError as error:
            return error
        except Exception as error:
            broken = SpoolBroken(f"the commit thread failed: {error!r}")
            broken.__cause__ = error
            return broken
        return None

    def _guarded_upkeep(self, *, is_idle: bool) -> SpoolError | None:
        try:
            self._work.upkeep(is_idle)
        except SpoolError as error:
            return error
        except Exception as error:
            broken = SpoolBroken(f"the commit thread failed: {error!r}")
            broken.__cause__ = error
            return broken
        return None

    def _tell(self, end: _End[B]) -> None:
        self._ends.put(end)
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._collect)
            except RuntimeError:  # closed between the two lines: `drain` will take it, or nobody waits
                return
