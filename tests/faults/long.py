"""The fault programme at length: `python tests/faults/long.py --kills 10000 --power-cuts 10000 --mutations 10000000`.

Every row that is asked for runs to its end, with its progress on standard error, and a table closes the run; without any
option the whole long form runs. Rows run in parts of at most `--part` faults, each on a fresh queue with a seed of its own
that is printed, and each part's result is appended to `--results` (JSON lines), from which `--table` makes the table again.

Exit status: 0 when every promise was kept, 1 when not, 2 for wrong usage. Needs root for power cuts and full disks; what the
kernel refuses is said, and counts as not run. Ctrl-C or SIGTERM ends it after the last part that is whole, with the table.
"""

import argparse
import datetime
import functools
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path.insert(0, str(TESTS))

import _pytest.outcomes  # noqa: E402 - what is refused says so as in a test
import msgspec  # noqa: E402

from fault_bad_hops import UNFELT_MS, suffer_bad_hops  # noqa: E402
from fault_clock import JUMPS, jump_often  # noqa: E402
from fault_damage import damage_often  # noqa: E402
from fault_disk import can_mount, require_power_cuts  # noqa: E402
from fault_dns import suffer_dns  # noqa: E402
from fault_full import fill_often  # noqa: E402
from fault_kill import kill_often  # noqa: E402
from fault_nth import CALLS, die_at_each  # noqa: E402
from fault_oracle import Findings  # noqa: E402
from fault_poison import poison_often  # noqa: E402
from fault_power import cut_often  # noqa: E402
from fault_states import check_states, record  # noqa: E402
from fault_stop import stop_often  # noqa: E402
from fault_sync_error import SYNCS, fail_each  # noqa: E402
from fault_syscalls import require_strace  # noqa: E402
from peer_programs import require_kernel  # noqa: E402

TELL_SECONDS = 0.5
"""Between two signs of progress."""


class Result(msgspec.Struct):
    """One part of a row. `problems` is empty when the promise was kept."""

    row: str
    faults: int
    acknowledged: int = 0
    recipients: int = 0
    lost: int = 0
    altered: int = 0
    never_sent: int = 0
    duplicates: int = 0
    unexplained: int = 0
    set_aside: int = 0
    oldest_duplicate_ms: int = 0
    seconds: float = 0.0
    note: str = ""
    problems: list[str] = []
    commit: str = ""


Part = Callable[[int, Callable[[int], None]], Result]
"""Runs so many faults, tells how far it is, and says what came of it."""


def from_findings(row: str, faults: int, findings: Findings, note: str = "", problems: tuple[str, ...] = ()) -> Result:
    """What the oracle found, as a result."""
    return Result(
        row,
        faults,
        findings.acknowledged,
        findings.recipients,
        len(findings.lost),
        len(findings.altered),
        len(findings.phantoms),
        findings.duplicates + findings.duplicate_notices,
        len(findings.unexplained),
        findings.set_aside,
        findings.oldest_duplicate_ms,
        note=note,
        problems=[*findings.problems, *problems],
    )


def kills(count: int, progress: Callable[[int], None]) -> Result:
    findings, starts = kill_often(count, progress=progress)
    note = f"ready again in {1000 * sorted(starts)[len(starts) // 2]:.0f} ms (median), {max(starts):.1f} s at most"
    return from_findings("SIGKILL at random moments, under load", count, findings, note)


_apart = itertools.cycle((False, True))
"""Every other part has its mailbox on a disk of its own, so that no sync of the queue's helps it by chance."""


def power_cuts(count: int, progress: Callable[[int], None]) -> Result:
    require_power_cuts()
    findings = cut_often(count, mailbox_apart=next(_apart), progress=progress)
    return from_findings("power cuts (ext4 shut down), under load", count, findings)


def every_call(count: int, progress: Callable[[int], None]) -> Result:
    require_strace()
    done: list[str] = []
    died = die_at_each(CALLS, progress=lambda what: (done.append(what), progress(len(done)))[0])
    note = ", ".join(f"{n} {call}" for call, n in died.deaths.items())
    return from_findings("SIGKILL at every n-th call", sum(died.deaths.values()), died.findings, note)


