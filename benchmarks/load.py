"""The two ends of a benchmark, and what the server between them costs. The ends are Postfix's own smtp-source and smtp-sink."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from peer_programs import environment, program, wait_until

SAMPLE_SECONDS = 0.5
QUIET_SECONDS = 30.0
_COUNTED = re.compile(rb"mesg=(\d+)")
_PSS = re.compile(r"^Pss:\s+(\d+)", re.MULTILINE)
_TICK = os.sysconf("SC_CLK_TCK")


def answers(port: int, address: str = "127.0.0.1") -> bool:
    """Whether an SMTP server greets on that port of loopback."""
    try:
        with socket.create_connection((address, port), timeout=2) as client:
            if not client.recv(512).startswith(b"220"):
                return False
            client.sendall(b"QUIT\r\n")
            client.recv(512)
    except OSError:
        return False
    return True


class Counting(Protocol):
    """A sink, ours or Postfix's."""

    def count(self) -> int:
        """Messages taken so far."""


def wait_for(sink: Counting, count: int, quiet_seconds: float) -> float:
    """The moment when so many have arrived. TimeoutError when nothing has come for a while."""
    last, since = -1, time.perf_counter()
    while (now := sink.count()) < count:
        if now != last:
            last, since = now, time.perf_counter()
        if time.perf_counter() - since > quiet_seconds:
            raise TimeoutError(f"{now} of {count} messages had arrived when they stopped coming")
        time.sleep(0.002)
    return time.perf_counter()


class Sink:
    """smtp-sink: takes everything, keeps nothing, counts."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._counter = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"posthouse-sink.{os.getpid()}"
        command = [
            program("postfix", "usr/sbin/smtp-sink"),
            "-c",
            "-m",
            "1000",
            "-u",
            "nobody",
            f"127.0.0.1:{port}",
            "1024",
        ]
        with self._counter.open("wb") as stream:
            self._process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.DEVNULL, env=environment("postfix")
            )
        wait_until(lambda: answers(port), "smtp-sink to be ready")

    def count(self) -> int:
        """Messages taken so far."""
        with self._counter.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 400))
            found = _COUNTED.findall(stream.read())
        return int(found[-1]) if found else 0

    def wait_for(self, count: int) -> float:
        """The moment when so many have arrived. TimeoutError when nothing comes any more."""
        return wait_for(self, count, QUIET_SECONDS)

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait()
        self._counter.unlink()


def push(port: int, count: int, sessions: int, size: int, keep: bool) -> None:
    """Sends `count` messages of `size` octets by so many sessions at once; returns when every one was acknowledged."""
    options = ["-s", str(sessions), "-m", str(count), "-l", str(size), "-C", "20", "-M", "client.bench.test"]
    addresses = ["-f", "a@src.test", "-t", "b@dst.test"]
    command = [
        program("postfix", "usr/sbin/smtp-source"),
        *options,
        *addresses,
        *(["-d"] if keep else []),
        f"127.0.0.1:{port}",
    ]
    subprocess.run(command, env=environment("postfix"), check=True, timeout=600)


class Cost(threading.Thread):
    """What a server and all its children use: CPU seconds by control group (exact) or from /proc, memory by sampling."""

    def __init__(self, name: str) -> None:
        super().__init__(daemon=True)
        self._groups = [
            path / f"posthouse-{name}-{os.getpid()}"
            for path in (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup"))
            if (path / "cgroup.procs").exists()
        ][:1]
        for group in list(self._groups):
            try:
                group.mkdir()
            except OSError as error:
                print(f"no control group, CPU comes from /proc: {error}", file=sys.stderr)
                self._groups.remove(group)
        self._root = 0
        self._ended = threading.Event()
        self.peak_pss_mb = 0.0
        self.peak_processes = 0

    def enter(self) -> None:
        """Called in the child, before it becomes the server."""
        for group in self._groups:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def watch(self, pid: int) -> None:
        """Begins to sample the memory of the server with that process id."""
        self._root = pid
        self.start()

    def pids(self) -> list[int]:
        """The server's processes now."""
        if self._groups:
            return [int(pid) for pid in (self._groups[0] / "cgroup.procs").read_text().split()]
        found = [self._root]
        for pid in found:
            with contextlib.suppress(OSError):
                found += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found

    def cpu_seconds(self) -> float:
        """User and system time so far; without a control group that of children which have ended may be missing."""
        if self._groups:
            group = self._groups[0]
            if (group / "cpuacct.usage").exists():
                return int((group / "cpuacct.usage").read_text()) / 1e9
            return int((group / "cpu.stat").read_text().split()[1]) / 1e6
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]))
        return total / _TICK

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            pss, processes = 0, 0
            for pid in self.pids():
                with contextlib.suppress(OSError, AttributeError):
                    found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
                    pss += int(found[1]) if found else 0
                    processes += 1
            self.peak_pss_mb = max(self.peak_pss_mb, pss / 1024)
            self.peak_processes = max(self.peak_processes, processes)

    def close(self) -> None:
        """Ends the sampling and, by their ids, what processes are left; gives the control group back."""
        self._ended.set()
        if self.is_alive():
            self.join()
        end = time.monotonic() + 5
        while self._groups and self.pids() and time.monotonic() < end:
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for group in self._groups:
            with contextlib.suppress(OSError):
                group.rmdir()


@contextlib.contextmanager
def server(
    name: str, command: Sequence[str], variables: Mapping[str, str], directory: Path, port: int
) -> Iterator[Cost]:
    """A server that runs for as long as the block, and what it costs."""
    cost = Cost(name)
    with (directory / "output").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(variables),
            cwd=directory,
            start_new_session=True,
            preexec_fn=cost.enter,  # noqa: PLW1509 - no thread runs yet when a server starts
        )
    try:
        try:
            wait_until(lambda: process.poll() is not None or answers(port), f"{name} to be ready")
        except AssertionError as error:
            raise RuntimeError(f"{error}:\n{(directory / 'output').read_text()}") from error
        if process.poll() is not None:
            raise RuntimeError(f"{name} did not start:\n{(directory / 'output').read_text()}")
        cost.watch(process.pid)
        yield cost
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(35)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        cost.close()
