"""The supervisor by itself, over stand-in workers: start, restart, reload, relay option, end; what is refused, and how."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import posthouse
from posthouse.serve.control import ControlError, ServerNotRunning, ask
from serve_fake import Server, greeting, serving, until, write_config


def _pids(directory: Path) -> dict[int, int]:
    return {
        one["worker"]: one["pid"] for one in ask(directory / "data", "status")["workers"] if one["state"] == "ready"
    }


def _both_workers(port: int) -> set[str]:
    seen: set[str] = set()
    until(lambda: seen.add(greeting(port).split()[2]) or len(seen) == 2)
    return seen


def test_ready_line_comes_when_all_workers_accept_and_sigterm_ends_with_0(tmp_path: Path) -> None:
    with serving(write_config(tmp_path)) as server:
        (port,) = server.ready()
        assert _both_workers(port) == {"0", "1"}
        status = ask(tmp_path / "data", "status")
        assert status["pid"] == server.process.pid
        assert [one["state"] for one in status["workers"]] == ["ready", "ready"]
        assert status["listeners"] == [{"address": f"127.0.0.1:{port}", "role": "relay"}]
        pids = _pids(tmp_path).values()
        assert server.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not (tmp_path / "data" / "control.sock").exists()
    with pytest.raises(ServerNotRunning, match="posthouse serve"):
        ask(tmp_path / "data", "status")


def test_killed_worker_is_restarted_and_the_other_goes_on(tmp_path: Path) -> None:
    with serving(write_config(tmp_path)) as server:
        (port,) = server.ready()
        before = _pids(tmp_path)
        os.kill(before[0], signal.SIGKILL)
        after = until(lambda: (pids := _pids(tmp_path)) and len(pids) == 2 and pids[0] != before[0] and pids)
        assert after[1] == before[1]
        assert _both_workers(port) == {"0", "1"}
        workers = ask(tmp_path / "data", "status")["workers"]
        assert [one["restarts"] for one in workers] == [1, 0]
        assert server.stop() == 0


@pytest.mark.slow
def test_connection_that_comes_while_its_worker_is_down_waits_for_the_next(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, workers=1)) as server:
        (port,) = server.ready()
        os.kill(_pids(tmp_path)[0], signal.SIGKILL)
        assert greeting(port).startswith("220 worker 0")


def test_sync_error_in_one_worker_stops_the_whole_server_with_a_status(tmp_path: Path) -> None:
    with serving(write_config(tmp_path)) as server:
        server.ready()
        pids = _pids(tmp_path)
        (tmp_path / "data" / "sync-fails-1").touch()
        assert server.wait() == 74
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
        assert "sync-failed" in server.said


def test_workers_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    with serving(write_config(tmp_path)) as server:
        (port,) = server.ready()
        pids = _pids(tmp_path).values()
        server.process.kill()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        with pytest.raises(ConnectionRefusedError):
            greeting(port)


@pytest.mark.slow
def test_hanging_worker_delays_the_end_only_until_the_second_sigterm(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, workers=1)) as server:
        server.ready()
        (tmp_path / "data" / "stop-slowly").touch()
        server.signal(signal.SIGTERM)
        until(lambda: "stopping" in server.said)
        assert server.process.poll() is None
        server.signal(signal.SIGTERM)
        began = time.monotonic()
        assert server.wait() == 0
        assert time.monotonic() - began < 5


def test_second_server_on_the_same_data_is_refused_and_names_the_first(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, workers=1)) as server:
        server.ready()
        with serving(tmp_path / "posthouse.toml") as second:
            assert second.wait() == 2
            assert second.said.count("\n") == 1
            assert f"pid {server.process.pid}" in second.said
        assert greeting(server.ready()[0])


def test_port_in_use_is_one_plain_sentence_with_the_address(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, workers=1)) as server:
        (port,) = server.ready()
        other = tmp_path / "other"
        other.mkdir()
        config = write_config(other, workers=1)
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        with serving(config) as second:
            assert second.wait() == 2
            assert second.said.startswith(f"posthouse: 127.0.0.1:{port} is in use by another program")
            assert second.said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("127.0.0.1:0", "192.0.2.77:2525"), "no address 192.0.2.77"),
        (("hostname", "hostnam"), "hostnam"),
        (("workers = 2", 'workers = 2\nuser = "nobody-at-all"'), "nobody-at-all"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_2(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace(*change))
    with serving(config) as server:
        assert server.wait() == 2
        assert words in server.said
        assert server.said.count("\n") == 1
        assert server.said.startswith("posthouse: ")


def test_open_relay_is_refused_before_anything_listens_or_is_made(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, '[relay]\ntrusted_networks = ["0.0.0.0/0"]\n', workers=1)) as server:
        assert server.wait() == 2
        assert "would make an open relay" in server.said
    assert not (tmp_path / "data").exists()


def test_worker_that_refuses_to_start_is_a_sentence_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "refuse-start").touch()
    with serving(write_config(tmp_path, workers=1)) as server:
        assert server.wait() == 2
        assert "the spool is locked by pid 1" in server.said


@pytest.mark.slow
def test_worker_that_dies_at_the_start_is_not_tried_for_ever(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "die-at-start").touch()
    with serving(write_config(tmp_path, workers=1)) as server:
        assert server.wait() == 70
        assert "before it was ready" in server.said


def test_data_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory of another user")
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 12345, 12345)
    with serving(write_config(tmp_path, workers=1)) as server:
        assert server.wait() == 2
        assert "belongs to uid 12345" in server.said


@pytest.mark.slow
def test_shards_of_a_time_with_more_workers_are_adopted(tmp_path: Path) -> None:
    for shard in (0, 1, 2, 5):
        (tmp_path / "data" / "spool" / str(shard)).mkdir(parents=True)
    with serving(write_config(tmp_path)) as server:
        (port,) = server.ready()
        seen: dict[str, str] = {}
        until(
            lambda: seen.update([re.search(r"worker (\d).*shards (.*)\r", greeting(port)).groups()]) or len(seen) == 2
        )  # type: ignore[union-attr]
        assert seen == {"0": "(0, 2)", "1": "(1, 5)"}


@pytest.mark.slow
def test_relay_off_reaches_all_workers_and_survives_a_restart(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with serving(config) as server:
        (port,) = server.ready()
        assert ask(tmp_path / "data", "relay-status")["relay"] == "on"
        assert ask(tmp_path / "data", "relay-off") == {"relay": "off"}
        assert all("relay False" in greeting(port) for _ in range(8))
        os.kill(_pids(tmp_path)[0], signal.SIGKILL)
        until(lambda: len(_pids(tmp_path)) == 2)
        assert all("relay False" in greeting(port) for _ in range(8))
        assert server.stop() == 0
    with serving(config) as server:
        (port,) = server.ready()
        assert "relay False" in greeting(port)
        assert ask(tmp_path / "data", "relay-on") == {"relay": "on"}
        assert all("relay True" in greeting(port) for _ in range(8))


def test_reload_puts_a_new_configuration_in_force_in_all_workers_and_says_what_changes(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with serving(config) as server:
        (port,) = server.ready()
        config.write_text(config.read_text() + '[relay]\ntrusted_networks = ["127.0.0.1", "10.0.0.0/8"]\n')
        changes = ask(tmp_path / "data", "reload")["changes"]
        assert any("10.0.0.0/8 may now relay anywhere" in one for one in changes)
        assert all("generation 1" in greeting(port) for _ in range(8))


def test_sighup_reloads(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, workers=1)) as server:
        (port,) = server.ready()
        server.signal(signal.SIGHUP)
        until(lambda: "generation 1" in greeting(port))
        server.signal(signal.SIGHUP)
        until(lambda: "generation 2" in greeting(port))


def test_refused_reload_leaves_the_old_in_force(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[relay]\n")
    good = config.read_text()
    with serving(config) as server:
        (port,) = server.ready()
        for old, new, words in (
            ("[relay]", '[relay]\ntrusted_networks = ["0.0.0.0/0"]', "would make an open relay"),
            ("[relay]", "[relai]", "relai"),
            ("workers = 2", "workers = 3", "restart"),
            ("127.0.0.1:0", "192.0.2.77:2525", "no address 192.0.2.77"),
        ):
            config.write_text(good.replace(old, new))
            with pytest.raises(ControlError, match=words):
                ask(tmp_path / "data", "reload")
            assert "generation 0" in greeting(port)
        before = _pids(tmp_path)
        os.kill(before[0], signal.SIGKILL)  # a worker restarted now runs what is in force, not what the file says
        until(lambda: (pids := _pids(tmp_path)) and len(pids) == 2 and pids[0] != before[0])
        assert _both_workers(port) == {"0", "1"}


def test_reload_that_one_worker_refuses_happens_in_none(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with serving(config) as server:
        (port,) = server.ready()
        (tmp_path / "data" / "refuse-prepare-1").touch()
        config.write_text(config.read_text() + '[[listener]]\naddress = "127.0.0.2:0"\n')
        with pytest.raises(ControlError, match="a certificate can't be read"):
            ask(tmp_path / "data", "reload")
        assert all("generation 0" in greeting(port) for _ in range(8))
        (tmp_path / "data" / "refuse-prepare-1").unlink()
        ask(tmp_path / "data", "reload")
        assert all("generation 1" in greeting(port) for _ in range(8))


def test_reload_opens_new_listeners_keeps_old_ones_and_closes_what_is_gone(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with serving(config) as server:
        (port,) = server.ready()
        with socket.socket() as spare:
            spare.bind(("127.0.0.3", 0))
            other = spare.getsockname()[1]
        text = config.read_text()
        config.write_text(f'{text}[[listener]]\naddress = "127.0.0.3:{other}"\n')
        ask(tmp_path / "data", "reload")
        seen = {greeting(other, "127.0.0.3").split()[2] for _ in range(30)}
        assert seen == {"0", "1"}
        assert "generation 1" in greeting(port)
        os.kill(_pids(tmp_path)[1], signal.SIGKILL)
        until(lambda: len(_pids(tmp_path)) == 2)
        assert {greeting(other, "127.0.0.3").split()[2] for _ in range(30)} == {"0", "1"}
        config.write_text(text)
        ask(tmp_path / "data", "reload")
        with pytest.raises(ConnectionRefusedError):
            greeting(other, "127.0.0.3")
        assert greeting(port)


def test_acts_on_the_queue_go_to_the_worker_that_holds_the_message(tmp_path: Path) -> None:
    from posthouse.mail.envelope import QueueIds, queue_id_text

    ids = [queue_id_text(QueueIds(shard).next(1_700_000_000_000)) for shard in (0, 1, 3)]
    with serving(write_config(tmp_path)) as server:
        server.ready()
        answer = ask(tmp_path / "data", "queue-hold", ids=ids)
        assert sorted(answer["ids"]) == sorted(ids)
        assert ask(tmp_path / "data", "queue-hold", ids=ids[:1])["workers"] == [0]
        assert ask(tmp_path / "data", "queue-hold", ids=ids[2:])["workers"] == [1]
        assert sorted(ask(tmp_path / "data", "queue-hold", destination="x.org")["workers"]) == [0, 1]
        with pytest.raises(ControlError, match="not a queue id"):
            ask(tmp_path / "data", "queue-hold", ids=["!"])
        with pytest.raises(ControlError, match="knows no queue-eat"):
            ask(tmp_path / "data", "queue-eat", ids=ids)


def test_first_sight_names_where_for_whom_and_one_line_to_try(tmp_path: Path) -> None:
    from posthouse.config import default_config
    from posthouse.serve.first_sight import describe

    lines = "\n".join(describe(default_config(), ["127.0.0.1:2525"]))
    assert "127.0.0.1:2525" in lines
    assert "550 5.7.1" in lines
    assert str(default_config().data_dir) in lines
    tried = re.search(r"try +(python3.*)", lines)
    assert tried
    subprocess.run(["sh", "-nc", tried[1]], check=True)


def test_systemd_is_told_ready_reloading_and_stopping(tmp_path: Path) -> None:
    name = tmp_path / "n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(name))
        told.settimeout(10)
        env = {"NOTIFY_SOCKET": str(name), "WATCHDOG_USEC": "300000"}
        with serving(write_config(tmp_path, workers=1), env=env) as server:
            seen = _told_until(told, "READY=1")
            assert "STATUS=accepting mail on 127.0.0.1:" in seen
            assert "WATCHDOG=1" in _told_until(told, "WATCHDOG=1")
            server.signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in _told_until(told, "RELOADING=1")
            _told_until(told, "READY=1")
            server.signal(signal.SIGTERM)
            _told_until(told, "STOPPING=1")
            assert server.wait() == 0


def _told_until(told: socket.socket, wanted: str) -> str:
    while True:
        message = told.recv(4096).decode()
        if wanted in message.split("\n"):
            return message


_HAND_OVER = """
import os, socket, sys
count = int(sys.argv[1])
for n in range(count):
    os.dup2(int(sys.argv[2 + n]), 3 + n)
    os.set_inheritable(3 + n, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES="smtp:other")
