"""A run of the fault programme: a relay's configuration, a next hop, clients, faults one after the other, and the verdict."""

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_load import LOCAL, MIXED, SIZES, Load, sending
from fault_oracle import Arrival, Findings, Ledger, arrivals_in, judge, mailbox_arrivals, queued_in
from fault_sabotage import CLOCK, CURED, set_clock
from fault_sink import Sink, sink
from fault_victim import Ended, Victims, victims
from peer_programs import free_port, loopback_address, server_directory
from posthouse.mail.envelope import shard_of
from posthouse.spool.api import SpoolError, Verb
from posthouse.spool.inspect import Filter, State, list_entries
from posthouse.spool.shard import shard_directories
from posthouse.spool.sqlite import SqliteSpool
from spooling import SMALL

DRAIN_SECONDS = 60.0


def settings_for(box: Path, next_hop: str, retry: str = "1s", free_space: int = 1, name_server: str = "") -> str:
    """Routes for the load of `fault_load`: one domain to a Maildir, the rest to the next hop; quick retries; no free space kept."""
    return f"""\
[relay]
local_domains = ["local.test"]

[[route]]
domain = "local.test"
to = ["maildir:{box}"]

[[route]]
domain = "*"
to = ["{next_hop}"]

[retry]
first = "{retry}"
longest = "{retry}"
factor = 1.0
give_up = "1d"
delay_notice = "12h"

[resolver]
servers = ["{name_server or f"{loopback_address()}:53"}"]
timeout = "1s"

[limits]
free_space = {free_space}
session_messages = 100000

[log]
level = "warning"
"""


def configuration(directory: Path, data_dir: Path, port: int, settings: str) -> Path:
    """The file of a relay with one worker."""
    path = directory / "posthouse.toml"
    path.write_text(f"""\
hostname = "relay.test"
data_dir = "{data_dir}"
workers = 1

[[listener]]
address = "127.0.0.1:{port}"

{settings}""")
    return path


def held_in(data_dir: Path) -> dict[int, str]:
    """Messages of which something is held, each with the reason's slug."""
    entries = list_entries(data_dir, Filter(state=State.HELD), 1_000_000)
    return {entry.queue_id: next((one.last.slug for one in entry.recipients if one.last), "") for entry in entries}


def release_held(data_dir: Path) -> list[int]:
    """While no server runs: gives one more try to whatever was set aside, since kills fell on it again and again."""
    released = []
    for shard, directory in shard_directories(data_dir):
        spool = SqliteSpool(directory, shard, settings=SMALL)
        try:
            released += spool.act(Verb.RELEASE, [one for one in held_in(data_dir) if shard_of(one) == shard])
        finally:
            spool.close()
    return released


class Run:
    """What a fault may use: the ledger, the clients' load, the workers."""

    def __init__(
        self,
        ledger: Ledger,
        load: Load,
        made: Victims,
        sink: Sink,
        directory: Path,
        data_dir: Path,
        box: Path,
        seed: int,
    ) -> None:
        self.ledger = ledger
        self.load = load
        self.victims = made
        self.sink = sink
        self.directory = directory
        self.data_dir = data_dir
        self.box = box
        self.more_logs: list[Path] = []
        """Of further next hops."""
        self.random = random.Random(seed)
        self.patience = 4.0
        """Seconds that what was promised may take when nothing is in its way."""

    def fault_is_over(self) -> None:
        """The dead worker's last words have been read."""
        self.sink.wait_until_all_is_read()
        self.ledger.fault_is_over()

    def drain(self) -> Findings:
        """No more load: a worker delivers what is left; then the verdict."""
        self.load.running.clear()
        set_aside = release_held(self.data_dir)
        pid = self.victims.start()
        end = time.monotonic() + DRAIN_SECONDS
        findings = self.judge_now()
        while findings.lost and time.monotonic() < end:
            time.sleep(0.1)
            findings = self.judge_now()
        time.sleep(0.3)
        status = self.victims.stop(pid)
        assert status == 0, f"the last worker ended with {status}"
        findings = self.judge_at_rest()
        findings.set_aside = len(set_aside)
        return findings

    def judge_after_sabotage(self) -> Findings:
        """The verdict of a control: gives a worker a moment to deliver what it can, if it can start at all."""
        self.load.running.clear()
        try:
            pid = self.victims.start()
            time.sleep(2)
            self.victims.kill(pid)
            return self.judge_at_rest()
        except (Ended, sqlite3.Error, SpoolError):
            return self.judge_now()

    def arrivals(self) -> list[Arrival]:
        """Everything that has come anywhere."""
        found = self.sink.arrivals() + mailbox_arrivals(self.box, LOCAL)
        return found + [one for log in self.more_logs for one in arrivals_in(log)]

    def judge_now(self) -> Findings:
        """What has arrived so far; what is still queued counts as lost."""
        return judge(self.ledger, self.arrivals())

    def judge_at_rest(self) -> Findings:
        """The verdict while no worker runs."""
        return judge(self.ledger, self.arrivals(), queued_in(self.data_dir))


@contextlib.contextmanager
def run(
    data_dir: Path | None = None,
    box: Path | None = None,
    sabotage: str = "",
    seed: int = 0,
    clients: int = 4,
    mix: tuple[tuple[str, ...], ...] = MIXED,
    sizes: tuple[int, ...] = SIZES,
    next_hop: str = "",
    more: str | Callable[[int], str] = "",
    name_server: str = "",
    pause: float = 0.0,
    retry: str = "1s",
    free_space: int = 1,
) -> Iterator[Run]:
    """Everything set up and sending; `drain` ends the load and gives the verdict. `more` are further settings, by the sink's port."""
    seed = seed or random.SystemRandom().randrange(1, 1 << 30)
    print(f"seed {seed}")
    with server_directory("faults") as directory, sink(directory) as taking:
        data = data_dir or directory / "data"
        maildir = box or data / "box"
        ledger = Ledger()
        port = free_port()
        settings = settings_for(maildir, next_hop or taking.url, retry, free_space, name_server)
        settings += more if isinstance(more, str) else more(taking.port)
        config = configuration(directory, data, port, settings)
        load = Load(ledger, port, seed, mix, sizes, pause)
        set_clock(directory, 0)
        variables = {CLOCK: str(directory / "clock"), CURED: str(directory / "cured")}
        with victims(config, sabotage, variables=variables) as made, sending(load, clients):
            going = Run(ledger, load, made, taking, directory, data, maildir, seed)
            if set(sabotage.split("+")) - {"", "short-patience", "jumping-clock", "poison", "thread-sync"}:
                going.patience = 0.7  # what it has lost never comes
            try:
                yield going
            except BaseException:
                print(made.output.read_text(errors="replace")[-5000:])
                raise
