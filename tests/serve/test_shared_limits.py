"""Limits that are exact whatever the number of workers: a real server, several workers, counted from outside."""

import base64
import contextlib
import os
import signal
import smtplib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from counting_hop import CountingHop, counting_hop
from posthouse.serve.control import ask
from posthouse_server import ADDRESS, Posthouse, configured, quick_retries, route_to
from serve_fake import until


@contextlib.contextmanager
def relaying_to(hop: CountingHop, workers: int, concurrency: int = 3) -> Iterator[Posthouse]:
    settings = route_to(f"smtp://{ADDRESS}:{hop.port}", more=f"concurrency = {concurrency}") + quick_retries()
    with configured(settings, workers=workers) as server, server.serving():
        yield server


def submit(server: Posthouse, subjects: list[str]) -> None:
    """Each over a connection of its own, which the kernel gives to any worker."""
    for subject in subjects:
        with smtplib.SMTP(ADDRESS, server.port, timeout=30) as client:
            client.sendmail("a@here.test", ["b@there.test"], f"Subject: {subject}\r\n\r\nhello\r\n")


def submit_from_many(server: Posthouse, subjects: list[str], clients: int = 8) -> None:
    threads = [threading.Thread(target=submit, args=(server, subjects[n::clients])) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def workers_of(server: Posthouse) -> dict[int, int]:
    found = ask(server.data_dir, "status")["workers"]
    return {one["worker"]: one["pid"] for one in found if one["state"] == "ready"}


def test_workers_together_open_no_more_connections_to_a_site_than_its_route_allows() -> None:
    subjects = [f"message {number}" for number in range(240)]
    with counting_hop() as hop, relaying_to(hop, workers=3) as server:
        submit_from_many(server, subjects)
        until(lambda: len(hop.subjects) == len(subjects), 60)
        assert sorted(hop.subjects) == sorted(subjects)
        assert hop.most == 3  # not two, and not the four of a share rounded up
        assert hop.connections > 30


def test_one_connection_goes_round_among_the_workers() -> None:
    subjects = [f"message {number}" for number in range(60)]
    with counting_hop(messages=1000, pause=0.02) as hop, relaying_to(hop, workers=3, concurrency=1) as server:
        submit_from_many(server, subjects)
        until(lambda: len(hop.subjects) == len(subjects), 60)
        assert hop.most == 1


def test_a_site_that_refuses_one_worker_is_left_alone_by_the_others_until_it_answers_again() -> None:
    with counting_hop() as hop:
        hop.is_refusing = True
        settings = route_to(f"smtp://{ADDRESS}:{hop.port}") + quick_retries("10m")
        with configured(settings, workers=3) as server, server.serving():
            submit(server, ["first"])
            until(lambda: "site-closed" in server.output())
            tried = hop.connections
            submit(server, [f"message {number}" for number in range(20)])
            until(lambda: server.output().count("accepted") >= 21)
            (first, *_others) = server.json("queue", "list")["messages"]
            assert hop.connections == tried
            hop.is_refusing = False
            server.command("queue", "retry", first["queue_id"])
            until(lambda: hop.subjects == ["first"])
            until(lambda: submit(server, ["later"]) or hop.subjects.count("later") >= 12, 30)  # by every worker


@pytest.mark.slow
def test_limit_of_a_site_holds_while_workers_are_killed() -> None:
    subjects = [f"message {number}" for number in range(400)]
    with counting_hop(pause=0.02) as hop, relaying_to(hop, workers=3) as server:
        submit_from_many(server, subjects[:300])
        for number in range(3):
            os.kill(workers_of(server)[number], signal.SIGKILL)
            until(lambda: len(workers_of(server)) == 3)
        submit_from_many(server, subjects[300:])
        until(lambda: set(hop.subjects) == set(subjects), 60)  # what was under way may come twice
        assert hop.most == 3


@pytest.mark.slow
def test_limit_of_a_site_holds_when_the_supervisor_is_killed_and_started_again_at_once() -> None:
    subjects = [f"message {number}" for number in range(200)]
    with counting_hop(messages=20) as hop, relaying_to(hop, workers=3) as server:
        hop.pause = 10.0  # the old workers stay as long as they may, to hear what becomes of these
        submit_from_many(server, subjects)
        os.kill(ask(server.data_dir, "status")["pid"], signal.SIGKILL)
        hop.pause = 0.02
        with server.serving():
            until(lambda: set(hop.subjects) == set(subjects), 60)
            assert hop.most == 3


def test_a_reload_changes_how_many_connections_all_workers_open() -> None:
    subjects = [f"message {number}" for number in range(150)]
    with counting_hop(pause=0.02) as hop, relaying_to(hop, workers=2, concurrency=6) as server:
        submit_from_many(server, subjects[:50])
        until(lambda: len(hop.subjects) == 50, 30)
        assert hop.most > 2
        text = server.configuration.read_text()
        server.configuration.write_text(text.replace("concurrency = 6", "concurrency = 2"))
        submit_from_many(server, subjects[50:])
        server.command("reload")
        until(lambda: hop.alive() <= 2, 20)
        hop.most = 0
        until(lambda: len(hop.subjects) == len(subjects), 60)
        assert hop.most <= 2


GUESSER = "127.0.0.9"


def log_in(server: Posthouse, login: str, password: str, address: str = GUESSER) -> int:
    """The reply's code, over a connection of its own."""
    with smtplib.SMTP(ADDRESS, server.port, timeout=30, source_address=(address, 0)) as client:
        client.ehlo("client.test")
        return client.docmd("AUTH PLAIN", base64.b64encode(f"\0{login}\0{password}".encode()).decode())[0]


def test_failed_logins_are_counted_over_all_workers() -> None:
    with configured(route_to(f"smtp://{ADDRESS}:9"), workers=3) as server:
        server.command("user", "add", "jane", "--password-stdin", stdin="correct horse\n")
        with server.serving(), ThreadPoolExecutor(6) as clients:
            codes = list(clients.map(lambda n: log_in(server, "jane", f"guess {n}"), range(40)))
            assert codes.count(535) == 10  # by whichever worker
            assert codes.count(454) == 30
            assert log_in(server, "jane", "correct horse") == 454
            codes = list(clients.map(lambda _: log_in(server, "jane", "correct horse", "127.0.0.8"), range(30)))
            assert codes == [235] * 30  # more than ten at once, all of them right


STRANGER = "127.0.0.7"


class Call:
    """A stranger's connection. `is_greeted` unless it was refused at once."""

    def __init__(self, server: Posthouse) -> None:
        self._socket = socket.create_connection((ADDRESS, server.port), timeout=30, source_address=(STRANGER, 0))
        self._lines = self._socket.makefile("rb")
        self.is_greeted = self._lines.readline().startswith(b"220")

    def is_served(self) -> bool:
        """It may still say something."""
        with contextlib.suppress(OSError):
            self._socket.sendall(b"NOOP\r\n")
            return self._lines.readline().startswith(b"250")
        return False

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def test_one_client_gets_no_more_connections_from_all_workers_than_from_one() -> None:
    limits = "[limits]\nconnections_per_client = 20\n"
    with configured(limits + route_to(f"smtp://{ADDRESS}:9"), workers=3) as server, server.serving():
        with ThreadPoolExecutor(60) as clients:
            calls = list(clients.map(lambda _: Call(server), range(60)))
        until(lambda: sum(call.is_served() for call in calls) == 20)
        assert not Call(server).is_greeted
        for call in calls:
            call.close()
        until(lambda: Call(server).is_greeted)
