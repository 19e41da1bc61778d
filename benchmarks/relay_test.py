"""The relay test beside nmap's smtp-open-relay, on one closed Postfix that has the error limits it is delivered with.

All of it runs in a network namespace of its own, where 127.0.0.0/8 and port 25 are free: 250 hosts are 127.0.1.1 to
127.0.1.250, served by one Postfix. nmap is Debian's, as it comes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from peer_programs import environment, program  # noqa: E402
from peer_servers import NextHop, postfix_next_hop  # noqa: E402

INSIDE = "POSTHOUSE_BENCHMARK_NAMESPACE"
PORT = 25
STOCK = {
    # What Debian's package writes, and the program's own limits: 10 errors are free, each further one costs a second.
    "smtpd_relay_restrictions": "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination",
    "smtpd_client_connection_count_limit": "50",
    "mydestination": "here.test, localhost",
    "virtual_mailbox_domains": "",
    "local_transport": "discard",
}
LIMITS = ("too many errors", "oncurrency limit exceeded", "too many connections")
FASTER_ONE, FASTER_MANY, MOST_MB = 5.0, 5.0, 200.0


def run(command: list[str], **variables: str) -> tuple[float, str, float]:
    """Seconds, standard output, peak memory in MB."""
    with tempfile.TemporaryFile("w+") as out:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env={**os.environ, **variables})
        _, _, usage = os.wait4(process.pid, 0)
        took = time.monotonic() - began
        out.seek(0)
        return took, out.read(), usage.ru_maxrss / 1024


def nmap(*targets: str) -> tuple[float, int]:
    """Seconds, and how many hosts it judged."""
    variables = dict(environment("nmap"))
    variables["NMAPDIR"] = program("nmap", "usr/share/nmap")
    for blas in Path(program("nmap", "usr/lib")).glob("*/blas"):  # where Debian's alternatives would point to
        variables["LD_LIBRARY_PATH"] += f"{os.pathsep}{blas}"
    lua = next((Path(program("nmap", "usr/lib")).glob("*/lua/5.*/")), None)
    if lua is not None:
        variables["LUA_CPATH"] = f"{lua}/?.so;;"
    command = [program("nmap", "usr/bin/nmap"), "-n", "-Pn", "-p", str(PORT), "--script", "smtp-open-relay", *targets]
    took, output, _ = run(command, **variables)
    judged = len(re.findall(r"smtp-open-relay:", output))
    if not judged:
        sys.exit(f"nmap judged no host:\n{output[-2000:]}")
    return took, judged


def posthouse(home: Path, *words: str) -> tuple[float, dict[str, object], float]:
    """Seconds, the document, MB."""
    command = [sys.executable, "-m", "posthouse", *words, "--json", "--collector", "none"]
    took, output, memory = run(command, HOME=str(home), PYTHONPATH=str(ROOT / "src"))
    return took, json.loads(output), memory


def refusals(server: NextHop) -> int:
    """How often the server said that it had enough."""
    log = (server.directory / "mail.log").read_text(errors="replace")
    return sum(log.count(words) for words in LIMITS)


def hosts(count: int) -> list[str]:
    """127.0.1.1 and so on."""
    return [f"127.0.{1 + n // 250}.{1 + n % 250}" for n in range(count)]


def compare_one(home: Path) -> dict[str, object]:
    """One host, each by itself."""
    with postfix_next_hop(["here.test"], port=PORT, address="0.0.0.0", settings=STOCK) as server:
        theirs, _ = nmap("127.0.0.1")
        before = refusals(server)
        ours, document, _ = posthouse(home, "test", f"127.0.0.1:{PORT}")
        reports = document["reports"]
        assert isinstance(reports, list)
        said = [one for one in reports[0]["results"] if one["verdict"] != "not-tried"]
        return {
            "nmap_seconds": round(theirs, 2),
            "posthouse_seconds": round(ours, 2),
            "posthouse_test_seconds": reports[0]["seconds"],
            "cases": len(said),
            "verdict": document["verdict"],
            "times_faster": round(theirs / ours, 1),
            "server_limits_reached": refusals(server) - before,
        }


def compare_many(home: Path, count: int) -> dict[str, object]:
    """Many hosts, each tool in its own way of doing them."""
    with (
        tempfile.NamedTemporaryFile("w", suffix=".txt") as listed,
        postfix_next_hop(["here.test"], port=PORT, address="0.0.0.0", settings=STOCK) as server,
    ):
        listed.write("\n".join(hosts(count)) + "\n")
        listed.flush()
        before = refusals(server)
        ours, document, memory = posthouse(home, "scan", listed.name)
        reached = refusals(server) - before
        theirs, judged = nmap("-iL", listed.name)
    counts = document["counts"]
    assert isinstance(counts, dict)
    return {
        "hosts": count,
        "nmap_seconds": round(theirs, 1),
        "nmap_hosts_a_minute": round(judged / theirs * 60, 1),
        "posthouse_seconds": round(ours, 1),
        "posthouse_hosts_a_minute": round(counts["closed"] / ours * 60, 1),
        "closed": counts["closed"],
        "times_faster": round((counts["closed"] / ours) / (judged / theirs), 1),
        "server_limits_reached": reached,
        "posthouse_memory_mb": round(memory, 1),
    }


_SLOW = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from rude_servers import Manners, World
class Slow(Manners):
    async def say(self, reply):
        await asyncio.sleep(0.2)
        await super().say(reply)
async def main():
    world = World()
    async def serve(reader, writer):
        world.connections += 1
        world.at_once += 1
        world.most_at_once = max(world.most_at_once, world.at_once)
        try:
            await Slow(world, reader, writer).run()
        except Exception:
            pass
        finally:
            world.at_once -= 1
            writer.close()
    server = await asyncio.start_server(serve, "0.0.0.0", 25, backlog=4096)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(world.most_at_once, flush=True)
asyncio.run(main())
"""


