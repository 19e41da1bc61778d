"""A worker: one process, one core, its own spool shard. Takes mail in and gets out what it accepted.

It is told everything down the channel (serve.start) and ends when the channel closes, so that it never outlives its
supervisor holding port and lock.
"""

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import uvloop

from posthouse.config import Config, ConfigError, ListenerRole, ListenerSettings
from posthouse.mail.envelope import parse_queue_id, queue_id_text, shard_of
from posthouse.net.server import Listener, ListenerPlan, Server
from posthouse.observe import log, metrics
from posthouse.policy.rules import Rules, with_relay
from posthouse.relay.bounce import Bouncer
from posthouse.relay.delivery import Delivery
from posthouse.relay.directions import Pathfinder
from posthouse.relay.intake import Intake
from posthouse.relay.route import RouteError, parse_hop
from posthouse.relay.scheduler import Scheduler
from posthouse.relay.session import Desk
from posthouse.serve import wiring
from posthouse.serve.account_file import accounts_path
from posthouse.serve.accounts import AccountStore
from posthouse.serve.channel import Channel, ChannelClosed, ChannelRefusal
from posthouse.serve.collecting import Collecting
from posthouse.serve.data_dir import ECHO_KEY
from posthouse.serve.masking import listener_key
from posthouse.serve.sharing import Sharing
from posthouse.serve.start import (
    EXIT_BROKEN,
    EXIT_SYNC_FAILED,
    Prepare,
    WorkerStart,
    channel_of_worker,
    prepare_from,
    start_from,
)
from posthouse.serve.witness import Witness
from posthouse.spool.api import SpoolDamaged, SpoolError, SpoolFull, Verb
from posthouse.spool.clock import SteadyClock
from posthouse.spool.sqlite import SqliteSpool
from posthouse.spool.under_way import UnderWay
from posthouse.tester.reception import CollectorDesk

with contextlib.suppress(ImportError):
    import caio  # noqa: F401 - what spool.kernel_sync imports when a shard is opened: before the fork it is there but once

STOP_SECONDS = 30.0

CLOCK_SECONDS = 1.0
"""Between two looks at whether the wall clock has been set."""


class Listening:
    """One listener at work: a reload gives it a new desk's rules, a new certificate and a new plan, without a new socket."""

    def __init__(self, desk: Desk | CollectorDesk, server: Listener | None, context: ssl.SSLContext | None) -> None:
        self.desk = desk
        self.server = server
        self.context = context


class Prepared(msgspec.Struct, frozen=True):
    """A reload that could be carried out: everything that can fail has been done."""

    told: Prepare
    rules: Rules
    pathfinder: Pathfinder
    contexts: dict[int, ssl.SSLContext]
    sockets: tuple[socket.socket, ...]


