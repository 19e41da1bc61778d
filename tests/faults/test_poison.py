"""Messages that kill the worker that sends them: set aside after a few deaths, with a reason, and the rest flows.

Three by default, one a way to die; more by `tests/faults/long.py --poison N`.
"""

import os
from pathlib import Path

import pytest

from fault_poison import poison_often
from fault_sabotage import CURED, install
from peer_programs import wait_until
from posthouse.serve.control import ask
from posthouse.spool.under_way import MOST_DEATHS
from posthouse_server import Posthouse, configured, route_to
from siege import BODY, Wire

POISONS = int(os.environ.get("POSTHOUSE_POISONS", "3"))

pytestmark = pytest.mark.slow


def test_a_message_that_kills_its_worker_is_set_aside_and_the_rest_flows() -> None:
    found = poison_often(POISONS)
    print(found)
    assert found.set_aside == ["poisoned"] * POISONS
    assert found.innocent == 0
    assert found.deaths <= POISONS * (MOST_DEATHS + 2)
    assert (
        found.deaths_on_release <= 2 * POISONS
    )  # one more try each; together with what was under way at a first death
    assert found.passed > 10 * POISONS
    assert not found.findings.problems, found.findings.problems


def test_control_without_notes_of_what_is_under_way_it_kills_for_ever() -> None:
    found = poison_often(1, sabotage="no-journal", most_deaths=12)
    print(found)
    assert found.deaths == 12, f"the programme measures nothing: {found}"
    assert found.set_aside == []


def test_a_server_sets_poison_aside_tells_why_and_tries_it_once_more_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", install(tmp_path, "poison"))
    monkeypatch.setenv(CURED, str(tmp_path / "cured"))
    with configured("[relay]\nlocal_domains = ['here.test']\n") as server:
        server.append(route_to(f"maildir:{tmp_path}/box", domain="here.test"))
        with server.serving():
            send(server.port, b"X-Poison: segv\r\n" + BODY)
            wait_until(lambda: server.json("queue", "list", "--state", "held")["messages"], "it to be set aside", 60)
            (entry,) = server.json("queue", "list")["messages"]
            shown = server.command("queue", "show", entry["queue_id"]).stdout
            assert "queue release" in shown
            assert "the worker died" in server.command("why", entry["queue_id"]).stdout
            send(server.port, BODY)
            wait_until(lambda: delivered(tmp_path) == 1, "other mail to flow")
            wait_until(lambda: restarts(server) == MOST_DEATHS + 2, "the worker to be there")
            server.command("queue", "release", entry["queue_id"])
            wait_until(lambda: server.output().count("set-aside") == 2, "it to be set aside again", 60)
            wait_until(lambda: restarts(server) == MOST_DEATHS + 3, "the worker to be there again", 60)
            (tmp_path / "cured").touch()
            server.command("queue", "release", entry["queue_id"])
            wait_until(lambda: delivered(tmp_path) == 2, "the cured one to be delivered", 60)
            assert restarts(server) == MOST_DEATHS + 3


def restarts(server: Posthouse) -> int:
    """Of the worker, which is ready now; -1 while it isn't."""
    (worker,) = ask(server.data_dir, "status")["workers"]
    return worker["restarts"] if worker["state"] == "ready" else -1


def send(port: int, octets: bytes) -> None:
    """To a mailbox here; acknowledged."""
    wire = Wire(port)
    wire.ready_for_data("b@here.test")
    wire.send(octets + b".\r\n")
    assert wire.reply().startswith("250")
    wire.close()


def delivered(directory: Path) -> int:
    """Messages in the mailbox."""
    box = directory / "box" / "new"
    return len(list(box.iterdir())) if box.is_dir() else 0
