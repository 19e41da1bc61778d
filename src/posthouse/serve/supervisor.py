"""The supervisor: one light process that owns what the workers share, and handles no mail.

It binds the sockets, drops root, locks the data directory, starts the workers and keeps them running, reloads all or
none, answers commands, tells systemd, and stops in good order. Whatever must be refused is refused before it listens.

    start   lock data -> bind -> drop privileges -> workers ready -> "ready"
    reload  load and prove -> bind what is new -> prepare in every worker -> commit in every worker; else nothing changes
    stop    stop listening -> workers answer what they hold whole, end attempts within 30 s -> exit 0
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

import posthouse
from posthouse.config import Config, ListenerRole
from posthouse.net.listen import ListenError, address_text
from posthouse.observe import log, metrics
from posthouse.serve import first_sight
from posthouse.serve.admission import Admitted, Changes, NotAdmitted
from posthouse.serve.answering import ControlRefusal, ControlServer
from posthouse.serve.asked import Asked
from posthouse.serve.channel import ChannelClosed, ChannelRefusal
from posthouse.serve.data_dir import DataDir, DataDirError, open_data_dir
from posthouse.serve.descriptors import raise_descriptor_limit
from posthouse.serve.echoes import Echoes
from posthouse.serve.fleet import Fleet, FleetError, Worker, WorkerState
from posthouse.serve.fork_server import ForkServer, Role
from posthouse.serve.listening import Change, Listening
from posthouse.serve.notify import notify, notify_reloading, watchdog_seconds
from posthouse.serve.privileges import Identity, PrivilegeError
from posthouse.serve.queue_acts import act_on_queue
from posthouse.serve.self_test_live import LiveTest, rehearse_live
from posthouse.serve.shared import Shared
from posthouse.serve.start import ListenerSocket, Prepare, WorkerStart, to_arguments
from posthouse.serve.watching import Watching
from posthouse.serve.web_keeper import WebKeeper
from posthouse.serve.weekly import send_weekly_usage

if TYPE_CHECKING:
    from posthouse.observe.endpoint import Endpoint

STOP_SECONDS = 28.0
"""How long attempts under way may take after SIGTERM: the process has ended within 30."""

HURRIED_STOP_SECONDS = 2.0

Admit = Callable[[], Admitted]
"""Reads the configuration and proves it closed: NotAdmitted with one sentence when it can't be put in force."""


class CannotStart(Exception):
    """Something stands in the way; the text is one sentence with the place and the remedy. Exit 2."""


def run(admit: Admit, say: Callable[[str], None]) -> int:
    """Serves until told to stop; the exit status. CannotStart and NotAdmitted before anything has changed."""
    admitted = admit()
    config = admitted.config
    log.configure(config.log.format, config.log.level)
    os.umask(0o077)
    raise_descriptor_limit()
    try:
        identity = Identity(config.user)
        data = open_data_dir(config.data_dir, identity)
    except (PrivilegeError, DataDirError) as error:
        raise CannotStart(str(error)) from error
    try:
        listening = Listening.open(config, data, identity)
        identity.assume()
        identity.prove_readable((sys.executable, os.__file__, __file__))
        roles = (Role.WORKER, Role.WEB) if config.web.is_on else (Role.WORKER,)
        with contextlib.closing(ForkServer(roles)) as fork_server:

            async def serve() -> int:  # a Supervisor is made under its event loop
                return await Supervisor(admit, admitted, data, listening, fork_server, say).run()

            return asyncio.run(serve())
    except (ListenError, PrivilegeError) as error:
        raise CannotStart(str(error)) from error
    except FleetError as error:
        if error.status == 2:
            raise CannotStart(str(error)) from error
        say(f"posthouse: {error}")
        return error.status
    finally:
        data.release()


