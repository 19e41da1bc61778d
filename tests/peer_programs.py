"""Real servers and clients for the tests: where they were unpacked, how to run them, and what to say when they are not there.

`tests/peers/install.py` puts them below .cache/peers. Each server runs in a directory of its own on a loopback address of its own
and ends, with all its children, when its block ends.
"""

import contextlib
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

PEERS_DIRECTORY = Path(os.environ.get("POSTHOUSE_PEERS_DIR", Path(__file__).resolve().parents[1] / ".cache" / "peers"))
IN_CI = os.environ.get("CI") == "true"
START_SECONDS = 30.0
STOP_SECONDS = 5.0
_MARK = "POSTHOUSE_TEST_PEER"  # an environment variable by which a server's stray children are found


def require_peer(*peers: str) -> None:
    """Skips the test, in words, when one of the peers cannot be run here; with CI=true that is a failure."""
    missing = [peer for peer in peers if not (PEERS_DIRECTORY / peer / ".unpacked").is_file()]
    if os.geteuid() != 0:
        why = f"needs {' and '.join(peers)}, which only root can start"
    elif missing:
        why = f"needs {' and '.join(missing)}: run tests/peers/install.py"
    else:
        return
    if IN_CI:
        pytest.fail(f"a missing peer is a failure in CI: {why}", pytrace=False)
    pytest.skip(why)


def require_kernel(fault: str, works: bool) -> None:
    """Skips, in words and in CI too, a test of a fault that the kernel here refuses to make."""
    if not works:
        pytest.skip(f"not run: the kernel refuses {fault} here")


@functools.cache
def environment(*peers: str) -> Mapping[str, str]:
    """Environment variables by which the peers' programs, libraries and Perl modules are found."""
    roots = [PEERS_DIRECTORY / peer for peer in peers]
    libraries = [
        directory
        for root in roots
        for pattern in (
            "usr/lib/*-linux-*",
            "lib/*-linux-*",
            "usr/lib/postfix",
            "usr/lib/dovecot",
            "usr/lib/dovecot/modules/old-stats",
        )
        for directory in sorted(root.glob(pattern))
    ]
    perl = [
        directory
        for root in roots
        for pattern in ("usr/share/perl5", "usr/lib/*/perl5/*", "usr/share/perl/*", "usr/lib/*/perl/*")
        for directory in sorted(root.glob(pattern))
    ]
    programs = [root / part for root in roots for part in ("usr/sbin", "usr/bin")]
    return {
        "PATH": os.pathsep.join(map(str, [*programs, os.environ["PATH"]])),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PERL5LIB": os.pathsep.join(map(str, perl)),
        "LANG": "C",
        "LC_ALL": "C",
        "HOME": os.environ.get("HOME", "/root"),
    }


def program(peer: str, path: str) -> str:
    """The full path of a peer's program, "usr/sbin/knotd" say."""
    return str(PEERS_DIRECTORY / peer / path)


def run_client(
    peer: str, path: str, *arguments: str, stdin: bytes = b"", check: bool = True, timeout: float = 60.0, **extra: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs a client program of a peer to its end; `extra` are environment variables."""
    require_peer(peer)
    done = subprocess.run(
        [program(peer, path), *arguments],
        input=stdin,
        capture_output=True,
        env={**environment(peer), **extra},
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"{path} ended with {done.returncode}:\n{done.stdout.decode()}\n{done.stderr.decode()}")
    return done


def swaks(*arguments: str, check: bool = True, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs swaks, which must come to a good end unless `check` is false."""
    return run_client("swaks", "usr/bin/swaks", *arguments, stdin=stdin, check=check)


def loopback_address() -> str:
    """An address of 127.0.0.0/8 that no other test uses, so that a fixed port is free on it."""
    numbers = random.SystemRandom()
    return f"127.{numbers.randint(16, 254)}.{numbers.randint(1, 254)}.{numbers.randint(1, 254)}"


def free_port(address: str = "127.0.0.1") -> int:
    """A port that is free now, below those that the kernel hands to clients."""
    numbers = random.SystemRandom()
    for _ in range(100):
        port = numbers.randint(10_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind((address, port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free port on {address}")


def wait_until(condition: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    """Waits for a condition; AssertionError, saying what was waited for, when time is over."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)


def greets(address: str, port: int) -> bool:
    """Whether an SMTP or LMTP server there says 220."""
    try:
        with socket.create_connection((address, port), timeout=2) as client:
            client.settimeout(10)
            greeting = client.recv(512)
            client.sendall(b"QUIT\r\n")
            client.recv(512)
    except OSError:
        return False
    return greeting.startswith(b"220")


@contextlib.contextmanager
def server_directory(name: str) -> Iterator[Path]:
    """A directory that the servers' own users may pass through, gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix=f"posthouse-{name}-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    ready: Callable[[], object],
    directory: Path,
    variables: Mapping[str, str],
    logs: Sequence[Path] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A server for as long as the block. When the block fails, what the server wrote is printed (pytest shows it)."""
    mark = uuid.uuid4().hex
    output = directory / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=directory,
            env={**variables, _MARK: mark},
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or ready(), f"{command[0]} to be ready")
        assert process.poll() is None, f"{command[0]} ended with {process.returncode} at start"
        yield process
    except BaseException:
        for log in (output, *logs):
            if log.is_file():
                print(f"--- {log}\n{log.read_text(errors='replace')[-20_000:]}")
        raise
    finally:
        _end(process, mark)


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Ends the server's process group, and then whatever child has left it."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wanted = f"{_MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
