"""`posthouse serve` under attack, as it is run: stopped, reloaded and turned off in the midst of things, crowded, and mailing itself."""

import contextlib
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence

import pytest

from peer_programs import wait_until
from posthouse_server import (
    STRANGER,
    Posthouse,
    configured,
    cpu_seconds,
    memory_of,
    quick_retries,
    route_to,
    workers_of,
)
from siege import BODY, LETTER, Wire

FAULTS = ("Traceback", "Exception in", "never retrieved", "session-fault", "worker-ended", "worker-killed", "crashed")
LOCAL = '[relay]\nlocal_domains = ["here.test"]\n'
TO_HERE = LETTER.replace(b"far.test", b"here.test")


@contextlib.contextmanager
def attacked(
    settings: str = LOCAL, head: str = "", listener: str = ""
) -> Iterator[tuple[Posthouse, subprocess.Popen[bytes]]]:
    """A server with a Maildir for here.test; no fault of its own may stand in its log at the end."""
    with configured(settings, head, listener) as posthouse:
        posthouse.append(route_to(f"maildir:{posthouse.directory}/box", domain="here.test"))
        with posthouse.serving() as process:
            yield posthouse, process
            said = posthouse.output()
            assert not [fault for fault in FAULTS if fault in said], said[-5000:]


def delivered(posthouse: Posthouse) -> int:
    box = posthouse.directory / "box" / "new"
    return len(list(box.iterdir())) if box.is_dir() else 0


def replies(wire: Wire, count: int) -> list[str]:
    return [wire.reply()[:3] for _ in range(count)]


# The end.


@pytest.mark.slow
def test_told_to_stop_it_answers_what_came_whole_says_421_to_the_rest_and_ends() -> None:
    with attacked() as (posthouse, process):
        idle, named, half, whole, arriving = (Wire(posthouse.port) for _ in range(5))
        idle.hello()
        named.hello()
        assert named.say("MAIL FROM:<a@b.test>").startswith("250")
        half.hello()
        assert half.say("AUTH LOGIN").startswith("334")
        whole.ready_for_data("b@here.test")
        arriving.ready_for_data("b@here.test")
        arriving.send(BODY)
        whole.send(BODY + b".\r\n" + TO_HERE + BODY + b".\r\n")
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for wire in (idle, named, half):
            assert [reply[:3] for reply in wire.rest()] == ["421"]
        answers = [reply[:3] for reply in whole.rest()]
        assert answers[:1] == ["250"]
        assert answers[-1] == "421"
        with pytest.raises(ConnectionRefusedError):
            Wire(posthouse.port)
        arriving.send(b".\r\n")
        assert [reply[:3] for reply in arriving.rest()] == ["250", "421"]
        assert process.wait(20) == 0
        assert time.monotonic() - began < 15
        accepted = answers.count("250") - (2 if len(answers) > 2 else 0) + 1
        with posthouse.serving():
            wait_until(lambda: delivered(posthouse) == accepted, "what was acknowledged to be delivered", 10)


@pytest.mark.slow
def test_a_content_that_never_ends_does_not_hold_up_the_end() -> None:
    with attacked() as (posthouse, process):
        stalled, trickling = Wire(posthouse.port), Wire(posthouse.port)
        for wire in (stalled, trickling):
            wire.ready_for_data("b@here.test")
            wire.send(BODY)
            wire.sock.settimeout(40)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        while process.poll() is None:
            assert time.monotonic() - began < 22
            with contextlib.suppress(OSError):
                trickling.send(b"x")
            time.sleep(0.2)
        assert process.returncode == 0
        for wire in (stalled, trickling):
            assert [reply[:3] for reply in wire.rest()] == ["421"]
        assert not delivered(posthouse)


@pytest.mark.slow
def test_a_next_hop_that_never_answers_does_not_hold_up_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        port = hanging.getsockname()[1]
        with attacked(LOCAL + route_to(f"smtp://127.0.0.1:{port}")) as (posthouse, process):
            wire = Wire(posthouse.port)
            wire.hello()
            wire.send(LETTER + BODY + b".\r\n")
            assert replies(wire, 4) == ["250", "250", "354", "250"]
            wire.close()
            next_hop, _ = hanging.accept()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            next_hop.close()
            (waiting,) = posthouse.json("queue", "list")["messages"]
            assert "far.test" in str(waiting), "it is tried again"


@pytest.mark.slow
def test_told_to_stop_twice_it_ends_at_once() -> None:
    with attacked() as (posthouse, process):
        wire = Wire(posthouse.port)
        wire.ready_for_data("b@here.test")
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None, "a content is arriving"
        process.send_signal(signal.SIGTERM)
        process.wait(5)


