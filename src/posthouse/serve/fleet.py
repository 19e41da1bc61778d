"""The workers: started, watched, restarted when they die, and ended together.

    STARTING -> READY -> ENDED -> (back-off) -> STARTING ...      a worker that dies resumes its shards
    READY -> ENDED with EXIT_SYNC_FAILED                          the whole server stops; nothing restarts it from here
    any -> STOPPING -> ENDED                                      SIGTERM

A worker that does not answer `ping` for a minute hangs; it is killed and restarted like one that died.
"""

import asyncio
import contextlib
import enum
import functools
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from posthouse.observe import log, metrics
from posthouse.serve.channel import Channel, ChannelClosed, ChannelRefusal
from posthouse.serve.fork_server import Child, ForkServer, Role
from posthouse.serve.start import EXIT_BROKEN, EXIT_SYNC_FAILED, READY_SECONDS, WorkerStart, to_arguments

FIRST_PAUSE = 0.1
"""Seconds before a dead worker is restarted; doubled each time up to LONGEST_PAUSE, forgotten after STEADY_SECONDS of work."""

LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0

PING_SECONDS = 10.0
HANG_SECONDS = 60.0

Plan = Callable[[int], tuple[WorkerStart, list[int]]]
"""What worker N is told, as things stand now, and the descriptors it inherits (under the numbers they have here)."""


