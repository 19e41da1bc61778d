"""The server whole, as it is run: real workers, real mail, real signals."""

import json
import os
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from email import message_from_bytes
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message

from posthouse.serve.control import ControlError, ask
from posthouse_server import write_certificate
from serve_fake import serving, until, write_config

LOCAL = """
[relay]
local_domains = ["here.example"]
trusted_networks = ["127.0.0.1"]

[[route]]
domain = "here.example"
to = ["maildir:{box}"]

[[route]]
domain = "*"
to = ["smtp://127.0.0.1:{port}"]

[retry]
first = "1s"
longest = "1s"
factor = 1.0
"""


class Sink(Message):
    """A next hop that takes all mail; `subjects` in the order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.subjects: list[str] = []

    def handle_message(self, message: object) -> None:
        self.subjects.append(str(message["subject"]))  # type: ignore[index]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def sink_port() -> int:
    """A port on which no next hop listens yet."""
    return _free_port()


def _listen(port: int) -> tuple[Controller, Sink]:
    sink = Sink()
    controller = Controller(sink, hostname="127.0.0.1", port=port)
    controller.start()
    return controller, sink


@pytest.fixture
def config(tmp_path: Path, sink_port: int) -> Path:
    return write_config(tmp_path, LOCAL.format(box=tmp_path / "box", port=sink_port), workers=1)


def _send(port: int, to: str, subject: str, source: str = "127.0.0.1") -> None:
    with smtplib.SMTP("127.0.0.1", port, source_address=(source, 0), timeout=20) as client:
        client.sendmail("me@mx.example.org", to, f"Subject: {subject}\r\n\r\nHello.\r\n")


def _box(tmp_path: Path) -> list[str]:
    return [str(message_from_bytes(one.read_bytes())["subject"]) for one in (tmp_path / "box" / "new").glob("*")]


def _posthouse(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "posthouse", *arguments, "--config", str(config)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def _workers(data: Path) -> dict[int, int]:
    return {one["worker"]: one["pid"] for one in ask(data, "status")["workers"] if one["state"] == "ready"}


@pytest.mark.slow
def test_mail_is_delivered_and_the_server_ends_with_0(config: Path, tmp_path: Path) -> None:
    with serving(config, is_fake=False) as server:
        (port,) = server.ready()
        _send(port, "you@here.example", "local")
        until(lambda: _box(tmp_path) == ["local"])
        assert server.stop() == 0
    assert "Traceback" not in server.said


def test_killed_worker_resumes_its_shard(config: Path, tmp_path: Path, sink_port: int) -> None:
    config.write_text(config.read_text().replace("workers = 1", "workers = 2"))
    with serving(config, is_fake=False) as server:
        (port,) = server.ready()
        for n in range(8):
            _send(port, "you@there.example", f"n{n}")
        before = _workers(tmp_path / "data")
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(now := _workers(tmp_path / "data")) == 2 and not set(now.values()) & set(before.values()))
        controller, sink = _listen(sink_port)
        try:
            until(lambda: sorted(sink.subjects) == [f"n{n}" for n in range(8)], 30)
        finally:
            controller.stop()
        assert server.stop() == 0


@pytest.mark.slow
def test_fewer_workers_adopt_the_shards_of_the_others(config: Path, tmp_path: Path, sink_port: int) -> None:
    config.write_text(config.read_text().replace("workers = 1", "workers = 2"))
    with serving(config, is_fake=False) as server:
        (port,) = server.ready()
        for n in range(8):
            _send(port, "you@there.example", f"n{n}")
        assert server.stop() == 0
    config.write_text(config.read_text().replace("workers = 2", "workers = 1"))
    controller, sink = _listen(sink_port)
    try:
        with serving(config, is_fake=False) as server:
            server.ready()
            until(lambda: sorted(sink.subjects) == [f"n{n}" for n in range(8)], 30)
            assert server.stop() == 0
    finally:
        controller.stop()


def test_relay_off_leaves_local_delivery_alone_and_holds_the_rest_until_on(
    config: Path, tmp_path: Path, sink_port: int
) -> None:
    with serving(config, is_fake=False) as server:
        (port,) = server.ready()
        _send(port, "you@there.example", "before")
        done = _posthouse(config, "relay", "off")
        assert (done.returncode, done.stdout.split(":")[0]) == (0, "relay is off")
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
            _send(port, "you@there.example", "while off")
        assert next(iter(refused.value.recipients.values()))[0] >= 400
        _send(port, "you@here.example", "local")
        until(lambda: _box(tmp_path) == ["local"])
        controller, sink = _listen(sink_port)
        try:
            time.sleep(1.5)  # longer than the retry: nothing must come
            assert sink.subjects == []
            assert _posthouse(config, "relay", "status").returncode == 1
            assert json.loads(_posthouse(config, "relay", "on", "--json").stdout) == {"relay": "on", "running": True}
            until(lambda: sink.subjects == ["before"])
            _send(port, "you@there.example", "after")
            until(lambda: sink.subjects == ["before", "after"])
        finally:
            controller.stop()
        assert server.stop() == 0


@pytest.mark.slow
def test_what_an_operator_does_to_a_message_is_in_the_log(config: Path) -> None:
    with serving(config, is_fake=False) as server:
        (port,) = server.ready()
        _send(port, "you@there.example", "x")
        (queue_id,) = json.loads(_posthouse(config, "queue", "hold", "--all", "--json").stdout)["changed"]
        _posthouse(config, "queue", "reroute", queue_id, "--to", "smtp://192.0.2.1:26")
        until(lambda: "operator-reroute" in server.said)
        told = [json.loads(line) for line in server.lines if '"operator-' in line]
        assert [(each["event"], each["queue_id"]) for each in told] == [
            ("operator-hold", queue_id),
            ("operator-reroute", queue_id),
        ]
        assert told[1]["next_hop"] == "smtp://192.0.2.1:26"


@pytest.mark.slow
def test_relay_off_without_a_server_holds_from_the_next_start(config: Path) -> None:
    done = _posthouse(config, "relay", "off")
    assert done.returncode == 0, done.stderr
    assert "from the next start" in done.stdout
    with serving(config, is_fake=False) as server:
        (port,) = server.ready()
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            _send(port, "you@there.example", "x")
        assert server.stop() == 0
    status = json.loads(_posthouse(config, "relay", "status", "--json").stdout)
    assert (status["relay"], status["running"], status["suspended"]) == ("off", False, [])


def test_reload_changes_who_may_relay_and_open_sessions_go_on(config: Path, tmp_path: Path) -> None:
    with serving(config, is_fake=False) as server:
        (port,) = server.ready()
        with smtplib.SMTP("127.0.0.1", port, source_address=("127.0.0.2", 0), timeout=20) as stranger:
            stranger.ehlo("stranger.example")
            stranger.mail("a@stranger.example")
            assert stranger.rcpt("you@there.example")[0] == 550
            config.write_text(config.read_text().replace('["127.0.0.1"]', '["127.0.0.1", "127.0.0.2"]'))
            done = _posthouse(config, "reload")
            assert done.returncode == 0, done.stderr
            assert "127.0.0.2 may now relay anywhere" in done.stdout
            assert stranger.noop()[0] == 250
        _send(port, "you@there.example", "now", source="127.0.0.2")
        config.write_text(config.read_text().replace('"127.0.0.2"]', '"0.0.0.0/0"]'))
        done = _posthouse(config, "reload", "--json")
        assert done.returncode == 1
        assert "open relay" in json.loads(done.stdout)["refused_because"]
        _send(port, "you@there.example", "still", source="127.0.0.2")
        assert server.stop() == 0
    done = _posthouse(config, "reload")
    assert done.returncode == 2


@pytest.mark.slow
def test_reload_with_an_unusable_certificate_is_refused_with_its_name(config: Path, tmp_path: Path) -> None:
    with serving(config, is_fake=False) as server:
        server.ready()
        for name in ("cert.pem", "key.pem"):
            (tmp_path / name).write_text("not a certificate\n")
        config.write_text(
            config.read_text()
            + f'[[listener]]\naddress = "127.0.0.1:{_free_port()}"\ntls = {{ certificate = "cert.pem", key = "key.pem" }}\n'
        )
        with pytest.raises(ControlError, match=r"cert\.pem"):
            ask(tmp_path / "data", "reload")
        assert server.stop() == 0


def test_sighup_puts_a_new_certificate_in_force_and_open_sessions_go_on(config: Path, tmp_path: Path) -> None:
    write_certificate(tmp_path)
    tls = f'tls = {{ certificate = "{tmp_path}/cert.pem", key = "{tmp_path}/key.pem" }}'
    config.write_text(config.read_text() + f'[[listener]]\naddress = "127.0.0.1:{_free_port()}"\n{tls}\n')
    with serving(config, is_fake=False) as server:
        port = server.ready()[1]
        (old,) = _certificates(port)
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.starttls()
            write_certificate(tmp_path)
            server.signal(signal.SIGHUP)
            until(lambda: _certificates(port) != [old])
            client.sendmail("me@mx.example.org", "you@here.example", "Subject: under the old one\r\n\r\n")
        until(lambda: _box(tmp_path) == ["under the old one"])
        assert server.stop() == 0


def _certificates(port: int) -> list[bytes]:
    """What a new session gets by STARTTLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.starttls(context=context)
        assert isinstance(client.sock, ssl.SSLSocket)
        return [client.sock.getpeercert(binary_form=True) or b""]


