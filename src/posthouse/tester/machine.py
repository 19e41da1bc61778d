"""The addresses of this machine, as /proc tells them: no netlink socket, no look-up of its own name."""

from ipaddress import IPv6Address
from pathlib import Path

from posthouse.policy.gateways import local_addresses4
from posthouse.policy.networks import Address


def own_addresses(proc: Path = Path("/proc/self/net")) -> frozenset[Address]:
    """Every address that this machine has in its network namespace; what can't be read is not among them."""
    found: set[Address] = set(local_addresses4(_text(proc / "fib_trie")))
    for line in _text(proc / "if_inet6").splitlines():
        fields = line.split()
        if len(fields) == 6:
            try:
                found.add(IPv6Address(int(fields[0], 16)))
            except ValueError:
                continue
    return frozenset(found)


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""