class Owner(Protocol):
    """Who owns what the workers share; each is known by its number."""

    async def asked(self, worker: int, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A worker asks. ChannelRefusal."""

    def heard(self, worker: int, verb: str, arguments: dict[str, Any]) -> None:
        """A worker tells something."""

    def started(self, worker: int) -> None:
        """A worker is ready."""

    def ended(self, worker: int) -> None:
        """A worker's process has ended: its sockets are closed."""


class FleetError(Exception):
    """The server can't start, or must stop. The text is one sentence; `status` is the exit status that goes with it."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class WorkerState(enum.StrEnum):
    """Where a worker stands; the way between is in the module's head."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    ENDED = "ended"


class Worker:
    """One of the workers, through all its lives."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.state = WorkerState.ENDED
        self.restarts = 0
        self.began_at = 0.0
        self.told: WorkerStart | None = None
        self.channel: Channel | None = None
        self.process: Child | None = None
        self.last_counts: metrics.Snapshot = {}

    @property
    def pid(self) -> int:
        """The process, 0 when there is none."""
        return self.process.pid if self.process is not None and self.state is not WorkerState.ENDED else 0

    async def launch(self, fork_server: ForkServer, told: WorkerStart, descriptors: list[int], owner: Owner) -> None:
        """Starts a process and waits until it accepts mail. FleetError when it doesn't."""
        try:
            ours, theirs = socket.socketpair()
            our_sockets, their_sockets = socket.socketpair()
        except OSError as error:
            raise FleetError(f"can't make a channel to a worker: {error}", EXIT_BROKEN) from error
        self.state, self.told, self.began_at = WorkerState.STARTING, told, time.monotonic()
        try:
            self.process = await fork_server.start(Role.WORKER, [theirs.fileno(), their_sockets.fileno(), *descriptors])
        except OSError as error:
            ours.close()
            our_sockets.close()
            self.state = WorkerState.ENDED
            raise FleetError(f"can't start a worker process: {error}", EXIT_BROKEN) from error
        finally:
            theirs.close()
            their_sockets.close()
        self.channel = await Channel.over(ours, functools.partial(owner.asked, self.index), our_sockets)
        self.channel.heard = functools.partial(owner.heard, self.index)
        try:
            await self.channel.request("start", timeout=READY_SECONDS, **to_arguments(told))
        except ChannelRefusal as refusal:
            await self.kill()
            raise FleetError(str(refusal), 2) from refusal
        except ChannelClosed as error:
            status = await self.wait()
            raise FleetError(
                f"worker {self.index} ended with status {status} before it was ready", _kept(status)
            ) from error
        except TimeoutError as error:
            await self.kill()
            raise FleetError(f"worker {self.index} was not ready after {READY_SECONDS:g} s", EXIT_BROKEN) from error
        self.state = WorkerState.READY

    async def wait(self) -> int:
        """Waits until the process has ended; its exit status, negative for a signal."""
        if self.process is None:
            return 0
        status = await self.process.wait()
        self.state = WorkerState.ENDED
        if self.channel is not None:
            self.channel.close()
        return status

    async def kill(self) -> None:
        """SIGKILL, and waits."""
        self.send_signal(signal.SIGKILL)
        await self.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """To the process, if there is one."""
        if self.process is not None:
            self.process.send_signal(number)

    async def ask(self, verb: str, *, timeout: float = 30.0, **arguments: Any) -> dict[str, Any]:  # noqa: ASYNC109
        """One request. ChannelRefusal, ChannelClosed, TimeoutError."""
        if self.channel is None or self.state is not WorkerState.READY:
            raise ChannelClosed(f"worker {self.index} is not running; it is being restarted")
        return await self.channel.request(verb, timeout=timeout, **arguments)


class Fleet:
    """All workers. `failed` is done when the whole server must stop: its result is the exit status."""

    def __init__(self, count: int, plan: Plan, fork_server: ForkServer) -> None:
        """`owner` is to be set before `start`."""
        self.owner: Owner
        self.workers = [Worker(index) for index in range(count)]
        self.failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._plan = plan
        self._fork_server = fork_server
        self._keeping: list[asyncio.Task[None]] = []
        self._stopping = False
        self.retired: metrics.Snapshot = {}

    async def start(self) -> None:
        """Starts all and returns when all are ready. FleetError: none is left running."""
        launching = [asyncio.create_task(self._launch(worker)) for worker in self.workers]
        try:
            await asyncio.gather(*launching)
        except BaseException:
            for task in launching:
                task.cancel()
            await asyncio.gather(*launching, return_exceptions=True)
            await asyncio.gather(*(worker.kill() for worker in self.workers if worker.pid))
            raise
        for worker in self.workers:
            self._keep(self._watch(worker))
            self._keep(self._ping(worker))

    async def ask_all(self, verb: str, *, timeout: float = 30.0, **arguments: Any) -> list[dict[str, Any]]:  # noqa: ASYNC109
        """Asks every running worker at once; the answers in their order. The first failure is raised when all have answered."""
        ready = [worker for worker in self.workers if worker.state is WorkerState.READY]
        answers = await asyncio.gather(
            *(worker.ask(verb, timeout=timeout, **arguments) for worker in ready), return_exceptions=True
        )
        results: list[dict[str, Any]] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            results.append(answer)
        return results

    def tell(self, number: int, verb: str, arguments: object) -> None:
        """Tells a worker something, if it is there (one that starts may be at work already)."""
        channel = self.workers[number].channel
        if channel is not None:
            channel.tell(verb, arguments)

    def worker_for(self, shard: int) -> Worker:
        """Who works on a spool shard."""
        return self.workers[shard % len(self.workers)]

    async def replace(self, worker: Worker) -> None:
        """Ends a worker that can't follow; it is restarted with what holds now."""
        log.warning("worker-replaced", worker=worker.index, pid=worker.pid)
        worker.send_signal(signal.SIGKILL)

    async def stop(self, seconds: float) -> None:
        """Tells all to end what they have received whole and their attempts within `seconds`; kills those that stay longer."""
        self._stopping = True
        await asyncio.gather(*(self._stop(worker, seconds) for worker in self.workers))
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)

    def hurry(self) -> None:
        """A second SIGTERM: ends now. What is on disk stays on disk."""
        for worker in self.workers:
            worker.send_signal(signal.SIGKILL)

    async def snapshot(self) -> metrics.Snapshot:
        """The numbers of all workers, of those that have ended, and of this process."""
        found = [metrics.snapshot(), self.retired]
        for worker in self.workers:
            try:
                worker.last_counts = (await worker.ask("metrics", timeout=5.0))["metrics"]
                found.append(worker.last_counts)
            except (ChannelClosed, ChannelRefusal, TimeoutError, KeyError):
                found.append(metrics.counts_only(worker.last_counts))
        return metrics.merge(found)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._note_fault)
        self._keeping.append(task)

    def _note_fault(self, task: asyncio.Task[None]) -> None:
        """A fault of ours must not leave a worker unwatched: the server stops, and says where."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.exception("watch-failed", error)
            if not self.failed.done():
                self.failed.set_result(EXIT_BROKEN)

    async def _launch(self, worker: Worker) -> None:
        told, descriptors = self._plan(worker.index)
        try:
            await worker.launch(self._fork_server, told, descriptors, self.owner)
        except FleetError:
            self.owner.ended(worker.index)
            raise
        self.owner.started(worker.index)
        metrics.workers.inc()
        log.info("worker-ready", worker=worker.index, pid=worker.pid, shards=list(told.shards))
        if self._plan(worker.index)[0] != told:
            await self.replace(worker)  # a reload was accepted while it started

    async def _watch(self, worker: Worker) -> None:
        """Restarts a worker for ever, or until it says that the disk can't be trusted."""
        pause = FIRST_PAUSE
        while True:
            status = await worker.wait()
            self.owner.ended(worker.index)
            metrics.workers.dec()
            if self._stopping:
                return
            self._retire(worker)
            if status == EXIT_SYNC_FAILED:
                self._fail(worker, status)
                return
            if time.monotonic() - worker.began_at > STEADY_SECONDS:
                pause = FIRST_PAUSE
            while worker.state is not WorkerState.READY:
                log.error("worker-ended", worker=worker.index, status=status, restart_in_seconds=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                worker.restarts += 1
                metrics.worker_restarts.inc()
                try:
                    await self._launch(worker)
                except FleetError as error:
                    log.error("worker-failed", worker=worker.index, error=str(error))
                    status = error.status
                    if status == EXIT_SYNC_FAILED:
                        self._fail(worker, status)
                        return

    def _fail(self, worker: Worker, status: int) -> None:
        log.error(
            "sync-failed",
            worker=worker.index,
            words="a worker could not bring mail safely to disk: the server stops; look at the disk before starting it again",
        )
        if not self.failed.done():
            self.failed.set_result(status)

    def _retire(self, worker: Worker) -> None:
        self.retired = metrics.merge([self.retired, metrics.counts_only(worker.last_counts)])
        worker.last_counts = {}

    async def _ping(self, worker: Worker) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            if worker.state is not WorkerState.READY:
                continue
            try:
                await worker.ask("ping", timeout=HANG_SECONDS)
            except TimeoutError:
                log.error("worker-hangs", worker=worker.index, pid=worker.pid, seconds=HANG_SECONDS)
                worker.send_signal(signal.SIGKILL)
            except (ChannelClosed, ChannelRefusal):
                continue

    async def _stop(self, worker: Worker, seconds: float) -> None:
        if worker.state is WorkerState.ENDED:
            return
        try:
            if worker.state is WorkerState.READY:
                async with asyncio.timeout(seconds + 3.0):
                    await worker.ask("stop", timeout=seconds + 3.0, seconds=seconds)
                    worker.state = WorkerState.STOPPING
                    await worker.wait()
                    return
        except (ChannelClosed, ChannelRefusal):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.wait(), 3.0)
        except TimeoutError:
            log.warning("worker-killed", worker=worker.index, pid=worker.pid, words="it did not end in time")
        if worker.state is not WorkerState.ENDED:
            await worker.kill()


def _kept(status: int) -> int:
    return EXIT_SYNC_FAILED if status == EXIT_SYNC_FAILED else EXIT_BROKEN
