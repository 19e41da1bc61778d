"""The victim: a worker of the relay as `posthouse serve` runs it, forked ready-made, so that it can die thousands of times.

    python fault_victim.py CONFIGURATION [SABOTAGE]

A start of `posthouse serve` costs half a second, most of it imports. Here one process imports everything, then forks a
worker at each line on its standard input and says "ready PID" when that accepts mail, or "ended STATUS". The worker is
`serve.worker.Worker` itself, told what the supervisor would tell it, on the first listener's address.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import uvloop

from fault_sabotage import SABOTAGE, python_path
from posthouse.config import Config, load_config
from posthouse.serve.start import ListenerSocket, WorkerStart, to_arguments
from posthouse.serve.worker import Worker

START_SECONDS = 20.0


def _bind(config: Config) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((config.listeners[0].host, config.listeners[0].port))
    return one


async def _work(config: Config, say: int) -> None:
    loop = asyncio.get_running_loop()
    worker = Worker()
    local = socket.socket(socket.AF_UNIX)
    local.bind(f"\0posthouse-victim-{os.getpid()}")
    local.listen(8)
    listening = _bind(config)
    listening.listen(1024)
    listeners = (ListenerSocket(0, listening.detach()),)
    told = WorkerStart(config, 0, 1, (0,), listeners, local.detach())
    loop.add_signal_handler(signal.SIGTERM, lambda: tasks.append(loop.create_task(worker.handle("stop", {}))))
    tasks: list[asyncio.Task[object]] = []
    await worker.handle("start", to_arguments(told))
    os.write(say, b"ready\n")
    await worker.stopped.wait()


def _become_worker(config: Config, say: int) -> None:
    sys.setswitchinterval(0.0005)
    status = 1
    try:
        uvloop.run(_work(config, say))
        status = 0
    except BaseException as error:
        print(f"victim: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _fork(config: Config) -> str:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _become_worker(config, theirs)
    os.close(theirs)
    with open(ours, "rb", buffering=0) as said:
        if said.readline():
            return f"ready {pid}"
    return f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"


def main(configuration: str, sabotage: str = "") -> None:
    """Forks at "start", waits for a worker's end at "wait PID"."""
    for name in sabotage.split("+"):
        SABOTAGE[name]()
    config = load_config(Path(configuration))
    _port = _bind(config)  # kept while no worker lives: nobody else on this machine may find it free
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        verb, _, pid = line.strip().partition(" ")
        if verb == "start":
            print(_fork(config), flush=True)
        else:
            print(os.waitstatus_to_exitcode(os.waitpid(int(pid), 0)[1]), flush=True)


class Ended(Exception):
    """A worker could not start; the exit status."""


class Victims:
    """Forks workers one after the other; see `victims`."""

    def __init__(self, process: "subprocess.Popen[str]", output: Path) -> None:
        self._process = process
        self.output = output
        self.starts: list[float] = []
        """Seconds until each accepted mail."""

    def start(self) -> int:
        """A new worker that accepts mail: its pid. Ended."""
        began = time.monotonic()
        answer = self._ask("start").split()
        if answer[0] != "ready":
            ended = Ended(answer[1])
            ended.add_note(self.output.read_text(errors="replace")[-2000:])
            raise ended
        self.starts.append(time.monotonic() - began)
        return int(answer[1])

    def kill(self, pid: int) -> None:
        """SIGKILL, and waits."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def stop(self, pid: int) -> int:
        """SIGTERM; the exit status."""
        os.kill(pid, signal.SIGTERM)
        return self.wait(pid)

    def wait(self, pid: int) -> int:
        """Waits for its end; the exit status."""
        return int(self._ask(f"wait {pid}"))

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the victim's parent is gone: {self.output.read_text(errors='replace')[-3000:]}"
        return answer


@contextlib.contextmanager
def victims(
    configuration: Path, sabotage: str = "", prefix: tuple[str, ...] = (), variables: Mapping[str, str] | None = None
) -> Iterator[Victims]:
    """Workers for a configuration, made one after the other; none is left at the end."""
    output = configuration.parent / "victims.log"
    with output.open("ab") as errors:
        process = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__)), str(configuration), sabotage],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path(), **(variables or {})},
            start_new_session=True,
        )
    try:
        yield Victims(process, output)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # and the workers that nobody had asked for yet, or has stopped
        process.communicate()


if __name__ == "__main__":
    main(*sys.argv[1:])
