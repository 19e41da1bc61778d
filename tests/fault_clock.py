"""Wall clocks that jump under a working relay: an hour, ten years, past 2038, back again; and a start with a wrong clock."""

import contextlib
import time
from collections.abc import Callable, Sequence

import msgspec

from fault_load import Client, content
from fault_oracle import Findings
from fault_run import Run, run
from fault_sabotage import set_clock
from fault_sink import ADDRESS, sink
from peer_programs import free_port, server_directory
from posthouse_server import route_to

DAY, HOUR, YEAR = 86400.0, 3600.0, 365.25 * 86400
JUMPS: tuple[float, ...] = (
    HOUR, -HOUR, -2 * HOUR, 3 * HOUR, 10 * YEAR, -10 * YEAR, 12.5 * YEAR, -12.5 * YEAR, 2 * DAY, -2 * DAY,
)  # fmt: skip
"""Seconds by which the clock jumps, one after the other; 12.5 years reach past January 2038."""

AT_ONCE, SOON = 4.0, 8.0
"""Seconds in which mail to a next hop that is there must arrive, and mail to one that has come back."""


class Jumps(msgspec.Struct):
    """What was found. `late` names what did not arrive in time."""

    findings: Findings
    jumps: int = 0
    late: list[str] = []


def jump_often(
    jumps: Sequence[float] = JUMPS, sabotage: str = "", progress: Callable[[str], None] = lambda _: None
) -> Jumps:
    """Mail to a next hop that is there and to one that comes and goes, over each jump; every other one with a restart."""
    port = free_port(ADDRESS)
    with (
        server_directory("late-sink") as directory,
        run(
            sabotage="+".join(filter(None, ("jumping-clock", sabotage))),
            clients=0,
            more=route_to(f"smtp://{ADDRESS}:{port}", domain="down.test"),
        ) as going,
    ):
        (directory / "sink.log").touch()
        going.more_logs.append(directory / "sink.log")
        found = Jumps(Findings())
        offset = 0.0
        pid = going.victims.start()
        for number, jump in enumerate(jumps):
            name = f"{number}({jump:+.0f}s)"
            before = _send(going, f"{name}-before")
            time.sleep(0.3)  # the first attempt has been made
            offset += jump
            set_clock(going.directory, offset)
            if number % 2:
                going.ledger.fault()
                going.victims.kill(pid)
                going.fault_is_over()
                pid = going.victims.start()
            after = _send(going, f"{name}-after")
            _expect(going, found, [n for n in before + after if "good" in n], AT_ONCE)
            time.sleep(1.5)  # attempts fail by the new clock
            with sink(directory, port):
                _expect(going, found, before + after, SOON)
            found.jumps += 1
            progress(name)
        going.victims.kill(pid)
        found.findings = going.judge_at_rest()
        return found


def _send(going: Run, name: str) -> list[str]:
    sent: list[str] = []
    with contextlib.closing(Client(going.load.port, timeout=10)) as client:
        client.say("EHLO client.test")
        for kind, domain in (("good", "dst.test"), ("down", "down.test")):
            for n in range(2):
                one = f"{name}-{kind}-{n}"
                octets = content(one, 300, n)
                going.ledger.sends(one, octets, [f"b@{domain}"])
                going.ledger.answered(one, client.hand_in(octets, [f"b@{domain}"]))
                sent.append(one)
    return sent


def _expect(going: Run, found: Jumps, names: list[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while missing := set(names) - {one.id for one in going.arrivals() if not one.is_notice}:
        if time.monotonic() > end:
            found.late += sorted(missing)
            return
        time.sleep(0.05)
