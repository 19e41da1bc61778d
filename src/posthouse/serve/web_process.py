"""The web's own process: whatever visitors do, it takes no time from the workers, and when it dies only pages are missing.

Told down its channel, as a worker is:

    start      config, sockets     {"ready": true} when it accepts
    configure  config              {}: a reloaded configuration is in force from the next test on
    metrics                        {"metrics": a snapshot}
    stop       seconds             {}; tests under way have that long, then it ends
"""

import asyncio
import os
import socket
from typing import Any

import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

import posthouse
from posthouse.config import Config
from posthouse.observe import log, metrics
from posthouse.serve.channel import ChannelRefusal
from posthouse.serve.collecting import contact_of
from posthouse.serve.start import WebConfigure, WebStart, channel_of_worker, told_from
from posthouse.serve.testing import identity_of
from posthouse.serve.web_control import HostControl
from posthouse.serve.web_tests import Carrier
from posthouse.serve.wiring import resolver_of
from posthouse.web.app import make_app
from posthouse.web.calling import CallServer
from posthouse.web.desk import Desk
from posthouse.web.http import HttpServer
from posthouse.web.service import Service
from posthouse.web.settings import WebSettings
from posthouse.web.store import RESULTS_FILE, ResultStore, StoreFault

NICENESS = 10
"""Mail goes first where a core is scarce."""


def web_settings_of(config: Config, call_port: int) -> WebSettings:
    """[web] and what it needs of the rest. `call_port` is the bound one."""
    web = config.web
    return WebSettings(
        name=config.hostname,
        hello_name=identity_of(config).hello_name,
        contact=contact_of(config),
        url=web.url,
        version=posthouse.__version__,
        ports=web.ports,
        proxies=web.proxies,
        at_once=web.at_once,
        queue=web.queue,
        per_address=web.tests_per_address,
        in_all=web.tests_in_all,
        keep=web.keep,
        call_port=call_port,
        has_collector=bool(config.tester.collector_url or config.collector.domains),
    )


class _Current:
    """The application in force."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class WebProcess:
    """Everything of one process. `ended` is set when it shall end."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._call_port = 0
        self._service: Service | None = None
        self._current: _Current | None = None
        self._http: HttpServer | None = None
        self._calls: CallServer | None = None
        self._store: ResultStore | None = None

    async def handle(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What the supervisor asks. ChannelRefusal."""
        match verb:
            case "start":
                await self._start(told_from(arguments, WebStart))
                return {"ready": True}
            case "configure":
                self._configure(told_from(arguments, WebConfigure).config)
                return {}
            case "metrics":
                return {"metrics": metrics.snapshot()}
            case "stop":
                await self._stop(float(arguments.get("seconds", 2.0)))
                return {}
        raise ChannelRefusal(f"the web process knows no {verb}")

    async def _start(self, told: WebStart) -> None:
        config = told.config
        log.configure(config.log.format, config.log.level)
        listening = socket.socket(fileno=told.listen_fd)
        calling = socket.socket(fileno=told.call_fd) if told.call_fd >= 0 else None
        self._call_port = int(calling.getsockname()[1]) if calling is not None else 0
        try:
            self._store = ResultStore(config.data_dir / RESULTS_FILE)
        except StoreFault as fault:
            raise ChannelRefusal(f"[web]: {fault}") from fault
        settings, resolver = web_settings_of(config, self._call_port), resolver_of(config)
        desk = Desk(settings, Carrier(config, resolver).carry, self._store)
        self._service = Service(settings, desk, HostControl(config, resolver))
        self._current = _Current(make_app(self._service))
        self._http = HttpServer(self._current)
        await self._http.start([listening])
        if calling is not None:
            self._calls = CallServer(self._service)
            await self._calls.start(calling)

    def _configure(self, config: Config) -> None:
        if self._service is None or self._current is None:
            raise ChannelRefusal("the web process has not been started")
        log.configure(config.log.format, config.log.level)
        settings, resolver = web_settings_of(config, self._call_port), resolver_of(config)
        self._service.desk.renew(settings, Carrier(config, resolver).carry)
        self._service = self._service.renewed(settings, HostControl(config, resolver))
        self._current.app = make_app(self._service)
        if self._calls is not None:
            self._calls.service = self._service

    async def _stop(self, seconds: float) -> None:
        if self._service is not None:
            await self._service.desk.stop(seconds)
        if self._calls is not None:
            await self._calls.stop()
        if self._http is not None:
            await self._http.stop()
        if self._store is not None:
            self._store.close()
        self.ended.set()


async def serve(channel_fd: int, sockets_fd: int) -> int:
    """Until told to stop, or until the supervisor is gone; the exit status."""
    process = WebProcess()
    channel = await channel_of_worker(channel_fd, sockets_fd, process.handle)
    gone = asyncio.ensure_future(channel.closed.wait())
    ended = asyncio.ensure_future(process.ended.wait())
    await asyncio.wait((gone, ended), return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.01)  # the answer to stop is on its way
    return 0


def main(channel_fd: int, sockets_fd: int) -> int:
    """The web process, from its fork (serve.fork_server) to its end."""
    os.nice(NICENESS)
    return uvloop.run(serve(channel_fd, sockets_fd))
