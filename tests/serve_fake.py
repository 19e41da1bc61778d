"""A server whose workers are a stand-in, to test the supervisor by itself; and running any server from a test.

`FakeServer` starts `python serve_fake.py CONFIG`, which runs the real supervisor over workers that run `worker()` below:
they accept and say "220 worker N pid P generation G relay R", and do as files in the data directory tell them.
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Waits for something to be true, and gives it; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


class Server:
    """A server process with what it said on standard error so far."""

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None, **options: Any) -> None:
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, **options
        )
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode())

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def ready(self) -> list[int]:
        """Waits for the ready line; the ports in it."""

        def line() -> str:
            found = [one for one in self.lines if one.startswith("ready")]
            assert found or self.process.poll() is None, self.said
            return found[0] if found else ""

        return [int(port) for port in re.findall(r":(\d+)", until(line, 30).partition("(")[0])]

    def wait(self, seconds: float = 20.0) -> int:
        """Waits for its end; the exit status."""
        status = self.process.wait(seconds)
        self._reading.join(5)
        return status

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reading.join(5)
        if self.process.stderr:
            self.process.stderr.close()


@contextlib.contextmanager
def serving(
    config: Path, *, is_fake: bool = True, prefix: Sequence[str] = (), env: dict[str, str] | None = None, **options: Any
) -> Iterator[Server]:
    """A server on a configuration file; killed at the end if it still runs."""
    program = (
        [sys.executable, __file__, str(config)]
        if is_fake
        else [sys.executable, "-m", "posthouse", "serve", "--config", str(config)]
    )
    server = Server([*prefix, *program], env, **options)
    try:
        yield server
    except BaseException:
        print(server.said, file=sys.stderr)
        raise
    finally:
        server.end()


def write_config(directory: Path, text: str = "", *, listeners: int = 1, workers: int = 2) -> Path:
    """A configuration on free ports with its data beside it; `text` is put at the end."""
    parts = [f'hostname = "mx.example.org"\ndata_dir = "{directory / "data"}"\nworkers = {workers}\n']
    parts += ['[[listener]]\naddress = "127.0.0.1:0"\n'] * listeners
    path = directory / "posthouse.toml"
    path.write_text("".join(parts) + text)
    return path


def greeting(port: int, host: str = "127.0.0.1") -> str:
    """The first line a server says."""
    with socket.create_connection((host, port), timeout=10) as one, one.makefile("rb") as lines:
        return lines.readline().decode()


class FakeWorker:
    """Greets on every listener; files in the data directory make it fail on purpose."""

    def __init__(self) -> None:
        self.generation = 0
        self.stopped = asyncio.Event()
        self.servers: dict[int, asyncio.Server] = {}

    async def handle(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: C901 - one branch a verb
        from posthouse.serve.channel import ChannelRefusal
        from posthouse.serve.start import prepare_from, start_from

        if verb == "start":
            self.told = start_from(arguments)
            self.data = self.told.config.data_dir
            self.relay = self.told.relay_enabled
            if (self.data / "refuse-start").exists():
                raise ChannelRefusal("the spool is locked by pid 1: stop that one")
            if (self.data / "die-at-start").exists():
                os._exit(9)
            for one in self.told.listeners:
                await self.listen(one.listener, socket.socket(fileno=one.fd))
            self.watching = asyncio.create_task(self.watch())
            return {"ready": True}
        if verb == "prepare":
            self.prepared = prepare_from(arguments)
            if (self.data / f"refuse-prepare-{self.told.worker}").exists():
                raise ChannelRefusal("a certificate can't be read")
            self.sockets = await self.channel.take_sockets(len(self.prepared.opened))
        elif verb == "commit":
            old, self.servers = self.servers, {}
            for new, before in self.prepared.kept:
                self.servers[new] = old.pop(before)
            for server in old.values():
                server.close()
            for index, one in zip(self.prepared.opened, self.sockets, strict=True):
                await self.listen(index, one)
            self.generation += 1
        elif verb == "relay":
            self.relay = arguments["enabled"]
        elif verb == "metrics":
            from posthouse.observe import metrics

            return {"metrics": metrics.snapshot()}
        elif verb == "queue-hold":
            return {"ids": arguments.get("ids", []), "workers": [self.told.worker]}
        elif verb == "stop" and not (self.data / "stop-slowly").exists():
            self.stopped.set()
        return {}

    async def watch(self) -> None:
        while not (self.data / f"sync-fails-{self.told.worker}").exists():
            await asyncio.sleep(0.05)
        os._exit(74)

    async def listen(self, index: int, one: socket.socket) -> None:
        self.servers[index] = await asyncio.start_server(self.greet, sock=one)

    async def greet(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from posthouse.observe import metrics

        if writer.get_extra_info("peername")[0] != "127.0.0.2":  # whence the supervisor tests its listeners
            metrics.sessions.inc("127.0.0.1:25")
        told = self.told
        environment = sorted(os.environ.keys() & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "HOME"})
        writer.write(
            f"220 worker {told.worker} pid {os.getpid()} generation {self.generation} relay {self.relay} "
            f"environment {environment} shards {told.shards}\r\n".encode()
        )
        await writer.drain()
        writer.close()


async def worker(channel_fd: int, sockets_fd: int) -> int:
    from posthouse.serve.start import channel_of_worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fake = FakeWorker()
    fake.channel = await channel_of_worker(channel_fd, sockets_fd, fake.handle)
    ends = [asyncio.ensure_future(fake.stopped.wait()), asyncio.ensure_future(fake.channel.closed.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.01)
    return 0


def main() -> int:
    import posthouse.serve.worker
    from posthouse.serve.admission import NotAdmitted, admit
    from posthouse.serve.supervisor import CannotStart, run

    posthouse.serve.worker.main = lambda channel_fd, sockets_fd: asyncio.run(worker(channel_fd, sockets_fd))
    try:
        return run(lambda: admit(Path(sys.argv[1])), lambda line: print(line, file=sys.stderr, flush=True))
    except (NotAdmitted, CannotStart) as error:
        print(f"posthouse: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