# Changes in the midst of things.


@pytest.mark.slow
def test_a_reload_within_a_transaction_changes_the_next_recipient_and_harms_nothing() -> None:
    with attacked() as (posthouse, _process):
        before, content = Wire(posthouse.port, STRANGER), Wire(posthouse.port, STRANGER)
        before.hello()
        before.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<b@here.test>\r\nRCPT TO:<b@new.test>\r\n")
        assert replies(before, 3) == ["250", "250", "550"]
        content.ready_for_data("b@here.test")
        content.send(BODY)
        text = posthouse.configuration.read_text()
        posthouse.configuration.write_text(text.replace('["here.test"]', '["here.test", "new.test"]', 1))
        posthouse.append(route_to(f"maildir:{posthouse.directory}/box", domain="new.test"))
        posthouse.command("reload")
        before.send(b"RCPT TO:<b@new.test>\r\nDATA\r\n" + BODY + b".\r\n")
        assert replies(before, 3) == ["250", "354", "250"]
        assert content.say(b".\r\n").startswith("250")
        wait_until(lambda: delivered(posthouse) == 3, "all to be delivered", 10)


@pytest.mark.slow
def test_what_a_reload_changes_in_a_listener_counts_for_the_next_connection() -> None:
    with attacked() as (posthouse, _process):
        old = Wire(posthouse.port)
        assert "SIZE 50000000" in old.hello()
        text = posthouse.configuration.read_text()
        listener = f'address = "127.0.0.1:{posthouse.port}"\n'
        changed = text.replace(listener, listener + 'role = "submission"\n') + '\n[limits]\nmessage_size = "1MB"\n'
        posthouse.configuration.write_text(changed)
        posthouse.command("reload")
        new = Wire(posthouse.port)
        assert "SIZE 1000000" in new.hello()
        assert new.say("MAIL FROM:<a@b.test>").startswith("530")
        proxied = text.replace(listener, listener + 'proxy = "required"\nproxies = ["127.0.0.9"]\n')
        posthouse.configuration.write_text(proxied)
        posthouse.command("reload")
        masked = Wire(posthouse.port)
        with contextlib.suppress(OSError):
            assert masked.sock.recv(1) == b"", "no session without a PROXY header any more"
        proxy = Wire(posthouse.port, "127.0.0.9")
        proxy.send(b"PROXY TCP4 192.0.2.7 127.0.0.1 0 0\r\n")
        proxy.hello()
        proxy.send(LETTER)
        assert replies(proxy, 2) == ["250", "550"]
        assert old.is_open()


@pytest.mark.slow
def test_relay_off_within_a_transaction_refuses_the_next_recipient_and_holds_what_was_taken() -> None:
    with attacked(LOCAL + route_to("smtp://127.0.0.1:9") + quick_retries()) as (posthouse, _process):
        wire = Wire(posthouse.port)
        wire.hello()
        wire.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<b@far.test>\r\n")
        assert replies(wire, 2) == ["250", "250"]
        posthouse.command("relay", "off")
        wire.send(b"RCPT TO:<c@far.test>\r\nRCPT TO:<c@here.test>\r\nDATA\r\n" + BODY + b".\r\n")
        assert replies(wire, 4) == ["450", "250", "354", "250"]
        wait_until(lambda: delivered(posthouse) == 1, "the local part to be delivered", 10)
        (waiting,) = posthouse.json("queue", "list")["messages"]
        assert "far.test" in str(waiting)
        posthouse.command("relay", "on")


# Logins.


@pytest.mark.slow
def test_guessing_passwords_is_throttled_for_its_address_alone() -> None:
    with attacked() as (posthouse, process):
        posthouse.command("user", "add", "anna", "--password-stdin", stdin="correct horse\n")
        wrong = "AUTH PLAIN AGFubmEAd3Jvbmc="
        codes: list[str] = []
        for _ in range(4):
            guesser = Wire(posthouse.port, STRANGER)
            guesser.hello()
            codes += [guesser.say(wrong)[:3] for _ in range(4)]
            guesser.close()
        assert codes == ["535"] * 10 + ["454"] * 6
        guesser = Wire(posthouse.port, STRANGER)
        guesser.hello()
        (worker,) = workers_of(process.pid)
        before = cpu_seconds(worker)
        for _ in range(3):
            assert guesser.say(wrong).startswith("454")
        assert cpu_seconds(worker) - before < 0.04, "nothing is hashed for it"  # each hash takes about 0.02
        anna = Wire(posthouse.port)
        anna.hello()
        assert anna.say("AUTH PLAIN AGFubmEAY29ycmVjdCBob3JzZQ==").startswith("235")


