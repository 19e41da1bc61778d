"""The web's process: it dies alone, comes again, follows reloads, and forgets no result."""

import os
import signal
from pathlib import Path

import pytest

from peer_programs import free_port, greets, wait_until
from posthouse.serve.control import ask
from posthouse.tester.verdict import HostVerdict
from posthouse_server import ADDRESS
from visiting import Site, host, refusing, site

slow = pytest.mark.slow


def status(web: Site) -> dict[str, object]:
    found: dict[str, object] = ask(web.server.data_dir, "status")["web"]
    return found


def test_dead_web_is_started_again_and_the_relay_does_not_notice() -> None:
    with site() as web:
        before = status(web)
        niceness = os.getpriority(os.PRIO_PROCESS, int(str(before["pid"])))
        assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10), "mail goes first"
        workers = [one["pid"] for one in ask(web.server.data_dir, "status")["workers"]]
        os.kill(int(str(before["pid"])), signal.SIGKILL)
        assert greets(ADDRESS, web.server.port)
        wait_until(
            lambda: status(web)["state"] == "ready" and status(web)["pid"] != before["pid"], "another web process"
        )
        assert web.visit("/health").status == 200
        assert [one["pid"] for one in ask(web.server.data_dir, "status")["workers"]] == workers


@slow
def test_result_outlives_a_restart() -> None:
    with site() as web, host(refusing(), web.mail_port) as caller:
        test = web.visit("/test-me", caller=caller, accept="application/json").test
        assert ask(web.server.data_dir, "metrics")["metrics"]["posthouse_web_tests"] == [[["closed"], 1]]
        before = web.visit(test.links.document).test
        wait_until((web.server.data_dir / "web" / "tests.db").exists, "the store")
        os.kill(int(str(status(web)["pid"])), signal.SIGTERM)  # which only the supervisor may mean
        assert web.visit("/health").status == 200
        os.kill(int(str(status(web)["pid"])), signal.SIGKILL)
        wait_until(lambda: status(web)["restarts"] == 1 and status(web)["state"] == "ready", "another web process")
        after = web.visit(test.links.document).test
        assert after == before
        assert "Closed to strangers" in web.visit(test.links.page).text
        assert web.visit(test.links.events).text.count("event: case\n") == len(after.reports[0].results)


@slow
def test_reload_changes_settings_in_place_and_addresses_by_moving() -> None:
    with site(web="tests_per_address = 1") as web, host(refusing(), web.mail_port) as caller:
        assert web.visit("/test-me", caller=caller).status == 200
        assert web.visit("/test-me", caller=caller).status == 429
        pid = status(web)["pid"]
        text = web.server.configuration.read_text()
        web.server.configuration.write_text(text.replace("tests_per_address = 1", "tests_per_address = 5"))
        web.server.command("reload")
        assert status(web)["pid"] == pid
        assert web.visit("/test-me", caller=caller, accept="application/json").test.verdict is HostVerdict.CLOSED
        moved = free_port(ADDRESS)
        text = web.server.configuration.read_text()
        web.server.configuration.write_text(
            text.replace(f'listen = "{ADDRESS}:{web.port}"', f'listen = "{ADDRESS}:{moved}"')
        )
        web.server.command("reload")
        old, web.port = web.port, moved
        assert web.visit("/health").status == 200
        web.port = old
        with pytest.raises(OSError, match="refused"):
            web.visit("/health")


@slow
def test_web_ends_with_its_supervisor() -> None:
    with site() as web:
        pid = int(str(status(web)["pid"]))
        os.kill(int(str(ask(web.server.data_dir, "status")["pid"])), signal.SIGKILL)
        wait_until(
            lambda: not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text(), "its end"
        )


@slow
def test_reload_can_take_the_web_away_and_bring_it_back() -> None:
    with site() as web:
        text = web.server.configuration.read_text()
        web.server.configuration.write_text(text.partition("[web]")[0])
        web.server.command("reload")
        assert status(web) == {}
        with pytest.raises(OSError, match="refused"):
            web.visit("/health")
        web.server.configuration.write_text(text)
        web.server.command("reload")
        assert web.visit("/health").status == 200


@slow
def test_web_address_in_use_is_one_plain_sentence() -> None:
    with site() as web, site(web="") as other:
        text = other.server.configuration.read_text()
        other.server.configuration.write_text(text.replace(f"{ADDRESS}:{other.port}", f"{ADDRESS}:{web.port}"))
        refused = other.server.command("reload", check=False)
        assert refused.returncode == 1
        assert f"{ADDRESS}:{web.port} is in use" in refused.stderr + refused.stdout
        assert other.visit("/health").status == 200
