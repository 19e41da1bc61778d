"""The collector as `posthouse serve` runs it: probes in, receipts kept, nothing else taken."""

import asyncio
import os
import signal
import smtplib
import socket

import pytest

from collecting import DOMAIN, collecting, fresh_test, lab_line, send
from peer_programs import free_port, greets, wait_until
from posthouse.cli.options import ExitStatus
from posthouse.serve.control import ask
from posthouse.tester.receipts import MOST_PER_TOKEN
from posthouse.tester.reception import HEADER_KEPT
from posthouse.tester.token import Purpose, new_key
from posthouse_server import ADDRESS


def test_probe_is_collected_with_all_that_tells_its_way() -> None:
    with collecting(workers=2) as collector:
        test = fresh_test()
        token = collector.token(test, case=7)
        header = (
            "Received: from edge.test ([192.0.2.9])\r\n by inner.test with ESMTP; Mon, 1 Jan 2024 00:00:00 +0000\r\n"
        )
        code, words = send(collector.port, f"{token.upper()}@{DOMAIN.upper()}", header=header)
        assert (code, words) == (250, "2.0.0 Collected: this probe has been relayed")
        (receipt,) = collector.receipts(test)
        assert (receipt.case_number, receipt.token, receipt.client) == (7, token, "127.0.0.1")
        assert receipt.hello_name == "client.test"
        assert receipt.reverse_path == "tester@tester.test"
        assert not receipt.is_bounce
        assert receipt.received == (
            "from edge.test ([192.0.2.9]) by inner.test with ESMTP; Mon, 1 Jan 2024 00:00:00 +0000",
        )
        assert "Subject: a probe" in receipt.header
        assert "Hello" not in receipt.header


def test_all_arrivals_of_a_token_are_kept_up_to_a_bound_and_a_notice_is_told_apart() -> None:
    with collecting() as collector:
        test = fresh_test()
        probe, notice = collector.token(test), collector.token(test, purpose=Purpose.BOUNCE)
        for address in (probe, probe, f"{probe}%elsewhere.test", f'"x@y:{probe}"', notice):
            assert send(collector.port, f"{address}@{DOMAIN}", reverse_path="")[0] == 250
        assert [one.is_bounce for one in collector.receipts(test)] == [False] * 4 + [True]
        for _ in range(MOST_PER_TOKEN - 4):
            send(collector.port, f"{probe}@{DOMAIN}")
        code, words = send(collector.port, f"{probe}@{DOMAIN}")
        assert code == 550
        assert "proof enough" in words


def test_whatever_carries_no_valid_token_of_ours_is_refused_at_rcpt_with_words() -> None:
    with collecting() as collector:
        test = fresh_test()
        good = collector.token(test)
        for address, words in (
            (f"somebody@{DOMAIN}", "carries no token"),
            (f"postmaster@{DOMAIN}", "carries no token"),
            ("postmaster", "never relays"),
            (f"{collector.token(test, key=new_key())}@{DOMAIN}", "not one of ours"),
            (f"{collector.token(test, seconds=-120)}@{DOMAIN}", "expired"),
            (f"{collector.token(test, purpose=Purpose.CONSENT)}@{DOMAIN}", "not one of ours"),
            (f"{good}@elsewhere.test", "never relays"),
            (f"{good}%{DOMAIN}@elsewhere.test", "never relays"),
        ):
            code, said = send(collector.port, address)
            assert code == 550, address
            assert words in said, address
            assert "write to postmaster@relay.test" in said
        assert collector.receipts(test) == ()
        assert collector.server.json("queue", "list")["messages"] == []


def test_collector_without_domains_and_unusable_key_end_the_start_with_words() -> None:
    from posthouse_server import configured

    with configured(listener='role = "collector"') as server:
        done = server.command("serve", check=False)
        assert done.returncode == 2
        assert "[collector] domains" in done.stderr
    with configured('[tester]\nkey_file = "none"\n') as server:
        done = server.command("check", check=False)
        assert done.returncode == 2
        assert "testers' key" in done.stderr


def test_reload_may_not_turn_a_collector_into_something_else() -> None:
    with collecting() as collector:
        text = collector.server.configuration.read_text()
        collector.server.configuration.write_text(text.replace('role = "collector"', ""))
        done = collector.server.command("reload", check=False)
        assert done.returncode == 1
        assert "stop being a collector only by a restart" in done.stdout + done.stderr
        collector.server.configuration.write_text(text.replace(f'domains = ["{DOMAIN}"]', 'domains = ["other.test"]'))
        collector.server.command("reload")
        test = fresh_test()
        assert send(collector.port, f"{collector.token(test)}@{DOMAIN}")[0] == 550
        assert send(collector.port, f"{collector.token(test)}@other.test")[0] == 250


def test_rate_of_probes_is_bounded_by_a_deferral() -> None:
    with collecting(settings="") as collector:
        text = collector.server.configuration.read_text()
        collector.server.configuration.write_text(text.replace("[collector]\n", "[collector]\nper_client = 2\n"))
        collector.server.command("reload")
        address = f"{collector.token(fresh_test())}@{DOMAIN}"
        codes = [send(collector.port, address)[0] for _ in range(3)]
        assert codes == [250, 250, 451]
        assert send(collector.port, address, source="127.0.0.9")[0] == 250