class Worker:
    """All parts of one worker, put together by `start`, changed by `prepare` and `commit`, ended by `stop`."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self.channel: Channel | None = None
        self._told: WorkerStart | None = None
        self._prepared: Prepared | None = None
        self._listening: dict[int, Listening] = {}
        self._is_running = False
        self._collecting = Collecting()
        self._clock = SteadyClock()
        self._verbs: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "start": self._start,
            "prepare": self._prepare,
            "commit": self._commit,
            "abandon": self._abandon,
            "relay": self._relay,
            "suspend": self._suspend,
            "stop": self._stop,
            "metrics": self._metrics,
        }

    async def handle(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answers the supervisor."""
        if verb.startswith("queue-"):
            return self._act_on_queue(verb.removeprefix("queue-"), arguments)
        carry_out = self._verbs.get(verb)
        if carry_out is None:
            raise ChannelRefusal(f"a worker does not know how to {verb}")
        return await carry_out(arguments)

    # Start.

    async def _start(self, arguments: dict[str, Any]) -> dict[str, Any]:
        told = start_from(arguments)
        config = told.config
        log.configure(config.log.format, config.log.level)
        self._told = told
        try:
            await self._build(told)
        except (ConfigError, SpoolError) as error:
            raise ChannelRefusal(str(error)) from error
        self._is_running = True
        self._look_at_clock()
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)  # the hot path makes no cycles: full collections would only cost
        return {"ready": True}

    async def _build(self, told: WorkerStart) -> None:
        config = told.config
        self._rules = wiring.rules_of(config, relay_enabled=told.relay_enabled)
        contexts = wiring.tls_contexts_of(config)
        self._sharing = Sharing(self.channel, told.workers)
        self._accounts = AccountStore(accounts_path(config), door=self._sharing.login_door)
        limits = config.limits
        server = self._server = Server(
            limits.connections, limits.connections_per_client, self._sharing.share, self._sharing.report_crowd
        )
        self._sharing.server = server
        self._spools: dict[int, SqliteSpool] = {
            shard: SqliteSpool(
                wiring.shard_directory(config, shard),
                shard,
                loop=asyncio.get_running_loop(),
                settings=wiring.spool_settings_of(config),
                on_broken=self._broken,
                clock=self._clock,
                heard=lambda: server.heard,
            )
            for shard in told.shards
        }
        for spool in self._spools.values():
            spool.lay_out_log()
        self._witness = Witness(told.suspended, config.data_dir / ECHO_KEY, self._tell_echo, self._renew_rules)
        self._resolver = wiring.resolver_of(config)
        pathfinder = Pathfinder(wiring.routes_of(config), self._resolver, wiring.ourselves_of(config))
        retry = wiring.retry_plan_of(config)
        make_transport = wiring.transports_of(config)
        self._scheduler = Scheduler(
            dict(self._spools),
            pathfinder,
            make_transport,
            retry,
            self._clock,
            workers=told.workers,
            leases=self._sharing.leases,
        )
        self._sharing.scheduler = self._scheduler
        self._scheduler.may_leave = self._may_leave
        self._journals = [self._watch(shard, spool) for shard, spool in self._spools.items()]
        self._intake = Intake(self._spools[told.shards[0]], self._scheduler, self._clock)
        self._bouncer = Bouncer(config.hostname, self._intake, lambda: self._rules, self._clock)
        self._delivery = Delivery(self._scheduler, self._bouncer, retry, self._clock)
        self._scheduler.settle = self._delivery.settle
        for listener in told.listeners:
            sock = socket.socket(fileno=listener.fd)
            await self._listen(listener.listener, config, sock, contexts.get(listener.listener))
        submit = socket.socket(fileno=told.submit_fd)
        await self._listen(wiring.LOCAL_PLACE, config, submit, None)
        self._correct_times(0)
        self._scheduler.start()

    def _watch(self, shard: int, spool: SqliteSpool) -> UnderWay:
        journal = UnderWay(spool.directory, self._broken)
        self._scheduler.trials.watch(shard, journal)
        return journal

    def _look_at_clock(self) -> None:
        if not self._is_running:
            return
        if by := self._clock.jump:
            log.warning("clock-set", seconds=by // 1000, words="the queue's times are moved along")
            self._clock.follow()
            self._correct_times(by)
            self._scheduler.clock_was_set(by)
        asyncio.get_running_loop().call_later(CLOCK_SECONDS, self._look_at_clock)

    def _correct_times(self, by: int) -> None:
        """On a full disk mail merely keeps its times; it must not keep the server from delivering."""
        longest = int(1.3 * 1000 * self._scheduler.retry.longest)  # with jitter
        for spool in self._spools.values():
            with contextlib.suppress(SpoolFull):
                spool.correct_times(by, longest)

    async def _listen(self, place: int, config: Config, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        settings = None if place == wiring.LOCAL_PLACE else config.listeners[place]
        desk = self._desk_for(config, settings)
        if settings is not None:
            desk.listener = wiring.listener_name(settings, sock.getsockname()[1])  # port 0 has become a real one
        listening = Listening(desk, None, context)
        sock.setblocking(False)
        listening.server = await self._server.listen(sock, self._plan_of(config, settings, listening))
        self._listening[place] = listening

    def _desk_for(self, config: Config, settings: ListenerSettings | None) -> Desk | CollectorDesk:
        if settings is not None and settings.role is ListenerRole.COLLECTOR:
            return self._collecting.desk(config, wiring.listener_name(settings))
        rules = self._rules_for(settings)
        desk = wiring.desk_of(config, settings, rules, self._intake, self._clock, self._accounts.verify)
        if settings is not None:
            desk.witness = partial(self._witness.hear, listener_key(settings))
        return desk

    def _rules_for(self, settings: ListenerSettings | None) -> Rules:
        """The rules in force at a listener: with its networks suspended, if an echo has shown that its clients are masked."""
        return self._rules if settings is None else self._witness.rules_for(listener_key(settings), self._rules)

    def _renew_rules(self) -> None:
        config = self._told.config if self._told is not None else None
        for place, listening in self._listening.items():
            if isinstance(listening.desk, Desk) and config is not None:
                settings = None if place == wiring.LOCAL_PLACE else config.listeners[place]
                listening.desk.rules = self._rules_for(settings)

    def _renew_desk(self, desk: Desk | CollectorDesk, config: Config, settings: ListenerSettings | None) -> None:
        if isinstance(desk, CollectorDesk):
            self._collecting.renew(desk, config)
        else:
            wiring.renew_desk(desk, config, settings, self._rules_for(settings))

    def _plan_of(self, config: Config, settings: ListenerSettings | None, listening: Listening) -> ListenerPlan:
        return wiring.plan_of(config, settings, listening.desk, lambda: listening.context)

    def _may_leave(self, destination: str) -> bool:
        """With the relay option off only what is for local domains leaves."""
        if self._rules.relay_enabled:
            return True
        return wiring.is_local_destination(self._rules, destination)

    def _broken(self, error: SpoolError) -> None:
        """A sync failed: nothing more may be acknowledged, and nothing is tried again. The supervisor stops the whole server."""
        if isinstance(error, SpoolDamaged):
            log.error("queue-damaged", words=str(error))
            log.flush()
            os._exit(EXIT_BROKEN)  # the supervisor starts another worker, and that salvages
        log.error("sync-failed", words=str(error))
        log.flush()
        os._exit(EXIT_SYNC_FAILED)

    # Reload, in two steps, so that a failure in one worker leaves the old rules in all.

    async def _prepare(self, arguments: dict[str, Any]) -> dict[str, Any]:
        told = prepare_from(arguments)
        config = told.config
        try:
            rules = wiring.rules_of(config, relay_enabled=self._rules.relay_enabled)
            routes = wiring.routes_of(config)
            contexts = wiring.tls_contexts_of(config)
        except ConfigError as error:
            raise ChannelRefusal(str(error)) from error
        sockets = tuple(await self.channel.take_sockets(len(told.opened))) if self.channel and told.opened else ()
        pathfinder = Pathfinder(routes, self._resolver, wiring.ourselves_of(config))
        self._prepared = Prepared(told, rules, pathfinder, contexts, sockets)
        return {}

    async def _commit(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        prepared, self._prepared = self._prepared, None
        if prepared is None or self._told is None:
            raise ChannelRefusal("nothing was prepared")
        told, config = prepared.told, prepared.told.config
        self._rules = prepared.rules
        self._told = msgspec.structs.replace(self._told, config=config)
        log.configure(config.log.format, config.log.level)
        self._bouncer.hostname = config.hostname
        retry = wiring.retry_plan_of(config)
        self._delivery.retry = self._scheduler.retry = retry
        self._scheduler.pathfinder = prepared.pathfinder
        self._scheduler.make_transport = wiring.transports_of(config)
        old = self._listening
        self._listening = {wiring.LOCAL_PLACE: old.pop(wiring.LOCAL_PLACE)}
        for new_place, old_place in told.kept:
            self._listening[new_place] = old.pop(old_place)
        for listening in old.values():
            if listening.server is not None:
                listening.server.close()
        for place, listening in self._listening.items():
            settings = None if place == wiring.LOCAL_PLACE else config.listeners[place]
            self._renew_desk(listening.desk, config, settings)
            listening.context = prepared.contexts.get(place)
            if listening.server is not None:
                listening.server.plan = self._plan_of(config, settings, listening)
        self._server.limit(config.limits.connections, config.limits.connections_per_client)
        for place, sock in zip(told.opened, prepared.sockets, strict=True):
            await self._listen(place, config, sock, prepared.contexts.get(place))
        self._scheduler.rescan()
        return {}

    async def _abandon(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        prepared, self._prepared = self._prepared, None
        for sock in prepared.sockets if prepared else ():
            sock.close()
        return {}

    async def _relay(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._rules = with_relay(self._rules, bool(arguments["enabled"]))
        self._renew_rules()
        self._scheduler.rescan()
        return {}

    async def _suspend(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._witness.suspend(tuple(arguments["listeners"]))
        return {}

    async def _tell_echo(self, what: dict[str, Any]) -> dict[str, Any]:
        if self.channel is None:
            raise ChannelClosed("this worker has no supervisor")
        return await self.channel.request("echo", timeout=10.0, **what)

    # The queue.

    def _act_on_queue(self, act: str, arguments: dict[str, Any]) -> dict[str, Any]:
        ids = [parse_queue_id(text) for text in arguments["ids"]]
        destination = arguments.get("destination")
        next_hop = arguments.get("next_hop", "")
        if act == "reroute":
            try:
                parse_hop(next_hop)
            except RouteError as error:
                raise ChannelRefusal(str(error)) from error
        try:
            verb = Verb(act)
        except ValueError as error:
            raise ChannelRefusal(f"a worker can't {act} messages") from error
        self._scheduler.withdraw(ids)
        try:
            changed = self._change(verb, ids, destination, next_hop)
        finally:  # on a full disk nothing has changed, but memory has let go of them
            self._scheduler.reopen(self._destinations_of(ids))
        return {"ids": [queue_id_text(queue_id) for queue_id in changed]}

    def _change(self, verb: Verb, ids: list[int], destination: str | None, next_hop: str) -> list[int]:
        changed: list[int] = []
        for shard, spool in self._spools.items():
            mine = [queue_id for queue_id in ids if shard_of(queue_id) == shard]
            if mine:
                changed += spool.act(verb, mine, destination, next_hop)
        told = {"next_hop": next_hop} if next_hop else {}
        for queue_id in changed:
            log.info(f"operator-{verb}", queue_id=queue_id_text(queue_id), **told)
        return changed

    def _destinations_of(self, ids: list[int]) -> set[str]:
        return {
            row.destination
            for queue_id in ids
            if shard_of(queue_id) in self._spools
            for row in self._spools[shard_of(queue_id)].pending(queue_id)
        }

    async def _metrics(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        states = [spool.state for spool in self._spools.values()]
        metrics.queue_recipients.set(sum(state.queued for state in states))
        metrics.spool_free_bytes.set(min(state.free_bytes for state in states))
        metrics.queue_messages.set(sum(state.messages for state in states))
        metrics.queue_held.set(sum(state.held for state in states))
        oldest = min((state.oldest_at for state in states if state.oldest_at), default=0)
        metrics.queue_oldest_seconds.set((self._clock() - oldest) / 1000 if oldest else 0)
        metrics.deliveries_open.set(self._scheduler.depth[1])
        return {"metrics": metrics.snapshot()}

    # The end.

    async def _stop(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._is_running:
            self._is_running = False
            seconds = float(arguments.get("seconds", STOP_SECONDS))
            await asyncio.gather(self._server.stop(seconds), self._scheduler.stop(seconds))
            self._bouncer.stop()
            for spool in self._spools.values():
                spool.flush()
            for journal in self._journals:
                journal.close()
            for spool in self._spools.values():
                spool.close()
            self._resolver.close()
            self._collecting.close()
        asyncio.get_running_loop().call_soon(self.stopped.set)
        return {}

    async def run(self, channel_fd: int, sockets_fd: int) -> int:
        """Until told to stop, or until the supervisor is gone."""
        self.channel = await channel_of_worker(channel_fd, sockets_fd, self.handle)
        gone = asyncio.ensure_future(self.channel.closed.wait())
        stopped = asyncio.ensure_future(self.stopped.wait())
        await asyncio.wait((gone, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not self.stopped.is_set():
            log.error("supervisor-gone", words="this worker ends, since nobody watches it any more")
            await self._stop({"seconds": 5.0})
        await asyncio.sleep(0.01)  # the answer to stop is on its way
        return 0


def main(channel_fd: int, sockets_fd: int) -> int:
    """The worker process, from its fork (serve.fork_server) to its end."""
    sys.setswitchinterval(0.0005)  # or a busy loop starves the commit thread: 202 ms a commit against 15 (measured)
    with contextlib.suppress(KeyboardInterrupt):
        return uvloop.run(Worker().run(channel_fd, sockets_fd))
    return 0
