"""`test HOST --prove`: what is printed, and what it answers when it is done."""

import asyncio
import json
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from dns_server import LyingServer, Zone, lying_server
from posthouse.cli.consent import prove_control
from posthouse.cli.options import Fault
from posthouse.config import Config, load_text
from posthouse.serve.testing import identity_of, office_of
from posthouse.tester.consent import Consent, Denial


@pytest.fixture
def names() -> Iterator[LyingServer]:
    """A name server in a thread of its own; its zone is the attribute `behaviour`."""
    ready, found = threading.Event(), []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with lying_server(Zone("mx.test. 1 IN A 10.11.12.13")) as server:
            found.append(server)
            stop = asyncio.Event()
            found.append(stop)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(20)
    yield found[0]
    loop.call_soon_threadsafe(found[1].set)
    thread.join()
    loop.close()


def configured(directory: Path, names: LyingServer, more: str = "") -> Config:
    server = names.server
    text = f"""
hostname = "tester.test"
data_dir = "{directory}/data"
[resolver]
servers = ["{server.host}:{server.port}"]
[tester]
{more}
"""
    return load_text(text, directory / "posthouse.toml")


def test_control_is_proved_by_the_record_that_was_printed(
    tmp_path: Path, names: LyingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, names)
    office, address = office_of(config), ip_address("10.11.12.13")
    assert isinstance(office.look("mx.test", address), Denial)
    assert prove_control(config, "mx.test", 25, "dns") == 1
    said = capsys.readouterr().out
    assert "not proved yet: the TXT record _posthouse-test.mx.test is not there" in said
    record = said.splitlines()[1].strip()
    assert record.startswith("_posthouse-test.mx.test. IN TXT ")
    assert prove_control(config, "mx.test", 25, "dns", as_json=True) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["proved"] is False
    assert document["addresses"][0]["todo"] == [record]
    names.behaviour = names.over_tcp = Zone("mx.test. 1 IN A 10.11.12.13", record.replace(" IN ", " 1 IN "))
    assert prove_control(config, "mx.test", 25, "dns") == 0
    assert "proved: mx.test (10.11.12.13) may be tested until 20" in capsys.readouterr().out
    assert isinstance(office.look("mx.test", address), Consent)
    assert prove_control(config, "mx.test", 25, "dns", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["addresses"][0]["until"] > 1e9


def test_name_without_an_address_is_wrong_usage(
    tmp_path: Path, names: LyingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Fault, match=r"nowhere\.test has no address"):
        prove_control(configured(tmp_path, names), "nowhere.test", 25, "dns")
    assert capsys.readouterr().out == ""


def test_configuration_declares_networks_lists_and_identity(tmp_path: Path, names: LyingServer) -> None:
    (tmp_path / "never.txt").write_text("10.0.0.9  # asked not to be\n")
    more = 'own_networks = ["10.0.0.0/24"]\ndo_not_test = ["secret.test"]\ndo_not_test_file = "never.txt"\n'
    config = configured(tmp_path, names, more)
    office = office_of(config)
    assert isinstance(office.admit("a.test", ip_address("10.0.0.8")), Consent)
    assert isinstance(office.admit("a.test", ip_address("10.0.0.9")), Denial)
    assert isinstance(office.admit("secret.test", ip_address("127.0.0.1")), Denial)
    (tmp_path / "never.txt").write_text("10.0.0.8\n127.0.0.1\n")
    assert isinstance(office.admit("a.test", ip_address("10.0.0.8")), Denial)
    (tmp_path / "never.txt").unlink()
    assert "nothing is tested without it" in office.admit("a.test", ip_address("127.0.0.2")).words
    identity = identity_of(config)
    assert identity.hello_name == "tester.test"
    assert identity.reverse_path == "relay-test@tester.test"
    assert identity.contact == "postmaster@tester.test"


def test_host_that_is_never_tested_gets_no_letter_and_no_challenge(
    tmp_path: Path, names: LyingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, names, 'do_not_test = ["mx.test"]')
    for method in ("dns", "banner", "postmaster"):
        with pytest.raises(Fault, match="never tested"):
            prove_control(config, "mx.test", 25, method)
    assert not capsys.readouterr().out