@pytest.mark.parametrize("workers", [1])
def test_lab_relays_probe_to_the_collector_and_nothing_elsewhere(workers: int) -> None:
    with collecting(listener=lab_line(), workers=workers) as collector:
        test = fresh_test()
        lab = collector.server.port
        code, words = send(lab, f"{collector.token(test, case=3)}@{DOMAIN}")
        assert code == 250
        queue_id = words.rsplit(" ", 1)[-1]
        wait_until(lambda: collector.receipts(test), "the probe at the collector")
        (receipt,) = collector.receipts(test)
        assert receipt.case_number == 3
        assert "from client.test ([127.0.0.1])" in receipt.received[0]
        why = collector.server.command("why", queue_id).stdout
        assert "lab-window" in why
        assert "open on purpose, for 127.0.0.0/8, ::1 to collector.test, until" in why
        for address in ("someone@elsewhere.test", "postmaster", f"a%elsewhere.test@{DOMAIN}", f'"a@b"@{DOMAIN}'):
            assert send(lab, address)[0] == 550, address


def test_another_posthouse_asks_this_collector_over_its_own_port() -> None:
    from posthouse.config import load_config
    from posthouse.serve.testing import collector_of
    from posthouse_server import configured

    ask_port = free_port()
    with collecting() as collector:
        test = fresh_test()
        send(collector.port, f"{collector.token(test)}@{DOMAIN}")
        text = collector.server.configuration.read_text()
        asking = text.replace("[collector]\n", f'[collector]\nask = "127.0.0.1:{ask_port}"\n')
        collector.server.configuration.write_text(asking)
        collector.server.command("reload")
        key_file = collector.server.data_dir / "tester" / "key"
        elsewhere = f"""\
[tester]
collector = "{DOMAIN}"
collector_url = "http://127.0.0.1:{ask_port}"
key_file = "{key_file}"
"""
        with configured(elsewhere) as other:
            client, why = collector_of(load_config(other.configuration))
            assert (client and client.domain, why) == (DOMAIN, "")
            assert client is not None
            assert asyncio.run(client.receipts(test)) == collector.receipts(test)
        client, why = collector_of(load_config(collector.server.configuration))
        assert client is not None, why
        assert asyncio.run(client.receipts(test)) == collector.receipts(test)
        collector.server.configuration.write_text(text)
        collector.server.command("reload")
        wait_until(lambda: not answers(ask_port), "the port to close")
    with configured() as nobody:
        assert collector_of(load_config(nobody.configuration)) == (
            None,
            "no collector is configured ([collector] here, or [tester] collector elsewhere)",
        )


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def test_receipt_outlives_the_server_that_was_killed_after_its_250() -> None:
    test = fresh_test()
    with collecting() as collector:
        (worker,) = ask(collector.server.data_dir, "status")["workers"]
        assert send(collector.port, f"{collector.token(test)}@{DOMAIN}")[0] == 250
        os.kill(worker["pid"], signal.SIGKILL)
        assert len(collector.receipts(test)) == 1
        wait_until(lambda: greets(ADDRESS, collector.port), "the worker to be back")
        assert send(collector.port, f"{collector.token(test, 2)}@{DOMAIN}")[0] == 250
        assert len(collector.receipts(test)) == 2


def test_without_free_space_a_probe_is_deferred_and_nothing_is_said_to_be_kept() -> None:
    with collecting() as collector:
        text = collector.server.configuration.read_text()
        collector.server.configuration.write_text(text.replace('free_space = "1MB"', 'free_space = "900TB"'))
        collector.server.command("reload")
        test = fresh_test()
        code, words = send(collector.port, f"{collector.token(test)}@{DOMAIN}")
        assert (code, words) == (451, "4.3.0 The receipt could not be kept; try again later")
        assert collector.receipts(test) == ()


def test_large_and_odd_mail_is_bounded_and_the_collector_goes_on() -> None:
    with collecting() as collector:
        test = fresh_test()
        address = f"{collector.token(test)}@{DOMAIN}"
        assert send(collector.port, address, header="X: " + "y" * 200 + "\r\n " + "z " * 40_000 + "\r\n")[0] == 250
        assert len(collector.receipts(test)[0].header) <= HEADER_KEPT
        with smtplib.SMTP(ADDRESS, collector.port, timeout=30) as client:
            client.ehlo()
            assert client.docmd("MAIL FROM:<a@b.test> SIZE=5000000")[0] == 552
            client.rset()
            client.mail("a@b.test")
            tokens = [f"{collector.token(test, case)}@{DOMAIN}" for case in range(20, 40)]
            codes = [client.rcpt(one)[0] for one in tokens]
            assert codes == [250] * 10 + [452] * 10
            assert client.data(b"\xff\x00 no header at all \xe4\r\n")[0] in (250, 550, 554)
            assert client.docmd("AUTH PLAIN AGEAYg==")[0] >= 500
            assert client.docmd("VRFY postmaster")[0] in (252, 502)
        assert send(collector.port, address)[0] == 250


def test_greeting_says_that_this_is_a_collector() -> None:
    with collecting() as collector, socket.create_connection((ADDRESS, collector.port), timeout=20) as line:
        assert b"220 relay.test ESMTP Posthouse collector: takes probes" in line.recv(512)


def test_collector_that_is_tested_itself_is_not_called_open() -> None:
    with collecting() as collector:
        done = collector.server.command("test", f"{ADDRESS}:{collector.port}", check=False)
    assert done.returncode == ExitStatus.NO_VERDICT
    assert "this is the collector of a relay test" in done.stdout
