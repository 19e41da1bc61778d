"""Posthouse and a tuned Postfix relay the same load on this machine, run by run in turn. README.md beside it says what is measured."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import cells
import msgspec
from load import Cost, Sink, push
from own_ends import Certificate, OwnSink, send
from servers import SERVERS, Place, fresh_directory
from tls_load import ceiling, make_certificate

from peer_programs import free_port, run_client

WARM_UP = 500  # messages


class Load(msgspec.Struct, frozen=True):
    """What is sent in one run. `kept` sessions carry many messages each, others one. `counts` are messages for Posthouse and for
    Postfix, so that the two take about equally long. With `tls` our own ends speak STARTTLS on both sides."""

    sessions: int
    size: int
    kept: bool
    counts: tuple[int, int]
    tls: bool = False

    def count_for(self, server: str) -> int:
        """How many messages a server gets."""
        return self.counts[server == "postfix"]


class Run(msgspec.Struct, frozen=True):
    """One timed run. Rates are messages a second, CPU is seconds for 1,000 messages."""

    server: str
    accepted: float
    delivered: float
    cpu: float
    pss_mb: float
    processes: int


@contextmanager
def sink_for(certificate: Certificate | None) -> Iterator[Sink | OwnSink]:
    """smtp-sink; our own where there is TLS."""
    port = free_port()
    sink = OwnSink(port, certificate=certificate) if certificate else Sink(port)
    try:
        yield sink
    finally:
        sink.close()


def drive(port: int, count: int, load: Load) -> None:
    """Sends by smtp-source, or by our own source where there is TLS."""
    if not load.tls:
        push(port, count, load.sessions, load.size, load.kept)
        return
    options = ["--sessions", str(load.sessions), "--count", str(count), "--size", str(load.size), "--tls"]
    send(port, *options, *([] if load.kept else ["--single"]))


def measure(name: str, load: Load, spool: str, workers: int = 0) -> Run:
    """One run of one server, started fresh on an empty queue."""
    with fresh_directory(name, spool) as directory, tempfile.TemporaryDirectory(prefix="posthouse-tls-") as tls:
        certificate = make_certificate(Path(tls)) if load.tls else None
        Path(tls).chmod(0o755)
        with sink_for(certificate) as sink:
            place = Place(directory, free_port(), sink.port, workers, certificate)
            return measure_at(name, place, sink, load)


def measure_at(name: str, place: Place, sink: Sink | OwnSink, load: Load) -> Run:
    """One run of one server where its queue, empty or not, already is."""
    with SERVERS[name](place) as cost:
        return measure_running(name, cost, place.port, sink, load)


def measure_running(name: str, cost: Cost, port: int, sink: Sink | OwnSink, load: Load) -> Run:
    """One run of a server that is up."""
    count, before = load.count_for(name), sink.count()
    warm_up = max(WARM_UP, load.sessions) if count > WARM_UP else load.sessions
    drive(port, warm_up, load)
    sink.wait_for(before + warm_up)
    time.sleep(0.3)
    cpu, began = cost.cpu_seconds(), time.perf_counter()
    drive(port, count, load)
    accepted = time.perf_counter()
    delivered = sink.wait_for(before + warm_up + count)
    cpu = cost.cpu_seconds() - cpu
    time.sleep(0.2)
    extra = sink.count() - before - warm_up - count
    if extra:
        print(f"{name}: {extra} more messages arrived than were sent", file=sys.stderr)
    return Run(
        name,
        count / (accepted - began),
        count / (delivered - began),
        cpu / count * 1000,
        cost.peak_pss_mb,
        cost.peak_processes,
    )


def summary(name: str, runs: Sequence[Run]) -> dict[str, float]:
    """Medians over the runs of a server."""
    own = [run for run in runs if run.server == name]
    fields = ("accepted", "delivered", "cpu", "pss_mb", "processes")
    return {field: statistics.median(getattr(run, field) for run in own) for field in fields}


def machine(spool: str) -> dict[str, str]:
    """What the figures were taken on."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", spool], capture_output=True, text=True, check=True).stdout.strip()
    version = run_client("postfix", "usr/sbin/postconf", "-d", "-h", "mail_version").stdout.decode().strip()
    return {
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postfix": version,
        "spool": f"{spool} ({kind})",
    }


