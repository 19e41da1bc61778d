"""How long an answer takes at a moderate rate: by itself, beside a destination that is ill, and among thousands that are idle."""

import contextlib
import resource
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

from findings import Finding
from own_ends import OwnSink, Sent, finish, own_sink, send, start_source
from own_sink import Behaviour
from own_source import percentile
from servers import SERVERS, Place, fresh_directory, posthouse

from peer_programs import free_port

RATE = 100
"""Messages a second."""

IDLE_RATE = 50
IDLE_MEMORY_MB = 150
PROMPT_MS = 100
TWICE = 2
_FROM_ONE_ADDRESS = 25
"""Idle connections; the server allows 50 from one address, in each worker."""


def _at_rate(port: int, seconds: float, *options: str, rate: float = RATE) -> list[str]:
    return ["--rate", str(rate), "--count", str(max(int(rate * seconds), 1)), *options]


def quiet(runs: int, spool: str, seconds: float) -> list[Finding]:
    """End of data to 250, and sending to arrival, for both servers in turn."""
    answers: dict[str, list[Sent]] = {name: [] for name in SERVERS}
    ways: dict[str, list[list[float]]] = {name: [] for name in SERVERS}
    for number in range(runs):
        for name, serving in SERVERS.items():
            sink = OwnSink(free_port())
            try:
                with fresh_directory(name, spool) as directory:
                    place = Place(directory, free_port(), sink.port)
                    with serving(place):
                        send(place.port, *_at_rate(place.port, 1))
                        sent = send(place.port, *_at_rate(place.port, seconds))
                        sink.wait_for(RATE + sent.count)
            finally:
                times = sink.close()
            answers[name].append(sent)
            ways[name].append(times[RATE:])
            print(f"run {number + 1}, {name}: p99 {sent.answer_p99_ms:.2f} ms", file=sys.stderr)
    part = f"{RATE} messages/s"
    found = []
    for name in SERVERS:
        found += [
            Finding(part, f"{name}, end of data to 250, p50", "ms", [one.answer_p50_ms for one in answers[name]]),
            Finding(part, f"{name}, end of data to 250, p99", "ms", [one.answer_p99_ms for one in answers[name]]),
            Finding(part, f"{name}, sent to delivered, p50", "ms", [percentile(o, 0.5) * 1000 for o in ways[name]]),
            Finding(part, f"{name}, sent to delivered, p99", "ms", [percentile(o, 0.99) * 1000 for o in ways[name]]),
        ]
    return found


def _beside(spool: str, seconds: float, behaviour: Behaviour) -> tuple[float, float]:
    """p99 of the answer and of the whole way, ms, of mail to a good destination while another behaves so."""
    good = OwnSink(free_port())
    try:
        with fresh_directory("beside", spool) as directory:
            bad_port = free_port()
            routes = (("good.test", f"smtp://127.0.0.1:{good.port}"), ("bad.test", f"smtp://127.0.0.1:{bad_port}"))
            place = Place(directory, free_port(), routes=routes)
            with posthouse(place), own_sink(bad_port, behaviour=behaviour):
                send(place.port, *_at_rate(place.port, 1, "--to", "a@good.test"))
                other = start_source(place.port, *_at_rate(place.port, seconds + 3, "--to", "a@bad.test"))
                time.sleep(2)
                sent = send(place.port, *_at_rate(place.port, seconds, "--to", "a@good.test"))
                finish(other)
                good.wait_for(RATE + sent.count)
    finally:
        times = good.close()
    return sent.answer_p99_ms, percentile(times[RATE:], 0.99) * 1000


def beside_trouble(runs: int, spool: str, seconds: float) -> list[Finding]:
    """The same load to two destinations, the second of which is well or ill: what does the first feel of it?"""
    found: dict[Behaviour, list[tuple[float, float]]] = {behaviour: [] for behaviour in Behaviour}
    for number in range(runs):
        for behaviour in Behaviour:
            one = _beside(spool, seconds, behaviour)
            found[behaviour].append(one)
            words = f"p99 of the answer {one[0]:.2f} ms, of the whole way {one[1]:.2f} ms"
            print(f"run {number + 1}, the other {behaviour}: {words}", file=sys.stderr)
    part = f"{RATE} messages/s to each of two"
    rows = []
    for place, what in enumerate(("end of data to 250", "sent to delivered")):
        well = [one[place] for one in found[Behaviour.WELL]]
        rows.append(Finding(part, f"p99, {what}, the other is well", "ms", well))
        for behaviour in (Behaviour.HANGS, Behaviour.DRIPS, Behaviour.STALLS):
            ratios = [one[place] / statistics.median(well) for one in found[behaviour]]
            rows.append(Finding(part, f"p99, {what}, the other {behaviour}", "x", ratios, TWICE))
    return rows


@contextlib.contextmanager
def idle_connections(port: int, count: int) -> Iterator[int]:
    """So many sessions that have said EHLO and then nothing, from several addresses of loopback; how many there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count + 200 if hard == resource.RLIM_INFINITY else min(count + 200, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    held: list[socket.socket] = []
    try:
        for number in range(most - 200):
            host = number // _FROM_ONE_ADDRESS
            source = f"127.1.{host // 250}.{host % 250 + 1}"
            held.append(socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0)))
            _expect(held[-1], b"220")
            held[-1].sendall(b"EHLO idle.bench.test\r\n")
            _expect(held[-1], b"250")
        yield len(held)
    finally:
        for one in held:
            one.close()


def _expect(connection: socket.socket, code: bytes) -> None:
    said = connection.recv(2048)
    if not said.startswith(code):
        raise RuntimeError(f"an idle connection was told {said!r}")


def among_idle(runs: int, spool: str, seconds: float, count: int) -> list[Finding]:
    """Sessions of one message each, before and while thousands of others are open; limits as shipped."""
    before: list[Sent] = []
    among: list[Sent] = []
    memory: list[tuple[float, float]] = []
    for number in range(runs):
        with fresh_directory("idle", spool) as directory, own_sink() as sink:
            place = Place(directory, free_port(), sink.port)
            load = _at_rate(place.port, seconds, "--single", rate=IDLE_RATE)
            with posthouse(place) as cost:
                send(place.port, *_at_rate(place.port, 1, "--single", rate=IDLE_RATE))
                before.append(send(place.port, *load))
                time.sleep(1)
                first = cost.peak_pss_mb
                with idle_connections(place.port, count) as held:
                    among.append(send(place.port, *load))
                    time.sleep(1)
                    memory.append((first, cost.peak_pss_mb))
        print(f"run {number + 1}: {held:,} idle, {memory[-1][1]:.0f} MB", file=sys.stderr)
    return _of_idle(held, before, among, memory)


def _of_idle(
    held: int, before: Sequence[Sent], among: Sequence[Sent], memory: Sequence[tuple[float, float]]
) -> list[Finding]:
    part = f"{held:,} idle connections"
    return [
        Finding(part, "memory (PSS), all processes, without them", "MB", [one[0] for one in memory]),
        Finding(part, "memory (PSS), all processes", "MB", [one[1] for one in memory], IDLE_MEMORY_MB),
        Finding(part, "connect to 250 of a new session's mail, p99, without them", "ms", [o.whole_p99_ms for o in before]),
        Finding(part, "connect to 250 of a new session's mail, p99", "ms", [o.whole_p99_ms for o in among], PROMPT_MS),
        Finding(part, "end of data to 250, p99", "ms", [one.answer_p99_ms for one in among]),
    ]  # fmt: skip