def failed_syncs(count: int, progress: Callable[[int], None]) -> Result:
    require_strace()
    require_power_cuts()
    errors = fail_each(SYNCS, "EIO", "+", progress=lambda _: progress(1))
    wrong = ("mail was taken after a failed sync",) if errors.acknowledged_after else ()
    struck = sum(errors.struck.values())
    return from_findings("EIO at every sync, power cut after", struck, errors.findings, str(errors.struck), wrong)


def failed_writes(count: int, progress: Callable[[int], None]) -> Result:
    require_strace()
    require_power_cuts()
    errors = fail_each(("pwritev2", "writev", "pwrite64", "ftruncate"), "EIO", progress=lambda _: progress(1))
    struck = sum(errors.struck.values())
    return from_findings("EIO at every write, power cut after", struck, errors.findings, str(errors.struck))


def states(count: int, progress: Callable[[int], None]) -> Result:
    require_strace()
    with tempfile.TemporaryDirectory() as directory:
        ops, root = record(Path(directory))
        checked = check_states(ops, root, progress=lambda found: progress(found.states))
    note = f"{checked.points} points, {checked.states} states, {checked.distinct} of them distinct"
    return Result("crash states of the queue (model)", checked.distinct, note=note, problems=checked.problems)


def damages(count: int, progress: Callable[[int], None]) -> Result:
    found = damage_often(count, progress=lambda found: progress(found.mutations))
    note = (
        f"{found.told} told by verify, {found.salvaged} databases salvaged, {found.messages_kept} messages delivered, "
        f"{found.messages_lost} damaged beyond reading, each of them told"
    )
    return Result("damaged queues", found.mutations, found.messages_kept, note=note, problems=found.problems)


def _full(kind: str, words: str) -> Part:
    def part(count: int, progress: Callable[[int], None]) -> Result:
        require_kernel("mounting a small filesystem to fill it", can_mount())
        done = fill_often(count, kind, progress=progress)
        wrong = (
            [] if done.times_refused == done.times_resumed == count else ["mail was not refused, or not taken again"]
        )
        if done.deaths:
            wrong.append(f"{done.deaths} deaths")
        if kind == "guard" and done.late_refusals:
            wrong.append(f"{done.late_refusals} refused after DATA")
        note = f"refused and resumed {done.times_resumed} times"
        return from_findings(words, count, done.findings, note, tuple(wrong))

    return part


def stops(count: int, progress: Callable[[int], None]) -> Result:
    found = stop_often(count, progress=progress)
    wrong = () if found.statuses == {0} else (f"exit statuses {found.statuses}",)
    return from_findings("SIGTERM under load", count, found.findings, f"{found.slowest:.1f} s at most", wrong)


