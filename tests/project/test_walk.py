"""A new user's way: from a fresh clone with nothing installed to mail through a smart host, as the pages lead there.

The README's first command is walked here; the second, ./run-tests, runs this, and from a clean clone too when .ci/run does.
Needs a package index that pip reaches: the clone makes its own .venv.
"""

import contextlib
import json
import os
import re
import smtplib
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peer_programs import IN_CI, free_port, running, wait_until
from posthouse_server import ADDRESS, STRANGER, write_certificate

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_PORT = 2525
PASSWORD = "correct horse battery staple"
NOT_THE_USERS = ("VIRTUAL_ENV", "POSTHOUSE_CALLED", "CI")

pytestmark = pytest.mark.slow


class Clone:
    """A clone, and its program as a new user types it there. `home` is that user's."""

    def __init__(self, directory: Path, home: Path) -> None:
        self.directory = directory
        self.home = home
        self.variables = {
            name: value
            for name, value in os.environ.items()
            if name not in NOT_THE_USERS and not name.startswith(("PYTEST_", "PYTHON", "XDG_", "COV_"))
        }
        self.variables |= {"HOME": str(home), "PIP_CACHE_DIR": str(_pip_cache())}

    def run(self, *words: str, stdin: str = "", status: int = 0, seconds: int = 60) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["./posthouse", *words],
            cwd=self.directory,
            env=self.variables,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == status, f"posthouse {words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json").stdout)

    @contextlib.contextmanager
    def serving(self, output: Path, *words: str) -> Iterator[None]:
        """`serve` until the block ends; then SIGTERM, and it ends as it should."""
        output.mkdir(exist_ok=True)
        command = ["sh", "-c", 'cd "$0" && exec ./posthouse serve "$@"', str(self.directory), *words]

        def is_ready() -> bool:
            return any(line.startswith(b"ready") for line in (output / "output").read_bytes().splitlines())

        with running(command, is_ready, output, self.variables) as process:
            yield
            process.terminate()
            assert process.wait(30) == 0


def _pip_cache() -> Path:
    """Where pip keeps what it has fetched before, under this test's own home."""
    return Path(os.environ.get("PIP_CACHE_DIR") or Path.home() / ".cache" / "pip")


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    directory, home = tmp_path / "clone", tmp_path / "home"
    home.mkdir()
    if not (CHECKOUT / ".git").exists():
        pytest.skip("this is no git checkout that could be cloned")
    subprocess.run(["git", "clone", "--quiet", "--local", str(CHECKOUT), str(directory)], check=True, timeout=60)
    assert not (directory / ".venv").exists()
    return Clone(directory, home)


def _install(clone: Clone) -> None:
    """What the first call of ./posthouse does by itself; apart, so that a missing package index is told from a fault."""
    try:
        first = clone.run("--version", seconds=300)
    except AssertionError as error:
        unreachable = re.search(r"No matching distribution|Could not find a version|[Cc]onnection|Retrying", str(error))
        if IN_CI or not unreachable:
            raise
        pytest.skip("pip reaches no package index here, so a fresh clone can't install anything")
    assert "installing" in first.stderr
    assert "installing" not in clone.run("--version").stderr


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
        except OSError:
            return False
        return True


def _walk_first_sight(clone: Clone, tmp_path: Path) -> None:
    """The first command, and the demo."""
    if _is_free(DEFAULT_PORT):
        with clone.serving(tmp_path / "first"):
            assert _recipient_answer(DEFAULT_PORT, ADDRESS).startswith("250 ")
        told = (tmp_path / "first" / "output").read_text()
        assert f"{ADDRESS}:{DEFAULT_PORT}" in told
        assert str(clone.home / ".local" / "state" / "posthouse") in told
    else:
        assert str(DEFAULT_PORT) in clone.run("serve", status=2).stderr
    shown = clone.run("demo", seconds=120).stdout
    assert "250 2.0.0 Queued as " in shown
    assert "550 5.7.1 Relaying to friends.example is denied for 127.0.0.2" in shown
    assert "./posthouse init" in shown.splitlines()[-1]


def _set_up_smart_host(clone: Clone, directory: Path) -> tuple[int, str]:
    """Another Posthouse of the same clone, which demands a login; its port and its --config."""
    directory.mkdir()
    port, config = free_port(), directory / "posthouse.toml"
    clone.run(
        "init", "--yes", "--config", str(config), "--hostname", "smart.example", "--data-dir", str(directory / "data"),
        "--listen", f"{ADDRESS}:{port}", "--local-domain", "friends.example",
    )  # fmt: skip
    certificate, key, _ = write_certificate(directory)
    submission = f'role = "submission"\ntls = {{ certificate = "{certificate}", key = "{key}" }}\n'
    _edit(config, lambda text: text.replace('role = "relay"\n', submission, 1))
    clone.run("user", "add", "near", "--password-stdin", "--config", str(config), stdin=f"{PASSWORD}\n")
    return port, str(config)