os.execv(sys.executable, [sys.executable, *sys.argv[2 + count:]])
"""


def test_sockets_from_systemd_are_matched_by_address_and_shared(tmp_path: Path) -> None:
    with socket.socket() as smtp, socket.socket() as other:
        for one in (smtp, other):
            one.bind(("127.0.0.1", 0))
            one.listen()
        port = smtp.getsockname()[1]
        config = write_config(tmp_path, '[[listener]]\naddress = "127.0.0.2:0"\n')
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        high = [os.dup2(one.fileno(), 50 + n) for n, one in enumerate((smtp, other))]
        prefix = [sys.executable, "-c", _HAND_OVER, "2", *map(str, high)]
        program = [str(Path(__file__).parent.parent / "serve_fake.py"), str(config)]
        server = Server([*prefix, *program], pass_fds=high)
        for fd in high:
            os.close(fd)
        try:
            ports = server.ready()
            assert ports[0] == port
            smtp.close()
            assert greeting(port).startswith("220 worker")
            assert greeting(ports[1], "127.0.0.2").startswith("220 worker")
            until(lambda: "socket-unused" in server.said)
            os.kill(_pids(tmp_path)[0], signal.SIGKILL)
            until(lambda: len(_pids(tmp_path)) == 2)
            assert greeting(port).startswith("220 worker")
            assert server.stop() == 0
        finally:
            server.end()


@pytest.mark.slow
def test_metrics_endpoint_adds_the_workers_and_survives_their_death(tmp_path: Path) -> None:
    with socket.socket() as spare:
        spare.bind(("127.0.0.1", 0))
        port = spare.getsockname()[1]
    with serving(write_config(tmp_path, f'[metrics]\nlisten = "127.0.0.1:{port}"\n')) as server:
        (smtp,) = server.ready()
        for _ in range(10):
            greeting(smtp)
        assert _get(port, "/health") == ("HTTP/1.1 200 OK", "ok\n")
        body = _get(port, "/metrics")[1]
        assert 'posthouse_sessions_total{listener="127.0.0.1:25"} 10.0' in body
        assert "posthouse_workers 2.0" in body
        for pid in _pids(tmp_path).values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(_pids(tmp_path)) == 2)
        greeting(smtp)
        body = _get(port, "/metrics")[1]
        assert 'posthouse_sessions_total{listener="127.0.0.1:25"} 11.0' in body
        assert "posthouse_worker_restarts_total 2.0" in body
        assert _get(port, "/")[0] == "HTTP/1.1 404 Not Found"


def _get(port: int, path: str) -> tuple[str, str]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with one.makefile("rb") as answer:
            head, _, body = answer.read().decode().partition("\r\n\r\n")
    return head.split("\r\n")[0], body


@pytest.mark.slow
def test_data_path_too_long_for_a_socket_address_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with serving(write_config(deep, workers=1)) as server:
        server.ready()
        assert ask(deep / "data", "relay-status")["relay"] == "on"


def test_nonsense_on_the_control_socket_is_answered_in_words(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, workers=1)) as server:
        server.ready()
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(10)
            one.connect(str(tmp_path / "data" / "control.sock"))
            with one.makefile("rwb") as lines:
                for line in (b"hello\n", b"[]\n", b"{}\n", b'{"verb": "dance"}\n'):
                    lines.write(line)
                    lines.flush()
                    assert "error" in json.loads(lines.readline())
        assert greeting(server.ready()[0])


def test_sockets_and_data_have_the_modes_that_keep_strangers_out(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, workers=1)) as server:
        server.ready()
        data = tmp_path / "data"
        modes = {
            name: (data / name).stat().st_mode & 0o777 for name in (".", "lock", "control.sock", "submit.sock", "spool")
        }
        assert modes == {".": 0o711, "lock": 0o600, "control.sock": 0o600, "submit.sock": 0o666, "spool": 0o700}


_DROP = """
import re, os
from posthouse.serve.privileges import Identity
Identity("nobody").assume()
status = open("/proc/self/status").read()
print(re.findall(r"(?:Uid|Gid|Groups|CapEff|NoNewPrivs):.*", status))
try:
    os.setuid(0)
