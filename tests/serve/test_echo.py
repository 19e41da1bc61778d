"""A real server hears the echo of an outside test, and its trusted networks count no longer where clients are masked.

Here the tester says an address that it does not have, which is how a masked server sees an honest one; tests/peers has the
same behind real NAT.
"""

import smtplib

import pytest

from posthouse.tester.echo import hello_name, new_nonce
from posthouse.tester.token import new_key
from posthouse_server import ADDRESS, STRANGER, Posthouse, configured, posthouse, route_to
from serve_fake import until

HELD = "127.77.0.9"
SETTINGS = route_to("smtp://127.0.0.1:9")


def nonce_of(server: Posthouse) -> str:
    nonce = server.json("relay", "nonce")["nonce"]
    assert isinstance(nonce, str)
    return nonce


def rcpt(server: Posthouse, hello: str = "client.test", source: str = "127.0.0.1") -> tuple[int, str]:
    """The answer to a recipient elsewhere."""
    with smtplib.SMTP(ADDRESS, server.port, hello, 10, (source, 0)) as client:
        client.ehlo()
        client.mail("a@client.test")
        code, words = client.rcpt("b@elsewhere.test")
        return code, words.decode()


def echo(server: Posthouse, held: str = HELD, nonce: str = "") -> tuple[int, str]:
    return rcpt(server, hello_name(nonce or nonce_of(server), held, "tester.test"))


def suspended(server: Posthouse) -> list[str]:
    return [one["listener"] for one in server.json("relay", "status")["suspended"]]


def test_masked_listener_grants_nothing_to_its_networks_at_once_and_in_all_workers() -> None:
    with posthouse(SETTINGS, workers=2) as server:
        assert rcpt(server)[0] == 250
        code, words = echo(server)
        assert code == 450
        assert "posthouse relay status" in words
        until(lambda: suspended(server) == [server.address])
        assert {rcpt(server)[0] for _ in range(20)} == {450}
        assert rcpt(server, source=STRANGER)[0] == 550
        status = server.command("relay", "status").stdout
        assert f"came from {HELD} and was seen as 127.0.0.1" in status
        assert "clients-masked" in server.output()


def test_suspension_holds_over_restart_and_reload_until_the_configuration_changes() -> None:
    with configured(SETTINGS) as server:
        with server.serving():
            echo(server)
            until(lambda: suspended(server))
            server.command("reload")
            assert rcpt(server)[0] == 450
        with server.serving():
            assert rcpt(server)[0] == 450
            assert "networks-suspended" in server.output()
            server.append('[relay]\ntrusted_networks = ["127.0.0.1", "127.9.0.0/16"]')
            server.command("reload")
            assert rcpt(server)[0] == 250
            assert suspended(server) == []


def test_trust_lifts_the_suspension_on_purpose_and_the_next_echo_brings_it_back() -> None:
    with posthouse(SETTINGS, workers=2) as server:
        nonce = nonce_of(server)
        echo(server, nonce=nonce)
        until(lambda: suspended(server))
        assert server.command("relay", "trust", "127.0.0.1:1", check=False).returncode == 1
        server.command("relay", "trust", server.address)
        assert {rcpt(server)[0] for _ in range(10)} == {250}
        echo(server, nonce=nonce)
        until(lambda: rcpt(server)[0] == 250)
        assert suspended(server) == []  # a nonce is heard once: nobody can use an overheard one
        echo(server)
        until(lambda: suspended(server) == [server.address])


def test_echo_that_agrees_is_told_and_suspends_nothing() -> None:
    with posthouse(SETTINGS) as server:
        assert echo(server, "127.0.0.1")[0] == 250
        found = until(lambda: server.json("relay", "status")["echoes"])
        assert [(one["listener"], one["address"], one["tester"]) for one in found] == [
            (server.address, "127.0.0.1", "tester.test")
        ]
        assert suspended(server) == []


def test_stranger_can_suspend_nothing_without_a_nonce_of_the_server() -> None:
    with posthouse(SETTINGS) as server:
        assert echo(server, nonce=new_nonce(new_key(), 1_800_000_000.0))[0] == 250
        assert suspended(server) == []


def test_trust_without_a_running_server_holds_from_the_next_start() -> None:
    with configured(SETTINGS) as server:
        with server.serving():
            echo(server)
            until(lambda: suspended(server))
        assert suspended(server) == [server.address]
        server.command("relay", "trust", server.address)
        assert suspended(server) == []
        with server.serving():
            assert rcpt(server)[0] == 250


def test_findings_that_cannot_be_read_suspend_every_network() -> None:
    with configured(SETTINGS) as server:
        with server.serving():
            assert rcpt(server)[0] == 250
        (server.data_dir / "echoes.json").write_text("{")
        with server.serving():
            assert rcpt(server)[0] == 450
            assert "can't be read" in server.command("relay", "status").stdout


@pytest.mark.parametrize("arguments", [("trust",), ("status", "127.0.0.1:25")])
def test_wrong_use_of_relay_is_told_with_2(arguments: tuple[str, ...]) -> None:
    with configured(SETTINGS) as server:
        done = server.command("relay", *arguments, check=False)
        assert done.returncode == 2
        assert "relay trust" in done.stderr
