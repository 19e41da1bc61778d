"""Gateways and bridges of a real machine: network namespaces with routes and bridges of their own."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from posthouse.policy.rules import compile_rules
from posthouse.serve.closure import examine
from posthouse.serve.machine import Surroundings, find_bridges, look_around

LOOK = """
from posthouse.policy.rules import compile_rules
from posthouse.serve.closure import examine
from posthouse.serve.machine import look_around
import sys
for gateway in look_around().gateways:
    print(gateway.address)
closure = examine(compile_rules(trusted_networks=sys.argv[1:]))
print("closed" if closure.is_closed else "open")
for masked in closure.masked:
    print("masked", masked.gateway.address)
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("not run: a network namespace takes root and the program ip")
    name = f"posthouse-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"not run: this kernel makes no network namespace ({made.stderr.strip()})")
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def inside(namespace: str, *command: str) -> str:
    done = subprocess.run(["ip", "netns", "exec", namespace, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen(namespace: str, *trusted: str) -> list[str]:
    return inside(namespace, sys.executable, "-c", LOOK, *trusted).split("\n")[:-1]


@pytest.mark.peer
def test_a_bridge_and_a_default_gateway_are_found_in_the_kernels_tables(namespace: str) -> None:
    for line in (
        "link set lo up",
        "link add br0 type bridge",
        "addr add 172.17.0.1/16 dev br0",
        "addr add fd17::1/64 dev br0 nodad",
        "link set br0 up",
        "link add v0 type veth peer name v1",
        "link set v1 up",
        "link set v0 up",
        "addr add 10.9.0.2/24 dev v0",
        "addr add fd09::2/64 dev v0 nodad",
        "route add default via 10.9.0.1",
        "-6 route add default via fd09::1",
    ):
        inside(namespace, "ip", *line.split())
    found = seen(namespace, "10.9.0.0/24", "172.16.0.0/12", "fd00::/8", "127.0.0.0/8", "::1")
    assert {"10.9.0.1", "172.17.0.1", "fd09::1", "fd17::1"} <= set(found)
    assert {"masked 10.9.0.1", "masked 172.17.0.1", "masked fd09::1", "masked fd17::1", "open"} <= set(found)
    assert "closed" in seen(namespace, "10.9.1.0/24", "127.0.0.0/8", "::1")


@pytest.mark.peer
def test_a_bridge_without_members_is_found_too(namespace: str) -> None:
    for line in ("link add docker0 type bridge", "addr add 172.18.0.1/16 dev docker0", "link set docker0 up"):
        inside(namespace, "ip", *line.split())
    assert "masked 172.18.0.1" in seen(namespace, "172.18.0.0/16")


@pytest.mark.peer
def test_a_namespace_with_loopback_alone_has_no_gateway(namespace: str) -> None:
    inside(namespace, "ip", "link", "set", "lo", "up")
    assert seen(namespace, "127.0.0.0/8", "::1", "10.0.0.0/8") == ["closed"]


def test_what_cannot_be_read_is_said_and_not_taken_for_none(tmp_path: Path) -> None:
    found = look_around(tmp_path / "proc", tmp_path / "sys")
    assert found.gateways == ()
    assert len(found.unread) == 3
    assert find_bridges(tmp_path / "sys") is None
    closure = examine(compile_rules(), found)
    assert closure.is_closed
    assert set(found.unread) <= set(closure.doubts)


def test_a_kernel_without_ipv6_is_no_fault(tmp_path: Path) -> None:
    for name in ("route", "fib_trie"):
        (tmp_path / name).write_text("Iface\n")
    (tmp_path / "sys" / "br0" / "bridge").mkdir(parents=True)
    (tmp_path / "sys" / "eth0").mkdir()
    assert look_around(tmp_path, tmp_path / "sys") == Surroundings(())
    assert find_bridges(tmp_path / "sys") == {"br0"}


def test_this_machine_can_be_looked_at() -> None:
    assert look_around().unread == ()
