"""The self-test says every case to the real engine and session, and catches by itself what would relay."""

import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from posthouse.config import Config, load_text
from posthouse.mail.grant import Grant
from posthouse.observe import log, metrics
from posthouse.policy.decide import decide
from posthouse.policy.facts import Facts
from posthouse.policy.proof import find_opening
from posthouse.policy.rules import Rules
from posthouse.relay import session
from posthouse.serve import closure
from posthouse.serve.admission import NotAdmitted, admit
from posthouse.serve.rules import rules_of
from posthouse.serve.self_test import SelfTest, rehearse
from posthouse.tester.case import CASES
from posthouse_server import ADDRESS, configured, route_to

HEAD = """\
hostname = "mx.example.org"
data_dir = "data"
"""
EVERYWHERE = """\
[[listener]]
address = "0.0.0.0:25"
[[listener]]
address = "[::]:25"
tls = { certificate = "cert.pem", key = "key.pem" }
[[listener]]
address = "0.0.0.0:587"
role = "submission"
[[listener]]
address = "0.0.0.0:465"
role = "submission"
tls = { certificate = "cert.pem", key = "key.pem", implicit = true }
[[listener]]
address = "10.0.0.2:2525"
proxy = "required"
proxies = ["127.0.0.1"]
[relay]
local_domains = ["example.org", ".branch.example.org"]
relay_domains = ["dept.example.org"]
gateways_as_strangers = ["127.0.0.1"]
[aliases]
postmaster = ["admin@elsewhere.example"]
[[route]]
domain = ["example.org", ".branch.example.org"]
to = "maildir:mail"
"""
ONE = '[[listener]]\naddress = "127.0.0.1:2525"\n'


def configuration(text: str) -> Config:
    return load_text(HEAD + text, Path("/nowhere/posthouse.toml"))


def run_over(text: str) -> SelfTest:
    config = configuration(text)
    return rehearse(config, rules_of(config))


def everyone_is_at_home(facts: Facts, rules: Rules) -> object:
    """A sabotaged decision: whoever calls is taken for this machine."""
    return decide(msgspec.structs.replace(facts, client=ip_address("::1")), rules)


def test_every_case_is_said_at_every_listener_and_none_is_relayed() -> None:
    found = run_over(EVERYWHERE)
    assert found.relayed is None
    assert found.cases == len(CASES)
    assert found.not_offered == 0
    assert found.listeners == ("0.0.0.0:25", "[::]:25", "0.0.0.0:587", "0.0.0.0:465", "10.0.0.2:2525")
    assert {"203.0.113.9", "127.0.0.1"} <= set(found.clients)
    assert any(":" in client for client in found.clients)
    assert found.sessions > 4 * len(CASES)


def test_case_that_needs_what_is_not_offered_is_counted_as_not_tried() -> None:
    found = run_over(ONE)
    assert (found.cases, found.not_offered) == (len(CASES) - 1, 1)  # no certificate, no STARTTLS


def test_nothing_of_it_is_counted_or_logged(capfd: pytest.CaptureFixture[str]) -> None:
    before = metrics.snapshot()
    log.configure("json", "debug")
    try:
        run_over(EVERYWHERE)
        log.info("heard")
        log.flush()
    finally:
        log.configure()
    assert metrics.snapshot() == before
    (line,) = capfd.readouterr().err.splitlines()
    assert "heard" in line


def test_sabotaged_decision_is_caught_with_case_dialogue_and_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "decide", everyone_is_at_home)
    found = run_over(ONE).relayed
    assert found is not None
    assert (found.case_number, found.listener, found.client) == (101, "127.0.0.1:2525", "203.0.113.9")
    assert "trusted-network" in found.rule
    assert found.dialogue[1] == "C: EHLO tester.outside.example"
    assert "C: RCPT TO:<self-test@third-party.example>" in found.dialogue
    assert found.dialogue[-1].startswith("S: 250 2.0.0 Queued")


def test_percent_hack_that_a_sabotaged_session_lets_in_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting_the_domain(facts: Facts, rules: Rules) -> object:
        plain = msgspec.structs.replace(facts.forward_path, local_part=b"victim")
        answer = decide(facts, rules)
        mild = decide(msgspec.structs.replace(facts, forward_path=plain), rules)
        return mild if isinstance(mild, Grant) else answer

    monkeypatch.setattr(session, "decide", trusting_the_domain)
    found = run_over(EVERYWHERE).relayed
    assert found is not None
    assert "percent hack" in found.case_name
    assert "%third-party.example@example.org" in found.forward_path


def test_case_that_relays_only_through_tls_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault beyond the reach of the proof: it lies in the session."""
    started = session.Session.tls_started

    def believing(self: session.Session, description: str) -> None:
        started(self, description)
        self._login = "somebody"

    monkeypatch.setattr(session.Session, "tls_started", believing)
    config = configuration(EVERYWHERE)
    assert find_opening(rules_of(config)) is None
    found = rehearse(config, rules_of(config)).relayed
    assert found is not None
    assert (found.case_name, found.listener) == ("after STARTTLS", "[::]:25")
    assert "authenticated-user" in found.rule


@pytest.mark.parametrize(
    "opening",
    [
        'trusted_networks = ["0.0.0.0/0"]',
        'trusted_networks = ["::/0"]',
        'relay_domains = ["*"]',
        'relay_domains = [".example"]',
        'trusted_networks = ["203.0.0.0/8", "198.0.0.0/8", "9.0.0.0/8", "0.0.0.0/1", "128.0.0.0/1"]',
    ],
)
def test_self_test_alone_catches_an_opening_with_the_proof_switched_off(
    opening: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "posthouse.toml"
    path.write_text(f"{HEAD}{ONE}[relay]\n{opening}\n")
    with pytest.raises(NotAdmitted, match="would make an open relay"):
        admit(path)
    monkeypatch.setattr(closure, "find_opening", lambda _rules: None)
    monkeypatch.setattr(closure, "masked_openings", lambda _rules, _gateways: ())
    with pytest.raises(NotAdmitted, match=r"(?s)self-test was relayed at 127\.0\.0\.1:2525: case \d+ .*RCPT TO:"):
        admit(path)


def test_lab_and_collector_are_left_out_and_said_to_be() -> None:
    found = run_over(
        ONE
        + """
