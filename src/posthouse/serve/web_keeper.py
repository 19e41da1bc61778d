"""The web's process as the supervisor sees it: started where [web] is, started again when it dies, never the relay's concern.

ABSENT -> READY -> (dies) -> back-off -> READY ...        the relay goes on meanwhile; the address stays bound
"""

import asyncio
import signal
import socket
import time
from typing import Any

import msgspec

from posthouse.config import Config
from posthouse.net.listen import address_text, listen
from posthouse.observe import log, metrics
from posthouse.serve.channel import Channel, ChannelClosed, ChannelRefusal
from posthouse.serve.fleet import FIRST_PAUSE, HANG_SECONDS, LONGEST_PAUSE, PING_SECONDS, STEADY_SECONDS
from posthouse.serve.fork_server import Child, ForkServer, Role
from posthouse.serve.start import READY_SECONDS, WebConfigure, WebStart, to_arguments

STOP_SECONDS = 5.0
"""How long visitors' tests under way may take at the end; then they fail in words, and can be asked for again."""


class WebSockets(msgspec.Struct, frozen=True):
    """What the web listens on; `calls` is None where there is no bare port."""

    pages: socket.socket
    calls: socket.socket | None = None

    def close(self, but: "WebSockets | None" = None) -> None:
        """Our own ends, except those that `but` goes on with."""
        kept = () if but is None else (but.pages, but.calls)
        for one in (self.pages, self.calls):
            if one is not None and not any(one is other for other in kept):
                one.close()

    @property
    def text(self) -> str:
        """Where the pages are, as people write it."""
        host, port = self.pages.getsockname()[:2]
        return f"http://{address_text(host, port)}/"

    @property
    def calls_text(self) -> str:
        """Where bare calls go, "" for nowhere."""
        return "" if self.calls is None else address_text(*self.calls.getsockname()[:2])


def web_sockets(config: Config, old: Config | None = None, open_now: WebSockets | None = None) -> WebSockets | None:
    """The web's sockets, bound; None without [web]. What `old` had at the same address stays open. ListenError."""
    web = config.web
    if not web.is_on:
        return None
    pages = calls = None
    if old is not None and open_now is not None:
        pages = open_now.pages if (old.web.host, old.web.port) == (web.host, web.port) else None
        calls = open_now.calls if (old.web.call_host, old.web.call_port) == (web.call_host, web.call_port) else None
    opened = pages or listen(web.host, web.port)[0]
    if not web.is_call_on:
        return WebSockets(opened)
    try:
        return WebSockets(opened, calls or listen(web.call_host, web.call_port)[0])
    except BaseException:
        if pages is None:
            opened.close()
        raise


def web_moves(old: Config, new: Config) -> bool:
    """Whether a reload changes where the web listens, or whether it does."""

    def place(config: Config) -> tuple[object, ...]:
        web = config.web
        return (web.is_on, web.host, web.port, web.is_call_on, web.call_host, web.call_port)

    return place(old) != place(new)