@contextmanager
def slow_server() -> Iterator[subprocess.Popen[str]]:
    """A closed server that takes a fifth of a second for each answer, so that all tests are under way at once."""
    command = [sys.executable, "-c", _SLOW, str(ROOT / "tests")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()
        process.wait()


def measure_memory(home: Path, count: int) -> dict[str, object]:
    """`count` hosts side by side, all of them slow."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed, slow_server() as server:
        listed.write("\n".join(hosts(count)) + "\n")
        listed.flush()
        took, document, memory = posthouse(home, "scan", listed.name, "--at-once", str(count))
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.close()
        sessions = int(server.stdout.readline())
    counts = document["counts"]
    assert isinstance(counts, dict)
    return {
        "hosts_at_once": count,
        "sessions_at_once": sessions,
        "seconds": round(took, 1),
        "closed": counts["closed"],
        "memory_mb": round(memory, 1),
    }


def show(figures: dict[str, dict[str, object]]) -> None:
    """For people."""
    for name, values in figures.items():
        print(name)
        for key, value in values.items():
            print(f"    {key.replace('_', ' '):<28} {value}")
    print("\nfloors: one host 5 x, many hosts 5 x, memory below 200 MB, no limit of the server's reached")


def enter_namespace() -> None:
    """Starts this program again where all of loopback is its own."""
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, *sys.argv[1:]])


def main() -> None:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--hosts", type=int, default=250)
    options.add_argument("--at-once", type=int, default=1000, help="hosts at once for the memory")
    options.add_argument(
        "--part", choices=["one", "many", "memory"], action="append", help="only this; may be repeated"
    )
    options.add_argument("--quick", action="store_true", help="shows that it works; its figures mean nothing")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    if os.geteuid() != 0:
        sys.exit("benchmarks/relay_test: only root can start Postfix and make a network namespace")
    enter_namespace()
    many, crowd = (10, 50) if given.quick else (given.hosts, given.at_once)
    with tempfile.TemporaryDirectory() as home:
        parts: dict[str, Callable[[], dict[str, object]]] = {
            "one": lambda: compare_one(Path(home)),
            "many": lambda: compare_many(Path(home), many),
            "memory": lambda: measure_memory(Path(home), crowd),
        }
        figures = {name: part() for name, part in parts.items() if not given.part or name in given.part}
    print(json.dumps(figures)) if given.json else show(figures)


if __name__ == "__main__":
    main()