def test_sigterm_answers_what_is_under_way_and_says_421_to_the_idle(config: Path, tmp_path: Path) -> None:
    with serving(config, is_fake=False) as server:
        (port,) = server.ready()
        idle = smtplib.SMTP("127.0.0.1", port, timeout=20)
        idle.ehlo("idle.example")
        writing = smtplib.SMTP("127.0.0.1", port, timeout=20)
        writing.ehlo("writing.example")
        writing.mail("a@mx.example.org")
        writing.rcpt("you@here.example")
        writing.putcmd("data")
        assert writing.getreply()[0] == 354
        writing.send(b"Subject: half\r\n\r\nHalf a mail")
        whole = smtplib.SMTP("127.0.0.1", port, timeout=20)
        whole.ehlo("whole.example")
        whole.mail("a@mx.example.org")
        whole.rcpt("you@here.example")
        whole.putcmd("data")
        assert whole.getreply()[0] == 354
        whole.send(b"Subject: whole\r\n\r\nA whole mail.\r\n.\r\n")
        server.signal(signal.SIGTERM)
        assert whole.getreply()[0] == 250
        assert idle.getreply()[0] == 421
        writing.send(b", and its end.\r\n.\r\n")
        assert writing.getreply()[0] == 250
        assert server.wait() == 0
        for one in (idle, writing, whole):
            one.close()
    with serving(config, is_fake=False) as server:  # what was accepted while it stopped is on disk, and goes on
        server.ready()
        until(lambda: sorted(_box(tmp_path)) == ["half", "whole"])
        assert server.stop() == 0
    assert "Traceback" not in server.said


