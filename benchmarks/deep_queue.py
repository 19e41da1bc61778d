"""A queue of 200,000 deferred messages: does it slow what comes in, a restart, a look at it; and how much memory does it take?"""

import os
import subprocess
import sys
import time
from pathlib import Path

from filling import fill
from findings import Finding
from load import Sink
from servers import Place, fresh_directory, posthouse

from peer_programs import free_port
from relay import Load, Run, measure_running

SLOWER_PERCENT = 20
READY_SECONDS = 5
LIST_SECONDS = 1
MEMORY_MB = 250


def forget(directory: Path) -> int:
    """Has the kernel drop what it keeps of these files in memory, as after a boot. Their octets."""
    octets = 0
    for path in directory.rglob("*"):
        if path.is_file():
            octets += path.stat().st_size
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return octets


def first_page(place: Place) -> float:
    """Seconds that `posthouse queue list` takes, its own start included."""
    command = [sys.executable, "-m", "posthouse", "--config", str(place.configuration), "queue", "list"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def one_run(place: Place, sink: Sink, load: Load) -> tuple[Run, float, float]:
    """What it relays; seconds until it was ready, and until the first page was there."""
    began = time.perf_counter()
    with posthouse(place) as cost:
        ready = time.perf_counter() - began
        listed = first_page(place)
        return measure_running("posthouse", cost, place.port, sink, load), ready, listed


def measure(runs: int, spool: str, deferred: int, count: int) -> list[Finding]:
    """An empty queue and the deep one, in turn."""
    load = Load(20, 4096, True, (count, count))
    workers = os.cpu_count() or 1
    empty: list[Run] = []
    deep: list[tuple[Run, float, float]] = []
    with fresh_directory("deep", spool) as directory:
        place = Place(directory, free_port(), free_port(), workers)
        filled = fill(place.data_dir, workers, deferred)
        for number in range(runs):
            sink = Sink(place.sink_port)
            try:
                with fresh_directory("empty", spool) as other:
                    fresh = Place(other, place.port, place.sink_port, workers)
                    empty.append(one_run(fresh, sink, load)[0])
                octets = forget(place.data_dir)
                deep.append(one_run(place, sink, load))
            finally:
                sink.close()
            rates = f"{empty[-1].accepted:,.0f}/s accepted with an empty queue, {deep[-1][0].accepted:,.0f}/s with the deep one"
            print(f"run {number + 1}: {rates}", file=sys.stderr)
    part = f"{deferred:,} deferred"
    slower = [(1 - one[0].accepted / other.accepted) * 100 for one, other in zip(deep, empty, strict=True)]
    return [
        Finding(part, "accepted/s, empty queue", "/s", [one.accepted for one in empty]),
        Finding(part, "accepted/s", "/s", [one[0].accepted for one in deep]),
        Finding(part, "accepting is slower by", "%", slower, SLOWER_PERCENT),
        Finding(part, "delivered/s, empty queue", "/s", [one.delivered for one in empty]),
        Finding(part, "delivered/s", "/s", [one[0].delivered for one in deep]),
        Finding(part, "restart, files not in memory, until it greets", "s", [one[1] for one in deep], READY_SECONDS),
        Finding(part, "`queue list`, first page, server running", "s", [one[2] for one in deep], LIST_SECONDS),
        Finding(part, "memory (PSS), all processes", "MB", [one[0].pss_mb for one in deep], MEMORY_MB),
        Finding(part, "size on disk", "MB", [octets / 1e6]),
        Finding(part, "filling it through the spool", "/s", [deferred / filled]),
    ]