# Circles.


@pytest.mark.slow
def test_mail_that_is_routed_to_ourselves_ends_with_one_bounce_and_the_bounce_ends_too() -> None:
    with configured(LOCAL + quick_retries("1s") + "[limits]\nhops = 6\n") as posthouse:
        posthouse.append(route_to(f"smtp://127.0.0.1:{posthouse.port}"))
        posthouse.append(route_to(f"maildir:{posthouse.directory}/box", domain="here.test"))
        with posthouse.serving():
            wire = Wire(posthouse.port)
            wire.hello()
            wire.send(b"MAIL FROM:<a@here.test>\r\nRCPT TO:<b@far.test>\r\nDATA\r\n" + BODY + b".\r\n")
            assert replies(wire, 4) == ["250", "250", "354", "250"]
            wire.send(b"MAIL FROM:<a@far.test>\r\nRCPT TO:<b@far.test>\r\nDATA\r\n" + BODY + b".\r\n")
            assert replies(wire, 4) == ["250", "250", "354", "250"]
            wait_until(lambda: delivered(posthouse) == 1, "the bounce to the local sender", 20)
            wait_until(lambda: not posthouse.json("queue", "list")["messages"], "the queue to be empty", 20)
            bounce = next((posthouse.directory / "box" / "new").iterdir()).read_text()
            assert "Status: 5.4.6" in bounce
            said = posthouse.output()
            assert said.count('"notice-sent"') == 2, "one for each message, none for a bounce"
            assert said.count('"accepted"') < 40
            time.sleep(1.0)
            assert posthouse.output().count('"accepted"') == said.count('"accepted"'), "it goes on"
        assert delivered(posthouse) == 1


# Crowds.

MOST_WORK = 0.5
"""Seconds of processor time for one message among thousands of idle connections, whatever else the machine does."""

MOST_MEMORY = 150_000_000


def many(posthouse: Posthouse, count: int) -> list[socket.socket]:
    """Idle connections, 40 from each address."""
    found = []
    for number in range(count):
        block = number // 40
        source = (f"127.1.{block // 250}.{block % 250 + 1}", 0)
        found.append(socket.create_connection(("127.0.0.1", posthouse.port), timeout=20, source_address=source))
    return found


def crowd(count: int, settings: str = LOCAL) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * count:
        pytest.skip(f"not run: {count} connections need {2 * count} descriptors, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * count)), hard))
    with attacked(settings) as (posthouse, process):
        (worker,) = workers_of(process.pid)
        crowd_of = many(posthouse, count)
        try:
            for one in crowd_of:
                assert one.recv(4) == b"220 "
            before = cpu_seconds(worker)
            wire = Wire(posthouse.port)
            wire.hello()
            wire.send(TO_HERE + BODY + b".\r\n")
            assert replies(wire, 4) == ["250", "250", "354", "250"]
            wait_until(lambda: delivered(posthouse) == 1, "the message to be delivered", 60)
            assert cpu_seconds(worker) - before < MOST_WORK
            assert memory_of(worker) < MOST_MEMORY
            crowd_of[-1].sendall(b"EHLO c.test\r\nQUIT\r\n")
            assert b"221" in read_all(crowd_of[-1])
        finally:
            for one in crowd_of:
                one.close()
        wait_until(lambda: open_sessions(posthouse, wire) <= 1, "the crowd to be gone", 60)


def read_all(one: socket.socket) -> bytes:
    octets = b""
    while piece := one.recv(65536):
        octets += piece
    return octets


def open_sessions(posthouse: Posthouse, wire: Wire) -> int:
    """As another connection of the crowd sees it: none of its own address is counted any more."""
    assert wire.is_open()
    again: Sequence[socket.socket] = many(posthouse, 40)
    try:
        return sum(one.recv(4) != b"220 " for one in again)
    finally:
        for one in again:
            one.close()


@pytest.mark.slow
def test_two_thousand_idle_connections_do_not_delay_new_mail() -> None:
    crowd(2000)


@pytest.mark.slow
def test_nine_thousand_idle_connections_do_not_delay_new_mail() -> None:
    crowd(9000)


@pytest.mark.slow
def test_control_a_server_that_greets_fewer_is_noticed() -> None:
    with pytest.raises(AssertionError):
        crowd(2000, LOCAL + "[limits]\nconnections = 1000\n")