def _edit(file: Path, change: Callable[[str], str]) -> None:
    before = file.read_text()
    after = change(before)
    assert after != before
    file.write_text(after)


def _trust(clone: Clone, *networks: str) -> None:
    line = f"trusted_networks = {json.dumps(networks)}"
    _edit(clone.directory / "posthouse.toml", lambda text: re.sub(r"(?m)^trusted_networks = .*", line, text))


def _send(port: int, subject: str) -> str:
    """Sends a mail to ann; its queue id."""
    with smtplib.SMTP(ADDRESS, port, "client.example", timeout=30) as client:
        client.ehlo()
        client.mail("you@near.example")
        assert client.rcpt("ann@friends.example")[0] == 250
        code, words = client.data(f"From: you@near.example\r\nSubject: {subject}\r\n\r\nHello.\r\n")
    assert code == 250
    return words.decode().split()[-1]


def _recipient_answer(port: int, client_address: str) -> str:
    """The answer to a RCPT for elsewhere; nothing is sent."""
    with smtplib.SMTP(ADDRESS, port, "client.example", timeout=30, source_address=(client_address, 0)) as client:
        client.ehlo()
        client.mail("you@near.example")
        code, words = client.rcpt("ann@friends.example")
        client.rset()
    return f"{code} {words.decode()}"


def test_a_new_users_way_leads_from_a_clone_to_a_relay_with_a_smart_host(clone: Clone, tmp_path: Path) -> None:
    _install(clone)
    installed = _files(clone.home)  # not ours: pip has rustc tell its version, which may note something there
    assert not (clone.home / ".local").exists()
    _walk_first_sight(clone, tmp_path)
    far, far_config = _set_up_smart_host(clone, tmp_path / "far")
    mailbox = tmp_path / "far" / "data" / "mail" / "ann" / "new"

    def arrived() -> list[str]:
        return [file.read_text() for file in mailbox.glob("*")]

    near = free_port()
    clone.run(
        "init", "--hostname", "near.example", "--data-dir", str(tmp_path / "near"), "--listen", f"{ADDRESS}:{near}",
        "--smart-host", f"{ADDRESS}:{far}", "--smart-host-user", "near", "--smart-host-password-stdin",
        stdin=f"{PASSWORD}\n",
    )  # fmt: skip
    clone.run("check")
    with clone.serving(tmp_path / "output"):
        with clone.serving(tmp_path / "far", "--config", far_config):
            clone.run("trace", "--connect", "ann@friends.example")
            _send(near, "first")
            wait_until(lambda: len(arrived()) == 1, "the first mail to arrive")
            assert "with ESMTPSA" in arrived()[0]
            (used,) = clone.json("usage", "--config", far_config)["usage"]
            assert (used["login"], used["messages"]) == ("near", 1)

        held = _send(near, "second")
        wait_until(lambda: _state(clone, held) == "deferred", "the second mail to be put off")
        clone.run("queue", "hold", held)
        with clone.serving(tmp_path / "far", "--config", far_config):
            assert "release" in clone.run("queue", "retry", held, status=1).stderr
            assert _state(clone, held) == "held"
            assert len(arrived()) == 1
            clone.run("queue", "release", held)
            wait_until(lambda: len(arrived()) == 2, "the released mail to arrive")
        wait_until(lambda: not clone.json("queue", "list")["messages"], "the queue to be empty")
        assert "relayed" in clone.run("why", held).stdout

        _trust(clone, ADDRESS, "0.0.0.0/0")
        assert "reload refused" in clone.run("reload", status=1).stderr
        assert _recipient_answer(near, STRANGER).startswith("550 5.7.1 ")
        assert _recipient_answer(near, ADDRESS).startswith("250 ")
        _trust(clone, ADDRESS, STRANGER)
        assert STRANGER in clone.run("reload").stdout
        assert _recipient_answer(near, STRANGER).startswith("250 ")
    assert _files(clone.home / ".local" / "state" / "posthouse") >= _files(clone.home) - installed


def _state(clone: Clone, queue_id: str) -> str:
    entries = clone.json("queue", "list")["messages"]
    return next((one["recipients"][0]["state"] for one in entries if one["queue_id"] == queue_id), "gone")


def _files(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if not path.is_dir()}
