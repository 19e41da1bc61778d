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
from serve_fake import until

pytestmark = pytest.mark.peer

PUBLIC, STRANGER = "198.51.100.1", "198.51.100.7"
INSIDE = "172.30.0.2"
MASKING = f"""
table ip gateway {{
  chain in {{ type nat hook prerouting priority -100; iifname "out" tcp dport 25 dnat to {INSIDE}; }}
  chain out {{ type nat hook postrouting priority 100; ip daddr {INSIDE} snat to 172.30.0.9; oifname "out" masquerade; }}
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

    def serving(self) -> contextlib.AbstractContextManager[object]:
        return serving_on(self.inside, self.server)

    def rcpt(self, host: Host, address: str, hello: str = "client.test") -> str:
        return host.run(sys.executable, "-c", TALK, address, hello).stdout.strip()

    def posthouse(self, host: Host, *arguments: str, check: bool = True) -> Any:
        return host.run(
            sys.executable, "-m", "posthouse", "--config", str(self.server.configuration), *arguments, check=check
        )

    def status(self) -> Any:
        return json.loads(self.posthouse(self.inside, "relay", "status", "--json").stdout)


@contextlib.contextmanager
def serving_on(host: Host, server: Posthouse) -> Iterator[None]:
    command = host.command(sys.executable, "-m", "posthouse", "serve", "--config", str(server.configuration))
    output = server.directory / "output"

    def is_ready() -> bool:
        return any(line.startswith(b"ready") for line in output.read_bytes().splitlines())

    with running(command, is_ready, server.directory, dict(os.environ)):
        yield


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


def test_real_test_from_outside_suspends_the_networks_of_the_server_that_it_tests() -> None:
    with scene(MASKING) as world, world.serving():
        nonce = json.loads(world.posthouse(world.inside, "relay", "nonce", "--json").stdout)["nonce"]
        test = ("test", PUBLIC, "--collector", "none", "--case", "101", "--deadline", "10", "--json")
        before = world.posthouse(world.stranger, *test, check=False)
        assert before.returncode == 1, before.stderr  # without an echo all it can see is an open relay
        after = world.posthouse(world.stranger, *test, "--nonce", nonce, check=False)
        (report,) = json.loads(after.stdout)["reports"]
        assert after.returncode == 0, after.stdout  # suspended, it is closed
        assert "Relaying for trusted networks is suspended here" in report["results"][0]["reply"]
        assert [one["held"] for one in world.status()["suspended"]] == [STRANGER]


def test_watch_finds_out_by_itself_that_its_server_is_masked() -> None:
    """The server calls a tester out through the NAT; that tests the address that called, which leads back in."""
    with scene(MASKING) as world, server_directory("tester") as directory:
        tester = Posthouse(directory, 8025)
        tester.configuration.write_text(
            f"""\
hostname = "tester.test"
data_dir = "{tester.data_dir}"
workers = 1
[web]
listen = "{STRANGER}:8025"
ports = [25]
"""
        )
        world.server.append(f'[watch]\ntester = "http://{STRANGER}:8025/"')
        with serving_on(world.stranger, tester), world.serving():
            (mask,) = until(lambda: world.status()["suspended"], 60)
            assert (mask["held"], mask["seen"], mask["tester"]) == (STRANGER, "172.30.0.9", "tester.test")
            assert world.rcpt(world.stranger, PUBLIC).startswith("450 4.7.1")


def test_echo_through_a_gateway_that_hides_nobody_agrees() -> None:
    with scene(HONEST) as world, world.serving():
        assert world.rcpt(world.stranger, PUBLIC, echo_name(world)).startswith("550")
        assert world.status()["suspended"] == []
        (agreement,) = world.status()["echoes"]
        assert agreement["address"] == STRANGER
