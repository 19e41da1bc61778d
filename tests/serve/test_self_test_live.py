"""The self-test over the listeners as they are: what it tries, what it catches, and that it leaves no trace."""

import asyncio
import json
import os
import smtplib
import subprocess
import sys
from pathlib import Path

import pytest

from fault_sabotage import AT_WORKERS, python_path
from posthouse.config import load_text
from posthouse.serve.machine import own_addresses
from posthouse.serve.rules import rules_of
from posthouse.serve.self_test_live import LiveTest, rehearse_live
from posthouse.tester.case import CASES
from posthouse_server import ADDRESS, STRANGER, Posthouse, configured, posthouse, route_to, write_certificate
from serve_fake import until

ROUTE = route_to("smtp://127.0.0.1:9")

SABOTAGED_WORKERS = f"""{AT_WORKERS}
def sabotage():
    import pathlib
    from ipaddress import ip_address
    import msgspec
    import posthouse.relay.session as session
    honest = session.decide
    def decide(facts, rules):
        if (pathlib.Path(__file__).parent / "sabotage").exists():
            facts = msgspec.structs.replace(facts, client=ip_address("127.0.0.1"))
        return honest(facts, rules)
    session.decide = decide
"""
"""Only what the workers run is at fault: the proof and the rehearsal in memory, in the supervisor, see nothing of it."""


def events(server: Posthouse, name: str) -> list[dict[str, str]]:
    lines = [line for line in server.output().splitlines() if line.startswith("{")]
    return [one for one in map(json.loads, lines) if one["event"] == name]


def live_words(server: Posthouse) -> str:
    (found,) = until(lambda: events(server, "self-tested-live"))
    return found["words"]


def test_cases_are_said_over_the_real_listener_and_leave_no_trace() -> None:
    with posthouse(ROUTE, workers=2) as server:
        assert f"at {server.address}" in live_words(server)
        assert "none was let in" in live_words(server)
        assert "recipient-refused" not in server.output()
        assert "command-refused" not in server.output()
        from posthouse.serve.control import ask

        counted = ask(server.data_dir, "metrics")["metrics"]
        assert "posthouse_decisions" not in counted
        assert {count for _, count in counted["posthouse_sessions"]} == {0}
        assert server.json("usage")["refusals"] == []


def test_every_kind_of_listener_is_tried() -> None:
    with configured(ROUTE) as server:
        certificate, key, _ = write_certificate(server.directory)
        tls = f'certificate = "{certificate}", key = "{key}"'
        more = f"""
[[listener]]
address = "127.0.0.1:0"
tls = {{ {tls} }}
[[listener]]
address = "127.0.0.1:0"
role = "submission"
tls = {{ {tls}, implicit = true }}
[[listener]]
address = "127.0.0.1:0"
proxy = "required"
proxies = ["127.0.0.1"]
[[listener]]
address = "127.0.0.1:0"
proxy = "required"
proxies = ["192.0.2.9"]
[[listener]]
address = "[::1]:0"
role = "submission"
"""
        text = server.configuration.read_text()
        server.configuration.write_text(text.replace("[[route]]", f"{more}\n[[route]]"))
        with server.serving():
            words = live_words(server)
            assert words.count("127.0.0.1:") == 5
            assert words.count("[::1]:") == 1
            assert events(server, "self-test-untried") == []


def test_listener_where_every_address_of_the_machine_is_trusted_is_named_as_untried() -> None:
    trusted = json.dumps(["127.0.0.0/8", *map(str, own_addresses())])
    with configured(f"{ROUTE}\n[relay]\ntrusted_networks = {trusted}\n") as server:
        text = server.configuration.read_text()
        gateways = json.dumps([str(one) for one in own_addresses()])
        server.configuration.write_text(text.replace("[relay]", f"[relay]\ngateways_trusted = {gateways}"))
        with server.serving():
            (untried,) = until(lambda: events(server, "self-test-untried"))
            assert "every address of this machine is trusted there" in untried["words"]


def sabotaged(server: Posthouse) -> dict[str, str]:
    (server.directory / "sitecustomize.py").write_text(SABOTAGED_WORKERS)
    return {"PYTHONPATH": os.pathsep.join((str(server.directory), python_path()))}


def test_workers_that_let_a_case_in_do_not_get_to_be_ready() -> None:
    with configured(ROUTE) as server:
        variables = sabotaged(server)
        (server.directory / "sabotage").touch()
        done = subprocess.run(
            [sys.executable, "-m", "posthouse", "serve", "--config", str(server.configuration)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **variables},
        )
        assert done.returncode == 2
        assert f"at {server.address}: case 101 (plain third party), from {STRANGER}" in done.stderr
        assert "C: RCPT TO:<self-test@third-party.example>" in done.stderr
        assert "\nready" not in done.stderr


def test_of_several_cases_that_are_let_in_the_first_is_told_whichever_session_is_quicker() -> None:
    cases = [case for case in CASES if case.number in (101, 102, 103, 104, 107)]  # four in one session, 107 in another

    async def scene() -> LiveTest:
        is_quicker_through = asyncio.Event()

        async def let_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reverse_path = b""
            writer.write(b"220 open.test\r\n")
            async for line in reader:
                if line.startswith(b"MAIL"):
                    reverse_path = line
                elif line.startswith(b"RCPT") and b"@localhost>" in reverse_path:
                    is_quicker_through.set()
                elif line.startswith(b"RCPT"):
                    await is_quicker_through.wait()
                writer.write(b"250 fine\r\n")
            writer.close()

        text = f'hostname = "mx.test"\ndata_dir = "data"\n[[listener]]\naddress = "{ADDRESS}:0"\n{ROUTE}'
        config = load_text(text, Path("/nowhere/posthouse.toml"))
        async with await asyncio.start_server(let_in, ADDRESS, 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await rehearse_live(config, rules_of(config), [("here", port)], lambda _: "self.test", cases)

    found = asyncio.run(scene())
    assert found.cases == 5
    assert found.relayed is not None
    assert found.relayed.case_number == 101
    assert found.relayed.dialogue[-1].startswith("S: 250")


def test_reload_that_lets_a_case_in_turns_relaying_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with configured(ROUTE) as server:
        for name, value in sabotaged(server).items():
            monkeypatch.setenv(name, value)
        with server.serving():
            (server.directory / "sabotage").touch()
            server.append('[relay]\nrelay_domains = ["dept.test"]')
            done = server.command("reload", check=False)
            assert done.returncode == 1
            assert "relaying is turned OFF" in done.stderr
            assert json.loads(server.command("relay", "status", "--json", check=False).stdout)["relay"] == "off"
            with smtplib.SMTP(ADDRESS, server.port, source_address=(STRANGER, 0)) as client:
                client.ehlo()
                client.mail("a@client.test")
                assert client.rcpt("b@elsewhere.test")[0] == 450
