"""Posthouse and a tuned Postfix relay the same load on this machine, run by run in turn. README.md beside it says what is measured."""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import msgspec
from load import Cost, Sink, push, server

from peer_programs import environment, free_port, program, run_client
from peer_servers import lay_out_postfix

WARM_UP = 500  # messages

# Chosen for throughput on loopback; durability is untouched (Postfix syncs each queue file before its 250). It logs to a
# syslog socket that nobody reads, so logging costs it next to nothing.
TUNED_POSTFIX = {
    "myhostname": "relay.bench.test",
    "mynetworks": "127.0.0.0/8",
    "maillog_file": "",
    "in_flow_delay": "0",
    "max_use": "100000",
    "smtp_connection_cache_on_demand": "no",
    "smtpd_client_connection_rate_limit": "0",
    "receive_override_options": "no_address_mappings,no_header_body_checks,no_unknown_recipient_checks",
    "local_header_rewrite_clients": "",
    "smtputf8_enable": "no",
    "enable_original_recipient": "no",
    "qmgr_message_active_limit": "100000",
    "qmgr_message_recipient_limit": "100000",
    "default_process_limit": "200",
}


class Run(msgspec.Struct, frozen=True):
    """One timed run. Rates are messages a second, CPU is seconds for 1,000 messages."""

    server: str
    accepted: float
    delivered: float
    cpu: float
    pss_mb: float
    processes: int


@contextmanager
def posthouse(directory: Path, port: int, sink_port: int, workers: int) -> Iterator[Cost]:
    """Posthouse as shipped; only where it listens and where mail goes is said."""
    configuration = directory / "posthouse.toml"
    configuration.write_text(
        f'hostname = "relay.bench.test"\ndata_dir = "{directory}/data"\n'
        + (f"workers = {workers}\n" if workers else "")
        + f'[[listener]]\naddress = "127.0.0.1:{port}"\n'
        f'[[route]]\ndomain = "*"\nto = ["smtp://127.0.0.1:{sink_port}"]\n'
    )
    command = [sys.executable, "-m", "posthouse", "serve", "--config", str(configuration)]
    with server("posthouse", command, os.environ, directory, port) as cost:
        yield cost


@contextmanager
def postfix(directory: Path, port: int, sink_port: int, _: int) -> Iterator[Cost]:
    """Postfix, tuned."""
    settings = {**TUNED_POSTFIX, "relayhost": f"[127.0.0.1]:{sink_port}"}
    configuration = lay_out_postfix(directory, "127.0.0.1", port, settings)
    command = [program("postfix", "usr/lib/postfix/sbin/master"), "-d", "-c", str(configuration)]
    variables = {**environment("postfix"), "MAIL_CONFIG": str(configuration)}
    with server("postfix", command, variables, directory, port) as cost:
        yield cost


SERVERS = {"posthouse": posthouse, "postfix": postfix}


def measure(name: str, options: argparse.Namespace) -> Run:
    """One run of one server, started fresh on an empty spool."""
    count = options.count if name == "posthouse" else max(options.count // 4, 1)  # about equally long
    keep = options.mode == "keep"
    directory = Path(tempfile.mkdtemp(prefix=f"posthouse-bench-{name}-", dir=options.spool))
    directory.chmod(0o755)
    port, sink_port = free_port(), free_port()
    sink = Sink(sink_port)
    os.sync()
    try:
        with SERVERS[name](directory, port, sink_port, options.workers) as cost:
            push(port, WARM_UP, options.sessions, options.size, keep)
            sink.wait_for(WARM_UP)
            time.sleep(0.3)
            cpu, began = cost.cpu_seconds(), time.perf_counter()
            push(port, count, options.sessions, options.size, keep)
            accepted = time.perf_counter()
            delivered = sink.wait_for(WARM_UP + count)
            cpu = cost.cpu_seconds() - cpu
            time.sleep(0.2)
            if sink.count() != WARM_UP + count:
                print(f"{name}: {sink.count() - WARM_UP - count} more messages arrived than were sent", file=sys.stderr)
        return Run(
            name,
            count / (accepted - began),
            count / (delivered - began),
            cpu / count * 1000,
            cost.peak_pss_mb,
            cost.peak_processes,
        )
    finally:
        sink.close()
        shutil.rmtree(directory, ignore_errors=True)


def summary(name: str, runs: list[Run]) -> dict[str, float]:
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


def report(options: argparse.Namespace, runs: list[Run]) -> None:
    """The table, or one JSON document."""
    medians = {name: summary(name, runs) for name in SERVERS}
    ratio = medians["posthouse"]["delivered"] / medians["postfix"]["delivered"]
    where = machine(options.spool)
    if options.json:
        load = {key: getattr(options, key) for key in ("sessions", "size", "mode", "count", "runs", "workers")}
        print(
            json.dumps(
                {
                    "machine": where,
                    "load": load,
                    "ratio": ratio,
                    "medians": medians,
                    "runs": [msgspec.structs.asdict(run) for run in runs],
                }
            )
        )
        return
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(
        f"{options.size} octets, {options.sessions} sessions, {options.mode}; medians of {options.runs}, the two in turn\n"
    )
    print(
        "| server | accepted/s | delivered/s | CPU s per 1,000 | memory (PSS) | processes |\n|---|---|---|---|---|---|"
    )
    for name, of in medians.items():
        print(
            f"| {name} | {of['accepted']:,.0f} | {of['delivered']:,.0f} | {of['cpu']:.2f} | {of['pss_mb']:.0f} MB | {of['processes']:.0f} |"
        )
    print(f"\nPosthouse delivers {ratio:.1f} times as many messages a second as Postfix.")


def main() -> int:
    """0 when every run came to its end."""
    parser = argparse.ArgumentParser(prog="benchmarks/relay", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how often each server is measured")
    parser.add_argument("--sessions", type=int, default=20, help="client sessions at once")
    parser.add_argument("--size", type=int, default=4096, help="octets of a message")
    parser.add_argument("--count", type=int, default=16_000, help="messages of a run; Postfix gets a quarter of them")
    parser.add_argument("--mode", choices=("keep", "single"), default="keep", help="many messages a session, or one")
    parser.add_argument("--workers", type=int, default=0, help="Posthouse's workers; 0: one per core")
    parser.add_argument("--spool", default="/var/tmp", help="where the queues are; a real disk, not a tmpfs")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("benchmarks/relay: Postfix can only be started by root", file=sys.stderr)
        return 2
    runs = []
    for number in range(options.runs):
        for name in SERVERS:
            run = measure(name, options)
            runs.append(run)
            print(
                f"run {number + 1}, {name}: {run.delivered:,.0f} delivered/s, {run.cpu:.2f} CPU s per 1,000",
                file=sys.stderr,
            )
    report(options, runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
