"""Hosts of a test's own: network namespaces joined by virtual cables, with the kernel's own NAT between them (nftables)."""

import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence

from peer_programs import environment, program, require_kernel, require_peer


class Host:
    """A network namespace with loopback up."""

    def __init__(self, name: str) -> None:
        self.namespace = name

    def command(self, *command: str) -> list[str]:
        """The command as it runs on this host."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def run(self, *command: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        done = subprocess.run(
            self.command(*command), input=stdin, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}\n{done.stderr}"
        return done

    def nat(self, rules: str) -> None:
        """Loads rules into nftables, and forwards packets."""
        subprocess.run(
            self.command(program("nftables", "usr/sbin/nft"), "-f", "-"),
            input=rules,
            text=True,
            check=True,
            timeout=30,
            env=dict(environment("nftables")),
        )
        self.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts, gone afterwards. Skips the test where there can't be any."""
    require_peer("nftables")
    made: list[Host] = []
    try:
        for _ in range(count):
            name = f"posthouse-{uuid.uuid4().hex[:8]}"
            done = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False) if _has_ip() else None
            require_kernel("network namespaces", done is not None and done.returncode == 0)
            made.append(Host(name))
            made[-1].run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True, check=False)


def cable(one: Host, address: str, other: Host, other_address: str) -> None:
    """Joins two hosts; addresses with their prefix, "10.0.0.1/24"."""
    names = [f"c{uuid.uuid4().hex[:8]}" for _ in range(2)]
    subprocess.run(["ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1]], check=True)
    for name, host, own in zip(names, (one, other), (address, other_address), strict=True):
        subprocess.run(["ip", "link", "set", name, "netns", host.namespace], check=True)
        _all(host, (["ip", "address", "add", own, "dev", name], ["ip", "link", "set", name, "up"]))


def default_route(host: Host, via: str) -> None:
    """Everything else goes there."""
    host.run("ip", "route", "add", "default", "via", via)


def _all(host: Host, commands: Sequence[list[str]]) -> None:
    for command in commands:
        host.run(*command)


def _has_ip() -> bool:
    return shutil.which("ip") is not None
