"""Asking a server that isn't there, isn't ours, or doesn't answer: each has its own sentence."""

import os
import threading
from pathlib import Path

import pytest

from posthouse.net.listen import listen_unix
from posthouse.serve.control import ControlError, NoAnswer, ServerNotRunning, ask


def _answer_once(path: Path, answer: bytes) -> threading.Thread:
    listening = listen_unix(path / "control.sock", 0o600)
    listening.setblocking(True)

    def serve() -> None:
        with listening, listening.accept()[0] as one:
            one.recv(4096)
            one.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize("leftover", [False, True])
def test_no_server_is_said_although_a_dead_one_left_its_socket(tmp_path: Path, leftover: bool) -> None:
    if leftover:
        listen_unix(tmp_path / "control.sock", 0o600).close()
    with pytest.raises(ServerNotRunning, match="start one with `posthouse serve`"):
        ask(tmp_path, "status")


def test_answer_and_refusal_are_told_apart(tmp_path: Path) -> None:
    thread = _answer_once(tmp_path, b'{"result": {"relay": "on"}}\n')
    assert ask(tmp_path, "relay-status") == {"relay": "on"}
    thread.join()
    thread = _answer_once(tmp_path, b'{"error": "not today"}\n')
    with pytest.raises(ControlError, match="not today") as refused:
        ask(tmp_path, "reload")
    assert not isinstance(refused.value, NoAnswer)
    thread.join()


def test_server_that_ends_while_it_is_asked_gave_no_answer(tmp_path: Path) -> None:
    thread = _answer_once(tmp_path, b'{"result"')
    with pytest.raises(NoAnswer, match="ended while it was asked to reload"):
        ask(tmp_path, "reload")
    thread.join()


def test_server_that_hangs_gave_no_answer(tmp_path: Path) -> None:
    with (
        listen_unix(tmp_path / "control.sock", 0o600),
        pytest.raises(NoAnswer, match=r"did not answer status within 0\.1 s"),
    ):
        ask(tmp_path, "status", timeout=0.1)


def test_socket_of_another_user_is_closed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    tmp_path.chmod(0o711)
    with listen_unix(tmp_path / "control.sock", 0o600):
        child = os.fork()
        if child == 0:
            os.chdir(tmp_path)
            os.setresuid(65534, 65534, 65534)
            try:
                ask(Path(), "status")
            except NoAnswer as error:
                os._exit(0 if "closed to this user" in str(error) else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
