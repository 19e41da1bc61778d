"""One message to a thousand recipients in fifty domains: when has the last one got it, and how many rows does it take?"""

import contextlib
import smtplib
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from findings import Finding
from own_ends import OwnSink, own_sink
from servers import SERVERS, Place, fresh_directory

from peer_programs import free_port

DOMAINS = 50


class Rows(threading.Thread):
    """The most rows that a queue had, looked at all the while."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(daemon=True)
        self._data_dir = data_dir
        self._ended = threading.Event()
        self.most = 0

    def run(self) -> None:
        databases = [
            sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
            for path in self._data_dir.glob("spool/*/queue.db")
        ]
        while not self._ended.wait(0.002):
            self.most = max(self.most, sum(_count(one) for one in databases))
        for one in databases:
            one.close()

    def end(self) -> int:
        self._ended.set()
        self.join()
        return self.most


def _count(database: sqlite3.Connection) -> int:
    with contextlib.suppress(sqlite3.OperationalError):
        return database.execute("SELECT (SELECT count(*) FROM message) + (SELECT count(*) FROM recipient)").fetchone()[
            0
        ]
    return 0


def _send(port: int, recipients: int) -> float:
    """The moment of the final dot, by the monotonic clock, as near as a client sees it."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.bench.test") as client:
        client.ehlo()
        client.mail("a@src.test")
        for number in range(recipients):
            code, words = client.rcpt(f"user{number}@d{number % DOMAINS}.test")
            if code != 250:
                raise RuntimeError(f"recipient {number} got {code} {words!r}")
        client.docmd("DATA")
        client.send(b"From: a@src.test\r\nSubject: to all\r\n\r\n" + (b"x" * 76 + b"\r\n") * 50 + b".\r\n")
        ended_at = time.monotonic()
        code, words = client.getreply()
        if code != 250:
            raise RuntimeError(f"the message got {code} {words!r}")
    return ended_at


def _wait(sink: OwnSink, recipients: int) -> float:
    end = time.monotonic() + 120
    while sink.recipients() < recipients:
        if time.monotonic() > end:
            raise TimeoutError(f"{sink.recipients()} of {recipients} recipients had it when time was over")
        time.sleep(0.002)
    return sink.last_at()


@contextlib.contextmanager
def _next_hops(own_site_each: bool) -> Iterator[tuple[OwnSink, tuple[tuple[str, str], ...]]]:
    """One sink: on one address for all domains, or on an address for each."""
    addresses = tuple(f"127.0.1.{number + 1}" for number in range(DOMAINS)) if own_site_each else ("127.0.0.1",)
    with own_sink(free_port(), addresses) as sink:
        if not own_site_each:
            yield sink, ()
            return
        routes = tuple((f"d{n}.test", f"smtp://{address}:{sink.port}") for n, address in enumerate(addresses))
        yield sink, routes


def _once(server: str, spool: str, recipients: int, own_site_each: bool) -> tuple[float, int, int]:
    """Seconds until the last recipient has it, transactions at the next hops, the most rows."""
    with fresh_directory(server, spool) as directory, _next_hops(own_site_each) as (sink, routes):
        place = Place(directory, free_port(), sink.port, routes=routes)
        with SERVERS[server](place):
            rows = Rows(place.data_dir)
            rows.start()
            ended_at = _send(place.port, recipients)
            seconds = _wait(sink, recipients) - ended_at
            return seconds, sink.count(), rows.end()


def measure(runs: int, spool: str, recipients: int) -> list[Finding]:
    """Posthouse with one next hop for all domains and with one for each; Postfix with the one."""
    found: list[Finding] = []
    ways = (
        ("posthouse", False, "one next hop"),
        ("postfix", False, "one next hop"),
        ("posthouse", True, f"{DOMAINS} next hops"),
    )
    results: dict[tuple[str, bool], list[tuple[float, int, int]]] = {way[:2]: [] for way in ways}
    for number in range(runs):
        for server, own_site_each, words in ways:
            one = _once(server, spool, recipients, own_site_each)
            results[server, own_site_each].append(one)
            print(f"run {number + 1}, {server}, {words}: {one[0]:.3f} s", file=sys.stderr)
    part = f"{recipients:,} recipients, {DOMAINS} domains"
    for server, own_site_each, words in ways:
        of = results[server, own_site_each]
        found.append(Finding(part, f"{server}, {words}: end of data to the last delivery", "s", [one[0] for one in of]))
        found.append(Finding(part, f"{server}, {words}: transactions", "", [one[1] for one in of]))
        if server == "posthouse":
            found.append(Finding(part, f"{server}, {words}: rows at most", "", [one[2] for one in of]))
    return found