except PermissionError:
    print("no way back")
"""


def test_root_becomes_the_user_for_good() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give it up")
    done = subprocess.run([sys.executable, "-c", _DROP], check=True, capture_output=True, text=True, timeout=30)
    assert re.search(r"Uid:\\t(\d+)\\t\1\\t\1\\t\1'", done.stdout)
    assert re.search(r"CapEff:\\t0+'", done.stdout)
    assert "NoNewPrivs:\\t1" in done.stdout
    assert "Uid:\\t0" not in done.stdout
    assert "no way back" in done.stdout


def test_server_refuses_a_user_who_can_not_read_the_program() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give it up")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = write_config(directory)
        config.write_text('user = "nobody"\n' + config.read_text())
        shutil.copytree(Path(posthouse.__file__).parent, directory / "hidden" / "posthouse")
        with serving(
            config, is_fake=False, env={"PYTHONPATH": os.pathsep.join((str(directory / "hidden"), *sys.path))}
        ) as server:
            assert server.wait() == 2
            assert re.search(r"posthouse: \"user\" is 'nobody', who can't read /\S+: install it where", server.said)


def test_server_started_by_root_serves_as_the_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give it up")
    as_nobody: dict[str, object] = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
    try:
        subprocess.run(
            [sys.executable, "-c", "import posthouse.serve.start"], check=True, capture_output=True, **as_nobody
        )  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the user nobody can't read this Python")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        config = write_config(directory)
        config.write_text('user = "nobody"\n' + config.read_text())
        with serving(config) as server:
            (port,) = server.ready()
            for pid in (server.process.pid, *_pids(directory).values()):
                assert re.search(r"Uid:\s+65534\s+65534\s+65534\s+65534", Path(f"/proc/{pid}/status").read_text())
            assert greeting(port)
            assert server.stop() == 0
