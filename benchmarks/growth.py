"""How the rate grows and falls: with sessions, with the size of messages, with the depth of the queue, with workers.

Writes growth.json and growth.svg, into docs/ by default.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import msgspec
from filling import fill
from load import Sink
from picture import Panel, draw
from servers import SERVERS, Place, fresh_directory

from peer_programs import free_port
from relay import Load, Run, machine, measure, measure_at

SESSIONS = (1, 5, 20, 50, 100, 200)
SIZES = (1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
DEPTHS = (0, 10_000, 100_000, 200_000)
WORKERS = (1, 2)
_OCTETS = 400_000_000
"""Of one run at most: large messages are as many as that allows."""

_FEW_OCTETS = 20_000_000


class Point(msgspec.Struct, frozen=True):
    """One step of one series: what was varied, for whom, and the deliveries a second of each run."""

    series: str
    step: int
    server: str
    delivered: list[float]


Measured = Iterator[tuple[str, int, str, Run]]
"""(series, step, server, run)."""


def _load(options: argparse.Namespace, sessions: int = 20, size: int = 4096) -> Load:
    """Enough messages for some three seconds."""
    octets = _FEW_OCTETS if options.quick else _OCTETS
    few = max(min(options.count, octets // size), sessions)
    if sessions < 5:
        few = min(few, options.count // 4 * sessions)
    return Load(sessions, size, True, (few, max(few // 4, sessions)))


def by_sessions(options: argparse.Namespace) -> Measured:
    """Kept sessions, both servers."""
    for sessions in SESSIONS:
        for name in SERVERS:
            yield "sessions", sessions, name, measure(name, _load(options, sessions), options.spool)


def by_size(options: argparse.Namespace) -> Measured:
    """20 kept sessions, both servers."""
    for size in SIZES:
        for name in SERVERS:
            yield "size", size, name, measure(name, _load(options, size=size), options.spool)


def by_workers(options: argparse.Namespace) -> Measured:
    """Posthouse alone."""
    for workers in WORKERS:
        yield "workers", workers, "posthouse", measure("posthouse", _load(options), options.spool, workers)


def by_depth(options: argparse.Namespace) -> Measured:
    """Posthouse alone, past so many deferred messages."""
    workers = os.cpu_count() or 1
    for depth in DEPTHS:
        with fresh_directory("depth", options.spool) as directory:
            sink = Sink(free_port())
            try:
                place = Place(directory, free_port(), sink.port, workers)
                fill(place.data_dir, workers, depth // options.shallower)
                yield "depth", depth, "posthouse", measure_at("posthouse", place, sink, _load(options))
            finally:
                sink.close()


SERIES: dict[str, Callable[[argparse.Namespace], Measured]] = {
    "sessions": by_sessions,
    "size": by_size,
    "depth": by_depth,
    "workers": by_workers,
}


def gather(options: argparse.Namespace) -> list[Point]:
    """All series, run by run."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for number in range(options.runs):
        for name in options.series or SERIES:
            for series, step, server, run in SERIES[name](options):
                found.setdefault((series, step, server), []).append(run.delivered)
                print(f"run {number + 1}, {series} {step:,}, {server}: {run.delivered:,.0f}/s", file=sys.stderr)
    return [Point(*key, delivered) for key, delivered in found.items()]


def panels(points: list[Point]) -> list[Panel]:
    """The picture's four charts, as far as they were measured."""
    chosen = (
        ("sessions", "Kept sessions (4 KB)", "sessions", "messages/s", str, False),
        ("size", "Size of a message (20 kept sessions)", "octets", "messages/s, by powers of ten", _size, True),
        ("depth", "Deferred messages in the queue (4 KB, 20 kept)", "messages", "messages/s", _thousands, False),
        ("workers", "Worker processes (4 KB, 20 kept)", "workers", "messages/s", str, False),
    )
    return [
        _panel([point for point in points if point.series == series], title, below, beside, words, is_log)
        for series, title, below, beside, words, is_log in chosen
        if any(point.series == series for point in points)
    ]


def _panel(
    points: list[Point], title: str, below: str, beside: str, words: Callable[[int], str], is_log: bool
) -> Panel:
    steps = sorted({point.step for point in points})
    lines: dict[str, list[float]] = {}
    for point in sorted(points, key=lambda point: point.step):
        lines.setdefault(point.server.capitalize(), []).append(statistics.median(point.delivered))
    return Panel(title, below, beside, [words(step) for step in steps], lines, is_log)


def _size(octets: int) -> str:
    return f"{octets // 1024}K" if octets < 1 << 20 else f"{octets >> 20}M"


def _thousands(count: int) -> str:
    return f"{count:,}"


def main() -> int:
    """0 when every run came to its end."""
    parser = argparse.ArgumentParser(prog="benchmarks/growth", description=__doc__)
    parser.add_argument("series", nargs="*", metavar="SERIES", help=f"some of {', '.join(SERIES)}; all by default")
    parser.add_argument("--runs", type=int, default=3, help="how often each step is measured")
    parser.add_argument("--count", type=int, default=16_000, help="messages of a run; Postfix gets a quarter of them")
    parser.add_argument("--quick", action="store_true", help="a few messages, only to see that it works")
    parser.add_argument("--draw", action="store_true", help="draw growth.json of an earlier run again, measure nothing")
    parser.add_argument("--into", type=Path, default=Path(__file__).resolve().parents[1] / "docs")
    parser.add_argument("--spool", default="/var/tmp", help="where the queues are; a real disk, not a tmpfs")
    options = parser.parse_args()
    unknown = set(options.series) - set(SERIES)
    if unknown:
        parser.error(f"no such series: {', '.join(sorted(unknown))}; there are {', '.join(SERIES)}")
    options.into.mkdir(parents=True, exist_ok=True)  # now, not when all has been measured
    record = options.into / "growth.json"
    if options.draw:
        points = msgspec.convert(json.loads(record.read_text())["points"], list[Point])
    elif os.geteuid() != 0:
        print("benchmarks/growth: Postfix can only be started by root", file=sys.stderr)
        return 2
    else:
        options.shallower = 100 if options.quick else 1
        if options.quick:
            options.runs, options.count = 1, 400
        began = time.perf_counter()
        points = gather(options)
        written = {
            "machine": machine(options.spool),
            "runs": options.runs,
            "messages": options.count,
            "points": [msgspec.structs.asdict(point) for point in points],
        }
        record.write_text(json.dumps(written, indent=1) + "\n")
        print(f"{record} written after {(time.perf_counter() - began) / 60:.0f} minutes", file=sys.stderr)
    picture = options.into / "growth.svg"
    picture.write_text(draw(panels(points), "Messages delivered a second, synced before each 250"))
    print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
