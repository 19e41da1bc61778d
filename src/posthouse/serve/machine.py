"""What this machine's network looks like, read from /proc and /sys: gateways and bridges that may hide strangers.

No netlink socket: a hardened unit has none. What can't be read is said, not taken for "there is none".
"""

import contextlib
from ipaddress import IPv6Address
from pathlib import Path

import msgspec

from posthouse.policy.gateways import Gateway, bridge_addresses, default_gateways, local_addresses4
from posthouse.policy.networks import Address

_IPV6_ONLY = ("ipv6_route", "if_inet6")


class Surroundings(msgspec.Struct, frozen=True):
    """The gateways found, and one sentence for each source that could not be read."""

    gateways: tuple[Gateway, ...]
    unread: tuple[str, ...] = ()


def look_around(proc: Path = Path("/proc/self/net"), interfaces: Path = Path("/sys/class/net")) -> Surroundings:
    """The default gateways and our own addresses on bridges, in the network namespace of this process.

    /proc/self/net rather than /proc/net: a unit with ProcSubset=pid sees only the former.
    """
    texts: dict[str, str] = {}
    unread = []
    for name in ("route", "ipv6_route", "fib_trie", "if_inet6"):
        try:
            texts[name] = (proc / name).read_text("ascii", "replace")
        except OSError as error:
            texts[name] = ""
            if name in _IPV6_ONLY and isinstance(error, FileNotFoundError):
                continue  # this kernel has no IPv6
            unread.append(f"{proc / name} cannot be read ({error.strerror}), so gateways may have been overlooked")
    bridges = find_bridges(interfaces)
    if bridges is None:
        bridges = frozenset()
        unread.append(f"{interfaces} cannot be read, so addresses of bridges may have been overlooked")
    gateways = default_gateways(texts["route"], texts["ipv6_route"])
    gateways += bridge_addresses(bridges, texts["route"], texts["fib_trie"], texts["if_inet6"])
    return Surroundings(tuple(gateways), tuple(unread))


def own_addresses(proc: Path = Path("/proc/self/net")) -> tuple[Address, ...]:
    """This machine's addresses beside loopback and link-local, as far as they can be read."""
    found: list[Address] = []
    with contextlib.suppress(OSError):
        found += local_addresses4((proc / "fib_trie").read_text("ascii", "replace"))
    with contextlib.suppress(OSError):
        lines = (proc / "if_inet6").read_text("ascii", "replace").splitlines()
        found += (IPv6Address(int(line.split()[0], 16)) for line in lines if line.split())
    return tuple(one for one in found if not one.is_loopback and not one.is_link_local)


def find_bridges(interfaces: Path = Path("/sys/class/net")) -> frozenset[str] | None:
    """The names of the bridge interfaces; None when /sys can't be read."""
    try:
        return frozenset(entry.name for entry in interfaces.iterdir() if (entry / "bridge").is_dir())
    except OSError:
        return None