[collector]
domains = ["probe.example.org"]
[[listener]]
address = "127.0.0.1:2526"
role = "collector"
[[listener]]
address = "127.0.0.1:2527"
role = "lab"
lab = { destinations = ["lab.example"], until = 2999-01-01 }
"""
    )
    assert found.is_closed
    assert found.listeners == ("127.0.0.1:2525",)
    assert len(found.excluded) == 2
    assert "open on purpose" in " ".join(found.excluded)


def test_thousands_of_domains_and_networks_cost_no_more_than_seconds() -> None:
    domains = ", ".join(f'"d{n}.example"' for n in range(5000))
    networks = ", ".join(f'"10.{n // 250}.{n % 250}.0/24"' for n in range(2000))
    found = run_over(f"{ONE}[relay]\nrelay_domains = [{domains}]\ntrusted_networks = [{networks}]\n")
    assert found.is_closed
    assert found.seconds < 5


SABOTAGED = f"""
import sys, pathlib
sys.path.insert(0, {str(Path(__file__).parent)!r})
import posthouse.relay.session as session
from ipaddress import ip_address
import msgspec
honest = session.decide
def decide(facts, rules):
    if pathlib.Path(sys.argv[-1]).with_name("sabotage").exists():
        facts = msgspec.structs.replace(facts, client=ip_address("127.0.0.1"))
    return honest(facts, rules)
session.decide = decide
from posthouse.cli.program import run
sys.exit(run(sys.argv[1:]))
"""


def test_server_whose_sessions_are_sabotaged_does_not_start() -> None:
    with configured(route_to("smtp://127.0.0.1:9")) as server:
        (server.directory / "sabotage").touch()
        done = subprocess.run(
            [sys.executable, "-c", SABOTAGED, "serve", "--config", str(server.configuration)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert "case 101 (plain third party)" in done.stderr
        assert "C: RCPT TO:<self-test@third-party.example>" in done.stderr
        assert "trusted-network" in done.stderr
        assert "ready" not in done.stderr


def test_reload_into_sabotage_is_refused_and_the_old_rules_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    import posthouse_server

    with configured(route_to("smtp://127.0.0.1:9")) as server:

        def running(command: list[str], *rest: Any) -> Any:
            return real([command[0], "-c", SABOTAGED, *command[3:]], *rest)

        real = posthouse_server.running
        monkeypatch.setattr(posthouse_server, "running", running)
        with server.serving():
            (server.directory / "sabotage").touch()
            server.append('[relay]\nrelay_domains = ["dept.test"]')
            done = server.command("reload", check=False)
            assert done.returncode == 1
            assert "case 101" in done.stderr
            (server.directory / "sabotage").unlink()
            import smtplib

            with smtplib.SMTP(ADDRESS, server.port, source_address=("127.0.0.2", 0)) as client:
                client.ehlo()
                client.mail("a@client.test")
                assert client.rcpt("b@dept.test")[0] == 550  # the new domain is not in force


def test_check_shows_the_self_test_to_people_and_to_programs() -> None:
    with configured() as server:
        assert f"self-test: {len(CASES) - 1} cases from 203.0.113.9" in server.command("check").stdout
        document = server.json("check")["self_test"]
        assert document["cases"] == len(CASES) - 1
        assert document["relayed"] is None


def test_no_case_that_must_be_refused_is_let_in_for_a_mailbox_of_ours() -> None:
    """The test over the listeners takes the answer to RCPT for the verdict: a case that we rightly accept is not to be there."""
    from posthouse.net.connection import Peer
    from posthouse.serve.self_test import MemorySession, names_for
    from posthouse.serve.self_test_live import is_wanted
    from posthouse.serve.wiring import engine_settings_of
    from posthouse.smtp.reply import ReplyReader

    config = configuration(
        ONE
        + """
[relay]
local_domains = ["example.org", "localhost", "[127.0.0.1]", "mx.example.org"]
relay_domains = ["dept.example.org"]
[[route]]
domain = ["example.org", "localhost", "[127.0.0.1]", "mx.example.org"]
to = "maildir:mail"
"""
    )
    rules, listener = rules_of(config), config.listeners[0]
    engine = engine_settings_of(config, listener)
    let_in = set()
    with log.silenced(), metrics.uncounted():
        for domain in ("example.org", "dept.example.org", "mx.example.org", "localhost"):
            for case in filter(is_wanted, CASES):
                one = MemorySession(config, listener, rules, engine, Peer("203.0.113.9", 4242), ReplyReader())
                one.open(implicit_tls=False)
                one.say(case, names_for(config, rules, listener, domain))
                paths = {path for path in one.forward_paths if path.local_part != b"postmaster"}
                let_in |= {(case.number, path) for path in paths}
    assert let_in == set()