@pytest.mark.slow
def test_usage_report_reaches_the_postmaster_over_the_local_socket(config: Path, tmp_path: Path) -> None:
    config.write_text('postmaster = "pm@here.example"\n' + config.read_text())
    with serving(config, is_fake=False) as server:
        (port,) = server.ready()
        _send(port, "you@here.example", "hello")
        until(lambda: _box(tmp_path) == ["hello"])
        until(lambda: json.loads(_posthouse(config, "usage", "--json").stdout)["messages"] == 1)
        done = _posthouse(config, "usage", "--mail")
        assert done.returncode == 0, done.stderr
        until(lambda: "Who relayed through mx.example.org" in _box(tmp_path))
        assert server.stop() == 0


@pytest.mark.slow
def test_weekly_report_goes_out_by_itself_when_a_week_has_passed(config: Path, tmp_path: Path) -> None:
    config.write_text('postmaster = "pm@here.example"\n' + config.read_text())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "usage-sent").write_text(f"{time.time() - 8 * 86400:.0f}\n")
    with serving(config, is_fake=False) as server:
        server.ready()
        until(lambda: "Who relayed through mx.example.org" in _box(tmp_path))
        until(lambda: time.time() - float((tmp_path / "data" / "usage-sent").read_text()) < 60)
        assert server.stop() == 0


def test_metrics_of_real_mail_add_up(config: Path, tmp_path: Path) -> None:
    with serving(config, is_fake=False) as server:
        (port,) = server.ready()
        for n in range(4):
            _send(port, "you@here.example", f"n{n}")
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            _send(port, "you@there.example", "x", source="127.0.0.2")
        until(lambda: len(_box(tmp_path)) == 4)

        def snapshot() -> dict[str, dict[tuple[str, ...], object]]:
            found = ask(tmp_path / "data", "metrics")["metrics"]
            return {name: {tuple(labels): value for labels, value in series} for name, series in found.items()}

        until(lambda: sum(v for k, v in snapshot()["posthouse_attempts"].items() if k[0] == "delivered") == 4)  # type: ignore[misc]
        seen = snapshot()
        assert seen["posthouse_messages_accepted"] == {(): 4}
        assert seen["posthouse_decisions"]["relay-denied",] == 1
        assert sum(seen["posthouse_sessions"].values()) == 5  # type: ignore[arg-type]
        assert sum(seen["posthouse_sync_seconds"][()]["counts"]) >= 1  # type: ignore[index]
        until(lambda: snapshot()["posthouse_queue_messages"] == {(): 0})
        assert server.stop() == 0
