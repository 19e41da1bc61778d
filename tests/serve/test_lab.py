"""The lab as `serve` runs it, and the shapes that neither `serve` nor `check` takes."""

import asyncio
import json
import smtplib
import time

import pytest

from collecting import DOMAIN, collecting, lab_line, send
from peer_programs import wait_until
from posthouse.config import load_config
from posthouse.serve import collecting as key_owner
from posthouse.serve.admission import NotAdmitted, admit
from posthouse.serve.testing import collector_of
from posthouse.tester import message
from posthouse.tester.case import CASES
from posthouse.tester.prober import ProberSettings, probe
from posthouse.tester.report import Report, Target
from posthouse.tester.verdict import CaseVerdict, HostVerdict
from posthouse_server import ADDRESS, configured, posthouse


def test_check_says_open_on_purpose_until_then_and_serve_starts() -> None:
    with posthouse(listener=lab_line()) as server:
        done = server.command("check")
        assert "closed otherwise: no stranger can relay" in done.stdout
        assert "open, on purpose, until 20" in done.stdout
        assert f"the lab on {ADDRESS}:{server.port} relays for 127.0.0.0/8, ::1 to {DOMAIN}" in done.stdout
        document = server.json("check")
        assert document["verdict"] == "open-on-purpose"
        (lab,) = document["labs"]
        assert (lab["networks"], lab["destinations"]) == (["127.0.0.0/8", "::1"], [DOMAIN])
        assert lab["until"] == pytest.approx(time.time() + 86400, abs=600)
        status, reply = send(server.port, "a@elsewhere.test")
        assert (status, reply) == (550, f"5.7.1 This is a lab: it relays to {DOMAIN} and nowhere else")


@pytest.mark.parametrize(
    ("listener", "words"),
    [
        ('role = "lab"', "give its bounds"),
        (lab_line(days=31), "more than 30 days ahead"),
        (lab_line(days=-1), "ended at"),
        (lab_line(more=', networks = ["0.0.0.0/0"]'), "too wide for a lab"),
        (lab_line(more=', networks = ["203.0.112.0/20"]'), "too wide for a lab"),
        (lab_line(destinations='["*"]'), "to everywhere"),
        (lab_line(destinations='["a.test", ".com"]'), "to everywhere"),
        (lab_line(destinations="[]"), "is empty"),
        ('role = "lab"\nlab = { destinations = ["a.test"] }', "needs the key until"),
        ('role = "lab"\nlab = { until = 2030-01-01 }', "needs the key destinations"),
        ('role = "lab"\nlab = { destinations = ["a.test"], until = "2030-01-01" }', "must be a date"),
        ('lab = { destinations = ["a.test"], until = 2030-01-01 }', 'counts only with role = "lab"'),
        (lab_line() + 'proxy = "required"\nproxies = ["127.0.0.1"]', "does not go with"),
    ],
    ids=range(13),
)
def test_lab_of_another_shape_is_never_admitted(listener: str, words: str) -> None:
    with configured(listener=listener) as server, pytest.raises(NotAdmitted, match=words):
        admit(server.configuration)


def test_lab_of_another_shape_ends_serve_and_check_with_a_sentence() -> None:
    with configured(listener=lab_line(days=31)) as server:
        words = "more than 30 days ahead"
        for command in ("serve", "check"):
            done = server.command(command, check=False)
            assert done.returncode == 2, (command, done.stdout, done.stderr)
            assert words in done.stderr
            assert done.stdout == ""


def test_lab_beyond_loopback_must_name_its_networks() -> None:
    with configured(listener=lab_line()) as server:
        text = server.configuration.read_text().replace(f'"{ADDRESS}:', '"0.0.0.0:')
        server.configuration.write_text(text)
        done = server.command("check", check=False)
        assert done.returncode == 2
        assert "name who may use it" in done.stderr
        server.configuration.write_text(text.replace("until =", 'networks = ["127.0.0.0/8"], until ='))
        assert "open, on purpose" in server.command("check").stdout


def test_lab_of_a_named_network_is_closed_to_loopback_too() -> None:
    with collecting(listener=lab_line(more=', networks = ["127.0.0.9"]')) as collector:
        address = f"{collector.token(1)}@{DOMAIN}"
        assert send(collector.server.port, address, source="127.0.0.9")[0] == 250
        code, words = send(collector.server.port, address)
        assert (code, "denied for 127.0.0.1" in words) == (550, True)


def test_lab_closes_by_itself_in_a_running_server_and_in_open_sessions() -> None:
    with posthouse(listener=lab_line(days=0, seconds=6)) as server:
        with smtplib.SMTP(ADDRESS, server.port, timeout=30) as early:
            early.ehlo()
            early.mail("a@b.test")
            assert early.rcpt(f"x@{DOMAIN}")[0] == 250

            def is_over() -> bool:
                early.rset()
                early.mail("a@b.test")
                return early.rcpt(f"x@{DOMAIN}")[0] == 550

            wait_until(is_over, "the lab to close")
            _code, words = early.rcpt(f"x@{DOMAIN}")
            assert b"This lab ended at" in words
        with pytest.raises(smtplib.SMTPConnectError) as refused:
            smtplib.SMTP(ADDRESS, server.port, timeout=30)
        assert refused.value.smtp_code == 554
        done = server.command("reload", check=False)
        assert done.returncode == 1
        assert "take the listener out" in done.stdout + done.stderr


def test_reload_tells_of_a_lab_and_takes_it_away_again() -> None:
    with posthouse() as server:
        text = server.configuration.read_text()
        lab = text.replace(
            f'address = "{ADDRESS}:{server.port}"\n', f'address = "{ADDRESS}:{server.port}"\n{lab_line()}'
        )
        server.configuration.write_text(lab)
        said = json.loads(server.command("reload", "--json").stdout)
        assert any("is now open, on purpose" in line for line in said["changes"])
        assert send(server.port, "a@elsewhere.test")[0] == 550
        server.configuration.write_text(text)
        said = json.loads(server.command("reload", "--json").stdout)
        assert f"the lab on {ADDRESS}:{server.port} is closed" in said["changes"]


def test_relay_test_of_a_lab_says_open_with_the_probe_back() -> None:
    with collecting(listener=lab_line()) as collector:
        config = load_config(collector.server.configuration)

        async def test() -> Report:
            client, why = collector_of(config)
            assert client is not None, why
            settings = ProberSettings(
                message.Tester("tester.test", "postmaster@tester.test"),
                numbers=frozenset(case.number for case in CASES[:3]),
                delivery_seconds=20,
            )
            target = Target("127.0.0.1", collector.server.port)
            return await probe(target, settings, tokens=key_owner.testers_key(config), collector=client)

        done = collector.server.command("test", f"{ADDRESS}:{collector.server.port}", "--case", "101", check=False)
        assert done.returncode == 1, done.stderr
        assert "open" in done.stdout
        report = asyncio.run(test())
        assert report.verdict is HostVerdict.OPEN, (report.words, report.results)
        assert report.results[0].verdict is CaseVerdict.RELAYED
        assert report.is_collector_used
