"""Workers are forks of the fork server: what each inherits, and who ends when which of them is killed."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fault_syscalls import is_alive
from posthouse.serve.control import ask
from posthouse.serve.start import EXIT_BROKEN
from posthouse_server import children_of, configured, fork_server_of, workers_of
from serve_fake import greeting, serving, until, write_config


def _sockets(pid: int) -> set[str]:
    found = (os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir())
    return {name for name in found if name.startswith("socket:")}


def _restarts(directory: Path) -> list[int]:
    workers = ask(directory, "status")["workers"]
    return [one["restarts"] for one in workers if one["state"] == "ready"]


def test_worker_has_its_own_sockets_and_nobody_elses(tmp_path: Path) -> None:
    with serving(write_config(tmp_path)) as server:
        server.ready()
        supervisor = server.process.pid
        fork_server, (one, other) = fork_server_of(supervisor), workers_of(supervisor)
        (submit,) = _sockets(one) & _sockets(other)
        assert submit in _sockets(supervisor)
        for worker in (one, other):
            assert len(_sockets(worker) & _sockets(supervisor)) == 2, "its listener and the local socket"
            assert not _sockets(worker) & _sockets(fork_server)
        assert len(_sockets(fork_server)) == 1
        assert not _sockets(fork_server) & _sockets(supervisor)
        for pid in (fork_server, one, other):
            assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
            assert os.getpgid(pid) == fork_server, "Ctrl-C in a terminal is for the supervisor"


def test_nothing_is_inherited_above_a_lowered_limit(tmp_path: Path) -> None:
    with open(os.devnull) as nothing:
        high = fcntl.fcntl(nothing, fcntl.F_DUPFD, 500)
    lowered = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400)); os.execv(sys.argv[1], sys.argv[1:])"
    try:
        with serving(write_config(tmp_path), prefix=[sys.executable, "-c", lowered], pass_fds=[high]) as server:
            server.ready()
            supervisor = server.process.pid
            assert Path(f"/proc/{supervisor}/fd/{high}").exists()
            for pid in (fork_server_of(supervisor), *workers_of(supervisor)):
                assert not Path(f"/proc/{pid}/fd/{high}").exists()
    finally:
        os.close(high)


def test_worker_has_more_listeners_than_go_into_one_message(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, listeners=70, workers=1)) as server:
        ports = server.ready()
        assert len(ports) == 70
        assert all(greeting(port).startswith("220 worker 0") for port in ports)


def test_workers_have_more_listeners_than_a_socket_takes_at_once(tmp_path: Path) -> None:
    with serving(write_config(tmp_path, listeners=500, workers=8)) as server:
        ports = server.ready()
        assert len(ports) == 500
        assert greeting(ports[-1]).startswith("220 worker ")


def test_worker_does_not_speak_to_systemd(tmp_path: Path) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "60000000", "HOME": "/"}
    with serving(write_config(tmp_path, workers=1), env=env) as server:
        assert " environment ['HOME'] " in greeting(server.ready()[0])


def test_workers_start_where_the_end_of_children_is_ignored(tmp_path: Path) -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    with serving(write_config(tmp_path), prefix=[sys.executable, "-c", ignoring]) as server:
        server.ready()
        os.kill(workers_of(server.process.pid)[0], signal.SIGKILL)
        until(lambda: sum(_restarts(tmp_path / "data")) == 1 and len(_restarts(tmp_path / "data")) == 2)
        assert server.stop() == 0


_NO_ORPHANS = """
import sys
from posthouse.cli import main
from posthouse.serve import fork_server
honest = fork_server._prctl
fork_server._prctl = lambda option, *values: -1 if option == 36 else honest(option, *values)
main()
"""


def test_server_ends_where_the_kernel_gives_it_no_orphans(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _NO_ORPHANS, "serve", "--config", str(write_config(tmp_path))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == EXIT_BROKEN
    assert "posthouse: can't start a worker process: the kernel refuses PR_SET_CHILD_SUBREAPER: " in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_supervisor_learns_by_which_signal_a_worker_ended(tmp_path: Path, number: signal.Signals) -> None:
    with serving(write_config(tmp_path)) as server:
        server.ready()
        worker = ask(tmp_path / "data", "status")["workers"][1]["pid"]
        os.kill(worker, number)
        until(lambda: _restarts(tmp_path / "data") == [0, 1])
        assert re.search(rf'"worker-ended","worker":1,"status":{-number}\b', server.said)


def test_nobody_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    with serving(write_config(tmp_path)) as server:
        server.ready()
        left = [fork_server_of(server.process.pid), *workers_of(server.process.pid)]
        assert len(left) == 3
        server.process.kill()
        until(lambda: not any(map(is_alive, left)))


def test_nobody_is_left_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    with serving(write_config(tmp_path)) as server:
        server.ready()
        left = [fork_server_of(server.process.pid), *workers_of(server.process.pid)]
        assert server.stop() == 0
        assert not any(map(is_alive, left))


def test_killed_fork_server_takes_nobody_along_and_another_comes_when_it_is_needed(tmp_path: Path) -> None:
    with serving(write_config(tmp_path)) as server:
        server.ready()
        supervisor = server.process.pid
        for restarts in (1, 2):  # the first was forked from the supervisor, the second is a program of its own
            fork_server, workers = fork_server_of(supervisor), workers_of(supervisor)
            os.kill(fork_server, signal.SIGKILL)
            until(lambda number=restarts: server.said.count("fork-server-ended") == number)
            assert workers_of(supervisor) == workers
            os.kill(ask(tmp_path / "data", "status")["workers"][1]["pid"], signal.SIGKILL)
            until(lambda number=restarts: _restarts(tmp_path / "data") == [0, number])
            assert fork_server_of(supervisor) not in {0, fork_server}
            assert len(children_of(supervisor)) == 3
        assert server.stop() == 0


_KILLED_IN_A_BIRTH = """
import asyncio, os, signal, socket, sys
from posthouse.serve import fork_server as one, worker

def killed(*wanted):
    bear(*wanted)
    os.kill(os.getpid(), signal.SIGKILL)

async def scene(server):
    ours, theirs = socket.socketpair()
    with theirs, ours:
        try:
            await server.start(one.Role.WORKER, [theirs.fileno(), theirs.fileno()])
        except OSError as error:
            print(error, flush=True)
    await asyncio.to_thread(sys.stdin.read)

worker.main = lambda channel_fd, sockets_fd: len(socket.socket(fileno=channel_fd).recv(1))
bear, one._bear = one._bear, killed
asyncio.run(scene(one.ForkServer([one.Role.WORKER])))
"""


def test_who_is_born_when_the_fork_server_is_killed_ends_and_is_buried() -> None:
    command = [sys.executable, "-c", _KILLED_IN_A_BIRTH]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "the fork server ended\n"
        until(lambda: children_of(process.pid) == [])
        process.stdin.close()
        assert process.wait(20) == 0


def test_program_that_a_killed_worker_leaves_behind_is_not_the_supervisors() -> None:
    route = '[[route]]\ndomain = "*"\nto = "pipe:"\ncommand = ["/bin/sleep", "60"]\n'
    with configured(route, workers=1) as server, server.serving() as process:
        server.command("sendmail", "-f", "a@relay.test", "b@elsewhere.test", stdin="Subject: x\n\nx\n")
        (worker,) = workers_of(process.pid)
        (program,) = until(lambda: children_of(worker))
        try:
            os.kill(worker, signal.SIGKILL)
            until(lambda: _parent_of(program) != worker)
            assert _parent_of(program) != process.pid, "nobody would bury it there"
        finally:
            os.kill(program, signal.SIGKILL)


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