def report(options: argparse.Namespace, load: Load, runs: list[Run]) -> None:
    """The table of one load, or one JSON document."""
    medians = {name: summary(name, runs) for name in SERVERS}
    ratio = medians["posthouse"]["delivered"] / medians["postfix"]["delivered"]
    where = machine(options.spool)
    if options.json:
        said = {**msgspec.structs.asdict(load), "runs": options.runs, "workers": options.workers}
        every = [msgspec.structs.asdict(run) for run in runs]
        print(json.dumps({"machine": where, "load": said, "ratio": ratio, "medians": medians, "runs": every}))
        return
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    how = "kept" if load.kept else "of one message"
    tls = " under TLS" if load.tls else ""
    print(f"{load.size} octets, {load.sessions} sessions {how}{tls}; medians of {options.runs}, the two in turn\n")
    print(
        "| server | accepted/s | delivered/s | CPU s per 1,000 | memory (PSS) | processes |\n|---|---|---|---|---|---|"
    )
    for name, of in medians.items():
        rates = f"{of['accepted']:,.0f} | {of['delivered']:,.0f}"
        print(f"| {name} | {rates} | {of['cpu']:.2f} | {of['pss_mb']:.0f} MB | {of['processes']:.0f} |")
    print(f"\nPosthouse delivers {ratio:.1f} times as many messages a second as Postfix.")


def tell(number: int, name: str, run: Run, what: str = "") -> None:
    """Progress, on standard error."""
    print(
        f"run {number + 1}, {what}{name}: {run.delivered:,.0f} delivered/s, {run.cpu:.2f} CPU s per 1,000",
        file=sys.stderr,
    )


def one_load(options: argparse.Namespace) -> None:
    """Measures one load as the options say."""
    counts = (options.count, max(options.count // 4, 1))
    load = Load(options.sessions, options.size, options.mode == "keep", counts, options.tls)
    runs = []
    for number in range(options.runs):
        for name in SERVERS:
            run = measure(name, load, options.spool, options.workers)
            runs.append(run)
            tell(number, name, run)
    report(options, load, runs)


def whole_table(options: argparse.Namespace) -> None:
    """Measures every cell: each run goes through all of them, so that all drift with the machine alike."""
    began = time.perf_counter()
    runs: dict[str, list[Run]] = {cell.name: [] for cell in cells.LOADS}
    ceilings = []
    for number in range(options.runs):
        for cell in cells.LOADS:
            load = Load(cell.sessions, cell.size, cell.kept, cells.counts_of(cell, options.quick), cell.tls)
            for name in SERVERS:
                run = measure(name, load, options.spool, options.workers)
                runs[cell.name].append(run)
                tell(number, name, run, f"{cell.name}, ")
        ceilings.append(ceiling(2000 if options.quick else 20_000, 20, 4096))
    medians = {cell: {name: summary(name, of) for name in SERVERS} for cell, of in runs.items()}
    rows = cells.judge(medians)
    where = machine(options.spool)
    if options.json:
        every = {cell: [msgspec.structs.asdict(run) for run in of] for cell, of in runs.items()}
        table = [msgspec.structs.asdict(row) for row in rows]
        print(json.dumps({"machine": where, "table": table, "ceiling": ceilings, "medians": medians, "runs": every}))
        return
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(f"medians of {options.runs}, the two in turn; {(time.perf_counter() - began) / 60:.0f} minutes\n")
    print("\n".join(cells.lines(rows)))
    print(f"\nOur own TLS source straight to our own sink: {statistics.median(ceilings):,.0f} messages/s.")


def main() -> int:
    """0 when every run came to its end."""
    parser = argparse.ArgumentParser(prog="benchmarks/relay", description=__doc__)
    parser.add_argument("--table", action="store_true", help="all loads that the project has a floor for, in one table")
    parser.add_argument("--quick", action="store_true", help="with --table: a few messages, only to see that it works")
    parser.add_argument("--runs", type=int, default=0, help="how often each server is measured (3; with --table 5)")
    parser.add_argument("--sessions", type=int, default=20, help="client sessions at once")
    parser.add_argument("--size", type=int, default=4096, help="octets of a message")
    parser.add_argument("--count", type=int, default=16_000, help="messages of a run; Postfix gets a quarter of them")
    parser.add_argument("--mode", choices=("keep", "single"), default="keep", help="many messages a session, or one")
    parser.add_argument("--tls", action="store_true", help="STARTTLS on both sides, with our own source and sink")
    parser.add_argument("--workers", type=int, default=0, help="Posthouse's workers; 0: one per core")
    parser.add_argument("--spool", default="/var/tmp", help="where the queues are; a real disk, not a tmpfs")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("benchmarks/relay: Postfix can only be started by root", file=sys.stderr)
        return 2
    options.runs = options.runs or (5 if options.table else 3)
    if options.table:
        whole_table(options)
    else:
        one_load(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
