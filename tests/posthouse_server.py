"""Posthouse itself as its users run it: `posthouse serve` with a configuration file, and the other commands beside it."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peer_programs import free_port, loopback_address, running, server_directory

ADDRESS = "127.0.0.1"
STRANGER = "127.0.0.2"
"""An address that is in no trusted network of the tests' configurations."""


class Posthouse:
    """A configuration, and the commands that use it. `port` is that of the first listener."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.configuration = directory / "posthouse.toml"
        self.data_dir = directory / "data"

    @property
    def address(self) -> str:
        """Where it listens, as swaks and others take it."""
        return f"{ADDRESS}:{self.port}"

    def command(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command with this configuration."""
        done = subprocess.run(
            [sys.executable, "-m", "posthouse", "--config", str(self.configuration), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"posthouse {arguments[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done

    def json(self, *arguments: str) -> Any:
        """What a command reports with --json."""
        return json.loads(self.command(*arguments, "--json").stdout)

    def append(self, text: str) -> None:
        """Adds lines to the configuration file."""
        with self.configuration.open("a") as stream:
            stream.write(textwrap.dedent(text))

    @contextlib.contextmanager
    def serving(self) -> Iterator[subprocess.Popen[bytes]]:
        """The server, running for as long as the block; what it wrote is printed when the block fails."""
        command = [sys.executable, "-m", "posthouse", "serve", "--config", str(self.configuration)]
        output = self.directory / "output"

        def is_ready() -> bool:
            return any(line.startswith(b"ready") for line in output.read_bytes().splitlines())

        with running(command, is_ready, self.directory, dict(os.environ)) as process:
            yield process

    def output(self) -> str:
        """What the server has written to standard error so far."""
        return (self.directory / "output").read_text(errors="replace")


@contextlib.contextmanager
def configured(settings: str = "", head: str = "", listener: str = "", workers: int = 1) -> Iterator[Posthouse]:
    """A Posthouse that is not started yet.

    `head` goes in front of the first section, `listener` into the [[listener]] on loopback, `settings` behind it. Without
    a [resolver] in `settings` no name server is asked that is not this test's own.
    """
    with server_directory("serve") as directory:
        port = free_port(ADDRESS)
        posthouse = Posthouse(directory, port)
        text = f"""\
hostname = "relay.test"
data_dir = "{posthouse.data_dir}"
workers = {workers}
{textwrap.dedent(head)}
[[listener]]
address = "{ADDRESS}:{port}"
{textwrap.dedent(listener)}
{textwrap.dedent(settings)}
"""
        if "[resolver]" not in text:
            text += f'\n[resolver]\nservers = ["{loopback_address()}:53"]\ntimeout = "1s"\n'
        posthouse.configuration.write_text(text)
        yield posthouse


@contextlib.contextmanager
def posthouse(settings: str = "", head: str = "", listener: str = "", workers: int = 1) -> Iterator[Posthouse]:
    """A running Posthouse; see `configured`."""
    with configured(settings, head, listener, workers) as server, server.serving():
        yield server


def route_to(*next_hops: str, domain: str = "*", more: str = "") -> str:
    """A [[route]] of a configuration."""
    return f'[[route]]\ndomain = "{domain}"\nto = {json.dumps(next_hops)}\n{more}\n'


def quick_retries(wait: str = "1s", give_up: str = "1h", delay_notice: str = "30m") -> str:
    """A [retry] for tests that wait for one."""
    return f'[retry]\nfirst = "{wait}"\nlongest = "{wait}"\nfactor = 1.0\ngive_up = "{give_up}"\ndelay_notice = "{delay_notice}"\n'


def write_certificate(directory: Path) -> tuple[Path, Path, Path]:
    """A certificate for localhost, its key, and the authority's certificate, as PEM files."""
    import trustme

    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1", "relay.test")
    certificate, key, root = directory / "cert.pem", directory / "key.pem", directory / "ca.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(root))
    return certificate, key, root


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that still run; none when it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _children_called(supervisor: int, *names: str) -> list[int]:
    found = []
    for pid in children_of(supervisor):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().strip() in names:
                found.append(pid)
    return found


def fork_server_of(supervisor: int) -> int:
    """The process that a supervisor has its workers forked from; 0 while there is none."""
    return next(iter(_children_called(supervisor, "posthouse-fork")), 0)


def workers_of(supervisor: int) -> list[int]:
    """The workers of a supervisor that still run (and its web's process)."""
    return _children_called(supervisor, "posthouse-work", "posthouse-web")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used: on a busy machine a clock on the wall tells of others."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> int:
    """Octets of memory that are a process's: its share of what is shared (page cache of its files is not in it)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")
