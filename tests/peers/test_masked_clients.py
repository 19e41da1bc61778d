"""Behind real NAT: the proof says closed, strangers relay all the same, and the echo of an outside test ends that.

    stranger 198.51.100.7 ── 198.51.100.1 NAT 172.30.0.1, .9 ── 172.30.0.2 server, which trusts 172.30.0.0/24

The NAT hands port 25 on to the server and, as a load balancer does, hides who calls: everybody comes from 172.30.0.9. That
address is no gateway of the server's, so nothing inside tells.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from peer_networks import Host, cable, default_route, hosts
from peer_programs import running, server_directory
from posthouse_server import Posthouse

pytestmark = pytest.mark.peer

PUBLIC, STRANGER = "198.51.100.1", "198.51.100.7"
INSIDE = "172.30.0.2"
MASKING = f"""
table ip gateway {{
  chain in {{ type nat hook prerouting priority -100; iifname "out" tcp dport 25 dnat to {INSIDE}; }}
  chain out {{ type nat hook postrouting priority 100; ip daddr {INSIDE} snat to 172.30.0.9; }}
}}
"""
HONEST = MASKING.replace("snat to 172.30.0.9", "accept")

TALK = """
import smtplib, sys
with smtplib.SMTP(sys.argv[1], 25, sys.argv[2], 10) as client:
    client.ehlo()
    client.mail("someone@stranger.test")
    code, words = client.rcpt("victim@third.test")
    print(code, words.decode())
"""


class Scene:
    def __init__(self, stranger: Host, gateway: Host, inside: Host, server: Posthouse) -> None:
        self.stranger, self.gateway, self.inside, self.server = stranger, gateway, inside, server

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        command = self.inside.command(
            sys.executable, "-m", "posthouse", "serve", "--config", str(self.server.configuration)
        )
        output = self.server.directory / "output"

        def is_ready() -> bool:
            return any(line.startswith(b"ready") for line in output.read_bytes().splitlines())

        with running(command, is_ready, self.server.directory, dict(os.environ)):
            yield

    def rcpt(self, host: Host, address: str, hello: str = "client.test") -> str:
        return host.run(sys.executable, "-c", TALK, address, hello).stdout.strip()

    def posthouse(self, host: Host, *arguments: str, check: bool = True) -> Any:
        return host.run(
            sys.executable, "-m", "posthouse", "--config", str(self.server.configuration), *arguments, check=check
        )

    def status(self) -> Any:
        return json.loads(self.posthouse(self.inside, "relay", "status", "--json").stdout)


@contextlib.contextmanager
def scene(nat: str) -> Iterator[Scene]:
    with hosts(3) as (stranger, gateway, inside), server_directory("masked") as directory:
        cable(stranger, f"{STRANGER}/24", gateway, f"{PUBLIC}/24")
        cable(gateway, "172.30.0.1/24", inside, f"{INSIDE}/24")
        names = gateway.run("ip", "-json", "address").stdout
        (outer,) = (
            one["ifname"] for one in json.loads(names) if any(a.get("local") == PUBLIC for a in one["addr_info"])
        )
        gateway.run("ip", "address", "add", "172.30.0.9/24", "dev", _other(names, outer))
        default_route(inside, "172.30.0.1")
        default_route(stranger, PUBLIC)
        gateway.nat(nat.replace('"out"', f'"{outer}"'))
        server = Posthouse(directory, 25)
        server.configuration.write_text(
            f"""\
hostname = "relay.test"
data_dir = "{server.data_dir}"
workers = 2
[[listener]]
address = "{INSIDE}:25"
[relay]
trusted_networks = ["172.30.0.0/24"]
gateways_as_strangers = ["172.30.0.1"]
[[route]]
domain = "*"
to = "smtp://127.0.0.1:9"
[resolver]
servers = ["127.0.0.1:53"]
timeout = "1s"
[tester]
own_networks = ["198.51.100.0/24"]
"""
        )
        yield Scene(stranger, gateway, inside, server)


def _other(names: str, outer: str) -> str:
    (found,) = (one["ifname"] for one in json.loads(names) if one["ifname"] not in ("lo", outer))
    assert isinstance(found, str)
    return found


def echo_name(scene_of: Scene) -> str:
    from posthouse.tester.echo import hello_name

    nonce = json.loads(scene_of.posthouse(scene_of.inside, "relay", "nonce", "--json").stdout)["nonce"]
    return hello_name(nonce, STRANGER, "tester.test")


def test_echo_behind_real_nat_suspends_the_networks_of_a_listener_that_the_proof_calls_closed() -> None:
    with scene(MASKING) as world, world.serving():
        check = world.posthouse(world.inside, "check").stdout
        assert check.startswith("closed")
        assert world.rcpt(world.stranger, PUBLIC).startswith("250")  # an open relay, by right rules
        assert world.rcpt(world.stranger, PUBLIC, echo_name(world)).startswith("450 4.7.1")
        assert {world.rcpt(world.stranger, PUBLIC)[:3] for _ in range(6)} == {"450"}
        (mask,) = world.status()["suspended"]
        assert (mask["listener"], mask["held"], mask["seen"]) == (f"{INSIDE}:25", STRANGER, "172.30.0.9")
        assert "SUSPENDED" in world.posthouse(world.inside, "check").stdout


def test_echo_through_a_gateway_that_hides_nobody_agrees() -> None:
    with scene(HONEST) as world, world.serving():
        assert world.rcpt(world.stranger, PUBLIC, echo_name(world)).startswith("550")
        assert world.status()["suspended"] == []
        (agreement,) = world.status()["echoes"]
        assert agreement["address"] == STRANGER
