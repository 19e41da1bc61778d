"""Faults at exactly the n-th system call of a kind, by strace: the kernel kills the process there, or answers with an error."""

import contextlib
import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from peer_programs import PEERS_DIRECTORY, environment, require_kernel, wait_until

_INJECTED = re.compile(r"\(INJECTED|killed by SIGKILL|--- SIGKILL")


@functools.cache
def _strace() -> str:
    """strace, the machine's or the one unpacked for the tests; "" when there is none."""
    unpacked = PEERS_DIRECTORY / "strace" / "usr" / "bin" / "strace"
    return shutil.which("strace") or (str(unpacked) if unpacked.is_file() else "")


@functools.cache
def _can_trace() -> bool:
    if not _strace():
        return False
    probe = [_strace(), "-f", "-e", "trace=getpid", "-e", "inject=getpid:retval=1", "true"]
    return subprocess.run(probe, capture_output=True, check=False, env=_environment()).returncode == 0


def _environment() -> dict[str, str]:
    return dict(environment("strace")) if not shutil.which("strace") else dict(os.environ)


def require_strace() -> None:
    """Skips, in words, where strace is missing or may not trace."""
    require_kernel("tracing by strace with injected faults", _can_trace())


def strace_command() -> list[str]:
    """How strace is called here; see `require_strace`."""
    return [_strace()]


class Injection:
    """Faults under way."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    @property
    def lines(self) -> list[str]:
        """What strace has written, the faults among it."""
        return self._trace.read_text(errors="replace").splitlines() if self._trace.exists() else []

    @property
    def struck(self) -> list[str]:
        """The calls that faults have struck so far, with the paths of their files."""
        return [line for line in self.lines if _INJECTED.search(line)]


@contextlib.contextmanager
def injected(pid: int, call: str, fault: str, trace: Path) -> Iterator[Injection]:
    """Into every thread of a running process, those to come too: `fault` as strace writes it ("signal=KILL:when=3")."""
    trace.unlink(missing_ok=True)
    command = [
        _strace(),
        "-f",
        "-qq",
        "-y",
        "-o",
        str(trace),
        "-p",
        str(pid),
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:{fault}",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment())
    try:
        wait_until(lambda: process.poll() is not None or is_traced(pid), "strace to attach", 20)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield Injection(trace)
    finally:
        _detach(process, is_alive(pid))


def _detach(process: "subprocess.Popen[bytes]", is_needed: bool) -> None:
    """Strace now and then waits for ever for a thread that died with its process; by then it has nothing more to say."""
    if is_needed:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
    process.kill()
    process.communicate()


def is_traced(pid: int) -> bool:
    """Every thread of a process is under strace."""
    try:
        statuses = [task / "status" for task in Path(f"/proc/{pid}/task").iterdir()]
        return all("TracerPid:\t0\n" not in status.read_text() for status in statuses)
    except OSError:
        return True  # it is dead already


def is_alive(pid: int) -> bool:
    """It runs, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_or_dead(pid: int, seconds: float) -> bool:
    """True when the process has died within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not is_alive(pid):
            return True
        time.sleep(0.005)
    return False