class WebKeeper:
    """The process through all its lives."""

    def __init__(self, fork_server: ForkServer) -> None:
        self._fork_server = fork_server
        self._config: Config | None = None
        self._sockets: WebSockets | None = None
        self._process: Child | None = None
        self._channel: Channel | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._last_counts: metrics.Snapshot = {}
        self._retired: metrics.Snapshot = {}
        self.restarts = 0

    async def start(self, config: Config, sockets: WebSockets | None) -> str:
        """Starts it, if there are sockets for it; why it could not be started, "" when it runs or need not."""
        self._config, self._sockets = config, sockets
        if sockets is None:
            return ""
        why = await self._launch()
        self._keeping = asyncio.create_task(self._keep())
        return why

    async def configure(self, config: Config) -> None:
        """A reload that leaves its addresses as they are. One that can't follow is started anew."""
        self._config = config
        if self._channel is None:
            return
        try:
            await self._channel.request("configure", timeout=10.0, **to_arguments(WebConfigure(config)))
        except (ChannelRefusal, ChannelClosed, TimeoutError) as error:
            log.error("web-does-not-follow", error=str(error))
            self._signal(signal.SIGKILL)

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ends it."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
        if self._process is None or not self._process.is_running:
            return
        try:
            async with asyncio.timeout(seconds + 3.0):
                if self._channel is not None:
                    await self._channel.request("stop", timeout=seconds + 3.0, seconds=seconds)
                await self._process.wait()
        except (ChannelClosed, ChannelRefusal, TimeoutError):
            self._signal(signal.SIGKILL)
            await self._process.wait()
        finally:
            self._close_channel()

    async def snapshots(self) -> list[metrics.Snapshot]:
        """Its numbers, and those of its former lives."""
        if self._channel is not None:
            try:
                self._last_counts = (await self._channel.request("metrics", timeout=5.0))["metrics"]
            except (ChannelClosed, ChannelRefusal, TimeoutError, KeyError):
                log.debug("web-metrics-missing")
            else:
                return [self._retired, self._last_counts]
        return [self._retired, metrics.counts_only(self._last_counts)]

    @property
    def status(self) -> dict[str, Any]:
        """For the command `status`."""
        if self._sockets is None:
            return {}
        is_running = self._process is not None and self._process.is_running
        return {
            "address": self._sockets.text,
            "calls": self._sockets.calls_text,
            "pid": self._process.pid if self._process is not None and is_running else 0,
            "state": "ready" if is_running and self._channel is not None else "ended",
            "restarts": self.restarts,
        }

    async def _launch(self) -> str:
        """Starts a process and waits until it accepts; why it does not, "" when it does."""
        if self._config is None or self._sockets is None:
            return "there is no [web]"
        pages, calls = self._sockets.pages.fileno(), self._sockets.calls.fileno() if self._sockets.calls else -1
        told = WebStart(self._config, pages, calls)
        try:
            ours, theirs = socket.socketpair()
            our_way, their_way = socket.socketpair()
            descriptors = [theirs.fileno(), their_way.fileno(), pages, *([calls] if calls >= 0 else [])]
            self._process = await self._fork_server.start(Role.WEB, descriptors)
        except OSError as error:
            return f"can't start the web process: {error}"
        theirs.close()
        their_way.close()
        channel = await Channel.over(ours, _nothing_is_asked, our_way)
        try:
            await channel.request("start", timeout=READY_SECONDS, **to_arguments(told))
        except (ChannelRefusal, ChannelClosed, TimeoutError) as error:
            self._signal(signal.SIGKILL)
            await self._process.wait()
            channel.close()
            return str(error) or "the web process was not ready in time"
        self._channel = channel
        log.info("web-ready", pid=self._process.pid, address=self._sockets.text)
        return ""

    async def _keep(self) -> None:
        """Restarts it for ever."""
        pause = FIRST_PAUSE
        while True:
            began_at = time.monotonic()
            status = await self._until_dead()
            self._close_channel()
            self._retired = metrics.merge([self._retired, metrics.counts_only(self._last_counts)])
            self._last_counts = {}
            if time.monotonic() - began_at > STEADY_SECONDS:
                pause = FIRST_PAUSE
            log.error("web-ended", status=status, restart_in_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            self.restarts += 1
            why = await self._launch()
            if why:
                log.error("web-failed", error=why)

    async def _until_dead(self) -> int:
        """Waits for the process's end, and brings it about when it hangs."""
        if self._process is None:
            return 0
        dead = asyncio.ensure_future(self._process.wait())
        try:
            while True:
                done, _ = await asyncio.wait([dead], timeout=PING_SECONDS)
                if done:
                    return dead.result()
                try:
                    if self._channel is not None:
                        await self._channel.request("ping", timeout=HANG_SECONDS)
                except TimeoutError:
                    log.error("web-hangs", pid=self._process.pid, seconds=HANG_SECONDS)
                    self._signal(signal.SIGKILL)
                except (ChannelClosed, ChannelRefusal):
                    continue
        finally:
            dead.cancel()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


async def _nothing_is_asked(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    del arguments
    raise ChannelRefusal(f"the supervisor knows no {verb}")
