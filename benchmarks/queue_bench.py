"""The queue under strain: many recipients, many deferred messages, ill destinations, idle clients. README.md says what is measured."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import answer_time
import deep_queue
import fan_out
from findings import Finding, document, lines

from relay import machine

PARTS: dict[str, Callable[[argparse.Namespace], list[Finding]]] = {
    "fan-out": lambda o: fan_out.measure(o.runs, o.spool, o.recipients),
    "deep": lambda o: deep_queue.measure(o.runs, o.spool, o.deferred, o.count),
    "latency": lambda o: answer_time.quiet(o.runs, o.spool, o.seconds),
    "trouble": lambda o: answer_time.beside_trouble(o.runs, o.spool, o.seconds),
    "idle": lambda o: answer_time.among_idle(o.runs, o.spool, o.seconds, o.idle),
}
_QUICK = {"runs": 1, "recipients": 100, "deferred": 2000, "count": 1000, "seconds": 2.0, "idle": 200}


def main() -> int:
    """0 when every part came to its end, whatever it found."""
    parser = argparse.ArgumentParser(prog="benchmarks/queue", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--runs", type=int, default=3, help="how often each part is measured")
    parser.add_argument("--recipients", type=int, default=1000, help="fan-out: recipients of the one message")
    parser.add_argument("--deferred", type=int, default=200_000, help="deep: deferred messages in the queue")
    parser.add_argument("--count", type=int, default=16_000, help="deep: messages that are sent past them")
    parser.add_argument("--seconds", type=float, default=10, help="latency, trouble, idle: how long each run sends")
    parser.add_argument("--idle", type=int, default=10_000, help="idle: connections")
    parser.add_argument("--quick", action="store_true", help="all of it small, only to see that it works")
    parser.add_argument("--spool", default="/var/tmp", help="where the queues are; a real disk, not a tmpfs")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if os.geteuid() != 0:
        print("benchmarks/queue: Postfix can only be started by root", file=sys.stderr)
        return 2
    if options.quick:
        vars(options).update(_QUICK)
    began = time.perf_counter()
    findings = [one for name in options.parts or PARTS for one in PARTS[name](options)]
    where = machine(options.spool)
    if options.json:
        print(json.dumps({"machine": where, "findings": document(findings)}))
        return 0
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(f"medians of {options.runs}; {(time.perf_counter() - began) / 60:.0f} minutes\n")
    print("\n".join(lines(findings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