class Supervisor:
    """One running server."""

    def __init__(
        self,
        admit: Admit,
        admitted: Admitted,
        data: DataDir,
        listening: Listening,
        fork_server: ForkServer,
        say: Callable[[str], None],
    ) -> None:
        self.config = admitted.config
        self._admitted = admitted
        self._admit = admit
        self._data = data
        self._listening = listening
        self._say = say
        self._relay_enabled = data.is_relay_enabled
        self._started_at = time.time()
        self._fleet = Fleet(self.config.workers, self._plan, fork_server)
        self._fleet.owner = self._shared = Shared(self.config.workers, self._fleet.tell)
        self._echoes = Echoes(data, lambda: self.config, self._suspend_in_workers)
        self._shared.answers["echo"] = self._echoes.hear
        self._watching = Watching(lambda: self.config)
        self._control = ControlServer(self._act)
        self._web = WebKeeper(fork_server)
        self._endpoint: Endpoint | None = None
        self._asked = Asked()
        self._changing = asyncio.Lock()
        self._stop_wanted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> int:
        """From the first worker to the last; the exit status. FleetError when the workers don't come up."""
        self._install_signals()
        metrics.relay_enabled.set(1 if self._relay_enabled else 0)
        metrics.start_time_seconds.set(self._started_at)
        if self.config.source is None or sys.stderr.isatty():
            self._first_sight()
        else:
            self._log_warnings()
        try:
            await self._start_workers()
            await self._test_listeners()
            await self._control.start(self._listening.control)
            await self._start_web()
            await self._start_endpoint()
            await self._asked.start(self.config, self._listening.ask)
            self._background(self._notify_watchdog())
            self._background(self._weekly_usage())
            self._background(self._watching.run())
            log.flush()  # what led to it stands before it
            self._say(first_sight.ready_line(self.config, self._listening.addresses, os.getpid(), self._web.status))
            notify("READY=1", f"STATUS=accepting mail on {', '.join(self._listening.addresses)}")
            done, _ = await asyncio.wait({self._stop_wanted, self._fleet.failed}, return_when=asyncio.FIRST_COMPLETED)
            status = self._fleet.failed.result() if self._fleet.failed in done else 0
            await self._stop(HURRIED_STOP_SECONDS if status else STOP_SECONDS)
        finally:
            await self._end_tasks()
            log.flush()
        return status

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._background(self._reload_by_signal()))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_by_signal)

    def _stop_by_signal(self) -> None:
        if not self._stop_wanted.done():
            self._stop_wanted.set_result(0)
            return
        log.warning("hurried", words="told to stop twice: ending now, what is on disk is tried again at the next start")
        self._fleet.hurry()

    def _first_sight(self) -> None:
        for line in first_sight.describe(self.config, self._listening.addresses):
            self._say(line)
        for warning in self._admitted.warnings:
            self._say(f"  mind         {warning}")
        if self._admitted.self_test is not None:
            self._say(f"  {self._admitted.self_test.sentence.replace('self-test: ', 'self-test    ')}")
        for sentence in self._echoes.sentences:
            self._say(f"  SUSPENDED    {sentence}")
        if not self._relay_enabled:
            self._say("  relay is OFF: only mail for local domains is taken, until `posthouse relay on`")
        if os.geteuid() == 0:
            self._say('  running as root: set "user" to give up root once the ports are bound')

    def _log_warnings(self) -> None:
        """What first sight would have told a person, for whoever reads the log."""
        for warning in self._admitted.warnings:
            log.warning("mind", words=warning)
        if self._admitted.self_test is not None:
            log.info("self-tested", words=self._admitted.self_test.sentence)
        for sentence in self._echoes.sentences:
            log.warning("networks-suspended", words=sentence)
        if not self._relay_enabled:
            log.warning("relay-off", words="only mail for local domains is taken, until `posthouse relay on`")
        if os.geteuid() == 0:
            log.warning("running-as-root", words='set "user" to give up root once the ports are bound')

    async def _start_workers(self) -> None:
        """All workers ready, or SIGTERM before that."""
        starting = asyncio.ensure_future(self._fleet.start())
        self._stop_wanted.add_done_callback(lambda _: starting.cancel())  # no harm once it is done
        with contextlib.suppress(asyncio.CancelledError):
            await starting

    async def _test_listeners(self) -> None:
        """Says the cases over the listeners as they are. FleetError (2) when one is let in: the server ends."""
        if self._stop_wanted.done():
            return
        live = await self._rehearse_live()
        if live.relayed is not None:
            await self._stop(HURRIED_STOP_SECONDS)
            raise FleetError(f"{live.relayed.sentence} The dialogue:{live.relayed.dialogue_text}", 2)

    async def _rehearse_live(self) -> LiveTest:
        places = [(place.text, place.bound_port) for place in self._listening.places]
        live = await rehearse_live(self.config, self._admitted.rules, places, self._echoes.self_test_name)
        log.info("self-tested-live", words=live.sentence)
        for words in live.untried:
            log.info("self-test-untried", words=words)
        return live

    def _plan(self, index: int) -> tuple[WorkerStart, list[int]]:
        """What worker number `index` is told: the shards of a time with more workers are adopted."""
        workers = self.config.workers
        adopted = [shard for shard in self._data.shards() if shard >= workers and shard % workers == index]
        listeners = [
            ListenerSocket(number, place.socket_for(index).fileno())
            for number, place in enumerate(self._listening.places)
        ]
        submit_fd = self._listening.submit.fileno()
        told = WorkerStart(
            config=self.config,
            worker=index,
            workers=workers,
            shards=(index, *adopted),
            listeners=tuple(listeners),
            submit_fd=submit_fd,
            relay_enabled=self._relay_enabled,
            suspended=self._echoes.suspended,
        )
        # The lock too: the directory is in use until the last worker has ended, if this process should be killed.
        return told, [*{one.fd for one in listeners}, submit_fd, self._data.lock_fd]

    async def _start_web(self) -> None:
        """Where [web] is. FleetError when it can't be: who configures pages wants to know at once."""
        why = await self._web.start(self.config, self._listening.web)
        if why:
            await self._fleet.stop(HURRIED_STOP_SECONDS)
            raise FleetError(f"[web] can't be served: {why}", 2)

    async def _reload_web(self, old: Config, change: Change) -> None:
        """The relay's reload is in force already: a web that can't follow is logged, and started again."""
        if not change.web_changes:
            if self.config != old:
                await self._web.configure(self.config)
            return
        await self._web.stop()
        if self._listening.web is not None:
            self._listening.web.close(but=change.web)
        self._listening.web = change.web
        why = await self._web.start(self.config, change.web)
        if why:
            log.error("web-failed", error=why)

    async def _snapshot(self) -> metrics.Snapshot:
        return metrics.merge([await self._fleet.snapshot(), *await self._web.snapshots()])

    async def _start_endpoint(self) -> None:
        """Where there is a socket for it; one that served another address ends."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        if self._listening.metrics is not None:
            from posthouse.observe.endpoint import Endpoint  # noqa: PLC0415 - prometheus_client, for those who want it

            self._endpoint = Endpoint(self._snapshot, self._is_healthy)
            await self._endpoint.start(self._listening.metrics)

    def _is_healthy(self) -> bool:
        return all(worker.state is WorkerState.READY for worker in self._fleet.workers)

    # commands

    async def _act(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if verb.startswith("queue-"):
            return await act_on_queue(self._fleet, verb, arguments)
        match verb:
            case "status":
                return self._status()
            case "reload":
                return {"configuration": self.config.place, **msgspec.structs.asdict(await self.reload())}
            case "relay-off" | "relay-on":
                await self.set_relay(verb == "relay-on")
                return {"relay": "on" if self._relay_enabled else "off"}
            case "relay-status":
                return {"relay": "on" if self._relay_enabled else "off", **self._echoes.status()}
            case "relay-trust":
                return await self._echoes.trust(str(arguments.get("listener", "")))
            case "echo-nonce":
                return self._echoes.new_nonce()
            case "metrics":
                return {"metrics": await self._snapshot()}
        raise ControlRefusal(f"this server knows no {verb}; is it older than the command?")

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "version": posthouse.__version__,
            "hostname": self.config.hostname,
            "config": str(self.config.source or ""),
            "data_dir": str(self.config.data_dir),
            "started_at": self._started_at,
            "uptime_seconds": round(time.time() - self._started_at, 1),
            "relay": "on" if self._relay_enabled else "off",
            "listeners": [
                {"address": place.text, "role": str(settings.role)}
                for place, settings in zip(self._listening.places, self.config.listeners, strict=True)
            ],
            "web": self._web.status,
            "workers": [
                {"worker": one.index, "pid": one.pid, "state": str(one.state), "restarts": one.restarts}
                for one in self._fleet.workers
            ],
        }

    async def set_relay(self, enabled: bool) -> None:
        """Turns the relay option: durable first, then at once in every worker. ControlRefusal."""
        async with self._changing:
            await self._turn_relay(enabled=enabled)

    async def _turn_relay(self, *, enabled: bool) -> None:
        try:
            self._data.set_relay_enabled(enabled)
        except OSError as error:
            raise ControlRefusal(f"can't note the relay option in {self._data.path}: {error.strerror}") from error
        self._relay_enabled = enabled
        metrics.relay_enabled.set(1 if enabled else 0)
        log.warning("relay-on" if enabled else "relay-off")
        await self._in_every_worker("relay", enabled=enabled)

    async def _suspend_in_workers(self) -> None:
        await self._in_every_worker("suspend", listeners=list(self._echoes.suspended))

    async def _in_every_worker(self, verb: str, **arguments: Any) -> None:
        """A change that has been decided: a worker that can't follow is replaced by one that starts with it."""
        await asyncio.gather(*(self._in_worker(worker, verb, arguments) for worker in self._fleet.workers))

    async def _in_worker(self, worker: Worker, verb: str, arguments: dict[str, Any]) -> None:
        if worker.state is not WorkerState.READY:
            return  # its start will tell it
        try:
            await worker.ask(verb, timeout=10.0, **arguments)
        except (ChannelRefusal, ChannelClosed, TimeoutError) as error:
            log.error("worker-does-not-follow", worker=worker.index, verb=verb, error=str(error))
            await self._fleet.replace(worker)

    async def _reload_by_signal(self) -> None:
        with contextlib.suppress(ControlRefusal):  # it has been logged
            await self.reload()

    async def reload(self) -> Changes:
        """All workers take the new configuration, or none; what changes, in words. ControlRefusal."""
        async with self._changing:
            notify_reloading()
            try:
                changes = await self._reload()
            except ControlRefusal as refusal:
                metrics.reloads.inc("refused")
                log.error("reload-refused", words=str(refusal))
                raise
            finally:
                notify("READY=1")
            metrics.reloads.inc("accepted")
            self._watching.look_soon()
            log.info("reloaded", changes=changes.changes, other_changes=changes.other_changes)
            for warning in changes.warnings:
                log.warning("mind", words=warning)
            return changes

    async def _reload(self) -> Changes:
        try:
            admitted = await asyncio.to_thread(self._admit)
            self._check_changeable(admitted.config)
            change = self._listening.prepare(self.config, admitted.config)
        except (NotAdmitted, ListenError) as error:
            raise ControlRefusal(f"{error} (the configuration in force stays)") from error
        try:
            await self._prepare(Prepare(config=admitted.config, kept=change.kept, opened=change.opened), change)
        except (ChannelRefusal, ChannelClosed, TimeoutError, OSError) as error:
            change.abandon()
            await self._in_every_worker("abandon")
            raise ControlRefusal(f"{error} (the configuration in force stays)") from error
        changes = admitted.changes_from(self._admitted)
        old, self._admitted, self.config = self.config, admitted, admitted.config
        self._listening.places = change.places
        is_lifted = self._echoes.configuration_changed()
        await self._in_every_worker("commit")
        if is_lifted:
            await self._suspend_in_workers()
        change.close_unused()
        log.configure(self.config.log.format, self.config.log.level)
        if change.ask_changes:
            self._listening.ask = change.ask
            await self._asked.start(self.config, change.ask)
        else:
            self._asked.renew(self.config)
        if change.metrics_changes:
            self._listening.metrics = change.metrics
            await self._start_endpoint()
        await self._reload_web(old, change)
        await self._test_listeners_again()
        return changes

    async def _test_listeners_again(self) -> None:
        """After a reload there is no way back: should a case be let in now, relaying goes off altogether. ControlRefusal."""
        live = await self._rehearse_live()
        if live.relayed is None:
            return
        log.error("self-test-relayed", words=live.relayed.sentence, dialogue=live.relayed.dialogue)
        await self._turn_relay(enabled=False)
        raise ControlRefusal(
            f"{live.relayed.sentence} The new configuration is in force, and relaying is turned OFF: mend it and reload, "
            f"then say `posthouse relay on`. The dialogue:{live.relayed.dialogue_text}"
        )

    def _check_changeable(self, new: Config) -> None:
        for key in ("data_dir", "workers", "user"):
            if getattr(new, key) != getattr(self.config, key):
                raise NotAdmitted(f'"{key}" can change only by a restart')

        for was in self.config.listeners:
            for will in new.listeners:
                is_same = (was.host, was.port) == (will.host, will.port)
                if is_same and (was.role is ListenerRole.COLLECTOR) != (will.role is ListenerRole.COLLECTOR):
                    raise NotAdmitted(
                        f"the listener on {address_text(was.host, was.port)} can become or stop being a collector "
                        f"only by a restart, or by way of a reload without it"
                    )

    async def _prepare(self, prepare: Prepare, change: Change) -> None:
        for worker in self._fleet.workers:
            if worker.state is WorkerState.READY and worker.channel is not None and change.opened:
                worker.channel.send_sockets([change.places[index].socket_for(worker.index) for index in change.opened])
        await self._fleet.ask_all("prepare", **to_arguments(prepare))

    # the end

    async def _stop(self, seconds: float) -> None:
        notify("STOPPING=1")
        log.info("stopping", seconds=seconds)
        self._control.close()
        self._asked.close()
        if self._endpoint is not None:
            self._endpoint.close()
        self._listening.close()
        await asyncio.gather(self._fleet.stop(seconds), self._web.stop())
        self._shared.close()
        log.info("stopped")

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _notify_watchdog(self) -> None:
        """Only while every worker is alive; fleet replaces hanging ones, systemd a hanging supervisor."""
        period = watchdog_seconds()
        while period:
            notify("WATCHDOG=1")
            await asyncio.sleep(period / 3)

    async def _weekly_usage(self) -> None:
        await send_weekly_usage(self._data, lambda: self.config)