def clock_jumps(count: int, progress: Callable[[int], None]) -> Result:
    done: list[str] = []
    jumps = (JUMPS * (count // len(JUMPS) + 1))[:count]
    found = jump_often(jumps, progress=lambda what: (done.append(what), progress(len(done)))[0])
    wrong = (f"late: {found.late[:5]}",) if found.late else ()
    wrong += ("mail expired",) if found.findings.returned else ()
    return from_findings("jumps of the wall clock", found.jumps, found.findings, problems=wrong)


def next_hops(count: int, progress: Callable[[int], None]) -> Result:
    found = suffer_bad_hops()
    note = f"p99 of the good one {found.quiet_ms:.0f} ms before, {found.troubled_ms:.0f} ms meanwhile"
    wrong = ("the good one was delayed",) if found.troubled_ms > max(2 * found.quiet_ms, UNFELT_MS) else ()
    return from_findings("next hops that misbehave", found.hops, found.findings, note, wrong)


def name_servers(count: int, progress: Callable[[int], None]) -> Result:
    found = suffer_dns()
    note = (
        f"p99 of a destination whose DNS is right {found.quiet_ms:.0f} ms before, {found.troubled_ms:.0f} ms meanwhile"
    )
    wrong = tuple(found.wrong)
    wrong += ("the good one was delayed",) if found.troubled_ms > max(2 * found.quiet_ms, UNFELT_MS) else ()
    return from_findings("name servers that fail", found.faults, found.findings, note, wrong)


def poisons(count: int, progress: Callable[[int], None]) -> Result:
    found = poison_often(count, progress=progress)
    wrong = () if found.set_aside == ["poisoned"] * count else (f"set aside: {found.set_aside}",)
    wrong += (f"{found.innocent} innocent messages set aside",) if found.innocent else ()
    note = f"{found.deaths} deaths until all were set aside, {found.deaths_on_release} more when all were released for one more try"
    found.findings.set_aside = 0  # told in the note
    return from_findings("messages that kill their worker", count, found.findings, note, wrong)


def fuzz(count: int, progress: Callable[[int], None]) -> Result:
    command = [sys.executable, str(ROOT / "fuzz" / "smtp_server.py"), f"-runs={count}"]
    return _inputs("inputs to the SMTP engine, led by what they reach", command, progress)


def mutations(count: int, progress: Callable[[int], None]) -> Result:
    seed = random.randrange(1 << 32)
    command = [sys.executable, str(ROOT / "fuzz" / "mutations.py"), "--count", str(count), "--seed", str(seed)]
    found = _inputs("inputs to the SMTP engine, the corpus bent by chance", command, progress)
    found.note = f"seed {seed}"
    return found


def _inputs(row: str, command: list[str], progress: Callable[[int], None]) -> Result:
    found = Result(row, 0)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        tail: list[str] = []
        try:
            for line in process.stderr:
                tail = [*tail[-20:], line.rstrip()]
                if counted := re.match(r"#(\d+)\s|Done (\d+) runs", line):
                    found.faults = int(counted[1] or counted[2])
                    progress(found.faults)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        found.problems = [f"the fuzzer ended with {process.returncode}", *tail[-10:]]
    return found


ROWS: dict[str, tuple[Part, int, int]] = {
    "states": (states, 1, 1),
    "kills": (kills, 10_000, 500),
    "every-call": (every_call, 1, 1),
    "power-cuts": (power_cuts, 10_000, 500),
    "failed-syncs": (failed_syncs, 1, 1),
    "failed-writes": (failed_writes, 1, 1),
    "full-disks": (_full("octets", "disk full (octets)"), 100, 50),
    "no-inodes": (_full("inodes", "disk full (inodes)"), 100, 50),
    "low-space": (_full("guard", "less space than is to be kept free"), 100, 50),
    "damages": (damages, 10_000, 5000),
    "clock-jumps": (clock_jumps, 20, 20),
    "next-hops": (next_hops, 1, 1),
    "dns": (name_servers, 1, 1),
    "stops": (stops, 200, 200),
    "poison": (poisons, 30, 6),
    "fuzz": (fuzz, 100_000, 100_000),
    "mutations": (mutations, 10_000_000, 500_000),
}
"""Option → (what runs, how many make the long form, the most in one part)."""

_LOADED = ("kills", "power-cuts", "full-disks", "no-inodes", "low-space", "stops")
"""Rows whose parts may be made smaller: each is a queue of its own under load."""


def run_row(name: str, count: int, most: int) -> Iterator[Result]:
    """A row in parts; what the kernel refuses comes back as a result of no faults, in words."""
    part, _, default_most = ROWS[name]
    left = count
    while left > 0:
        size = min(left, most if most and name in _LOADED else default_most)
        began = time.monotonic()
        try:
            result = part(size, _teller(name, count - left, count))
        except _pytest.outcomes.Skipped as refused:
            result = Result(name, 0, note=str(refused))
            left = size
        except Exception as error:  # the part came to no verdict: that is none of the passed ones
            traceback.print_exc()
            notes = getattr(error, "__notes__", [])
            result = Result(name, 0, problems=[f"ended without a verdict: {error!r}", *notes])
        result.seconds = round(time.monotonic() - began, 1)
        result.commit = commit()
        left -= size
        yield result
    print(file=sys.stderr)


def _teller(name: str, before: int, count: int) -> Callable[[int], None]:
    """Shows how far a row is, on one line that is written over."""
    began = time.monotonic()
    told = [began - 1]

    def tell(done: int) -> None:
        if time.monotonic() - told[0] < TELL_SECONDS and before + done < count:
            return
        told[0] = time.monotonic()
        text = f"\r{name}: {before + done:,} of {count:,}, {time.monotonic() - began:.0f} s"
        print(text, end="", file=sys.stderr, flush=True)

    return tell


def table(results: list[Result]) -> str:
    """All parts of all rows, as a table for people (Markdown)."""
    by_row: defaultdict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_row[result.row].append(result)
    lines = [
        "| fault | how many | acknowledged | lost | altered | never sent | came twice (unexplained) | remarks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, parts in by_row.items():
        total: Callable[[str], int] = lambda field, parts=parts: sum(getattr(one, field) for one in parts)  # type: ignore[misc] # noqa: E731
        verdict = "**broken**; " if any(one.problems for one in parts) else ""
        oldest = max(one.oldest_duplicate_ms for one in parts)
        last = "in the last part: " if len(parts) > 1 else ""
        remarks = [last + parts[-1].note] if parts[-1].note else []
        remarks += [f"at most {oldest} ms between an arrival and the fault that made it come again"] if oldest else []
        cells = [f"{total('acknowledged'):,}", *(f"{total(f):,}" for f in ("lost", "altered", "never_sent"))]
        cells.append(f"{total('duplicates'):,} ({total('unexplained')})")
        if not total("acknowledged"):
            cells = ["-"] * 5
        if aside := total("set_aside"):
            remarks.append(f"{aside} set aside since kills fell on them again and again, and delivered when released")
        lines.append(f"| {row} | {total('faults'):,} | {' | '.join(cells)} | {verdict}{'; '.join(remarks)} |")
    return "\n".join(lines)


@functools.cache
def commit() -> str:
    """Of the checkout that is tested, with a plus when it was changed since; "" when that cannot be told."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip()


def machine() -> str:
    """Where and when, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    version = ".".join(map(str, sys.version_info[:3]))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"{today}, {os.cpu_count()} cores, {memory:.0f} GB, Linux {os.uname().release}, Python {version}, commit {commit()}"


def main() -> int:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (_, whole, _) in ROWS.items():
        if whole == 1:
            parser.add_argument(f"--{name}", action="store_const", const=1, default=0, help="all of them")
        else:
            parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=f"the long form has {whole:,}")
    parser.add_argument("--part", type=int, default=0, metavar="N", help="at most so many faults on one queue")
    parser.add_argument("--results", type=Path, help="append each part's result to this file (JSON lines)")
    parser.add_argument("--table", type=Path, metavar="RESULTS", help="only print the table of such a file")
    options: dict[str, Any] = vars(parser.parse_args())
    if options["table"]:
        results = [msgspec.json.decode(line, type=Result) for line in options["table"].read_bytes().splitlines()]
        print(table(results))
        return 0
    wanted = {name: options[name.replace("-", "_")] for name in ROWS}
    if not any(wanted.values()):
        wanted = {name: whole for name, (_, whole, _) in ROWS.items()}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = []
    try:
        for name, count in wanted.items():
            for result in run_row(name, count, options["part"]):
                results.append(result)
                print(f"{result.row}: {json.dumps(msgspec.to_builtins(result))}", file=sys.stderr)
                if options["results"]:
                    with options["results"].open("ab") as file:
                        file.write(msgspec.json.encode(result) + b"\n")
    except KeyboardInterrupt:
        print("\ninterrupted: the part that was under way does not count", file=sys.stderr)
    print(f"\n{machine()}\n\n{table(results)}")
    return 1 if any(result.problems for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
