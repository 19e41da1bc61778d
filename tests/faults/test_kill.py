"""SIGKILL at random moments under load: what was acknowledged arrives, whatever is killed and when.

25 kills by default; more by `POSTHOUSE_KILLS=200 ./run-tests tests/faults/test_kill.py -s`.
"""

import contextlib
import os
import random
import re
import signal
import smtplib
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from peer_programs import free_port, wait_until
from posthouse_server import ADDRESS, Posthouse, configured, quick_retries, route_to

KILLS = int(os.environ.get("POSTHOUSE_KILLS", "25"))
CLIENTS = 4
LONGEST_UPTIME = 0.8  # seconds between ready and the kill
_ID = re.compile(rb"^X-Id: (\S+)\r?$", re.MULTILINE)


class Counting:
    """A next hop that remembers what it has taken."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        found = _ID.search(envelope.original_content or b"")
        self.taken[found[1].decode() if found else "?"] += 1
        return "250 OK"


class Client(threading.Thread):
    """Hands in one message after the other and remembers which were acknowledged."""

    def __init__(self, number: int, port: int, ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self._number = number
        self._port = port
        self._ended = ended
        self._next = 0
        self.acknowledged: list[str] = []

    def run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError, smtplib.SMTPException), smtplib.SMTP(timeout=10) as session:
                session.connect(ADDRESS, self._port)
                while not self._ended.is_set():
                    self._hand_in(session)
            time.sleep(0.02)

    def _hand_in(self, session: smtplib.SMTP) -> None:
        self._next += 1
        name = f"{self._number}-{self._next}"
        # Now and then one that is kept beside the database, and one with a file of its own.
        size = 2_000_000 if self._next % 50 == 0 else 100_000 if self._next % 10 == 0 else 500
        session.sendmail(
            "a@src.test", ["b@dst.test"], f"X-Id: {name}\r\nSubject: x\r\n\r\n{'x' * 70}\r\n" + "y\r\n" * (size // 3)
        )
        self.acknowledged.append(name)


def workers_of(supervisor: int) -> list[int]:
    """The processes that a supervisor has started and that still run."""
    return [int(pid) for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill(what: str, supervisor: int) -> None:
    """Kills one worker, the supervisor, or all of them at once."""
    workers = workers_of(supervisor)
    if what == "worker":
        os.kill(random.choice(workers), signal.SIGKILL)
        return
    if what == "supervisor":
        os.kill(supervisor, signal.SIGKILL)
    else:
        os.killpg(supervisor, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, workers)), "the workers to end", 35)


def run_and_kill(server: Posthouse) -> None:
    """Starts the server, lets it work for a moment, and kills some part of it."""
    what = random.choice(("all", "all", "supervisor", "worker"))
    with server.serving() as process:
        time.sleep(random.uniform(0, LONGEST_UPTIME))
        kill(what, process.pid)
        if what == "worker":
            time.sleep(random.uniform(0, LONGEST_UPTIME))
            kill("all", process.pid)


@pytest.mark.slow
def test_every_acknowledged_message_arrives_however_often_the_server_is_killed() -> None:
    handler = Counting()
    sink = Controller(handler, hostname=ADDRESS, port=free_port(), server_hostname="sink.test")
    sink.start()
    ended = threading.Event()
    try:
        with configured(route_to(f"smtp://{ADDRESS}:{sink.port}") + quick_retries(), workers=2) as server:
            clients = [Client(number, server.port, ended) for number in range(CLIENTS)]
            for client in clients:
                client.start()
            for _ in range(KILLS):
                run_and_kill(server)
            ended.set()
            for client in clients:
                client.join()
            acknowledged = {name for client in clients for name in client.acknowledged}
            assert len(acknowledged) > KILLS
            with server.serving():
                with contextlib.suppress(AssertionError):
                    wait_until(lambda: acknowledged <= handler.taken.keys(), "all that was acknowledged", 60)
                lost = acknowledged - handler.taken.keys()
                duplicates = sum(count - 1 for count in handler.taken.values())
                print(
                    f"{KILLS} kills: {len(acknowledged)} acknowledged, {len(lost)} lost, "
                    f"{len(handler.taken.keys() - acknowledged)} arrived without having been acknowledged, {duplicates} duplicates"
                )
                assert not lost, sorted(lost)[:20]
                assert "?" not in handler.taken
    finally:
        ended.set()
        sink.stop()
