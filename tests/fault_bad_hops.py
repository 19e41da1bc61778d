"""One relay, one good destination under load, and many that misbehave: who delays whom, and whether anything is lost."""

import contextlib
import time
from collections.abc import Sequence

import msgspec

from fault_load import Client, content
from fault_next_hop import FAULTS, STAGES, bad_next_hops
from fault_oracle import Findings
from fault_run import Run, run
from fault_sink import ADDRESS
from peer_programs import server_directory
from posthouse_server import route_to

ALL: tuple[tuple[str, str], ...] = tuple((stage, fault) for stage in STAGES for fault in FAULTS)
UNFELT_MS = 1000.0
"""A p99 below this is no delay by others: whoever waits for a next hop that hangs waits this long at least (`short-patience`). What
little there is on a machine kept busy is the load's."""

EACH = 3
"""Messages for each bad destination."""


class BadHops(msgspec.Struct):
    """What was found. Times are milliseconds between a 250 and the arrival at the good destination, p99."""

    findings: Findings
    hops: int
    quiet_ms: float = 0.0
    troubled_ms: float = 0.0
    stuck: int = 0
    """Messages to the good destination that had not arrived while the others misbehaved."""


def domain_of(stage: str, fault: str) -> str:
    """The destination behind a bad next hop."""
    return f"{stage}-{fault}.test"


def suffer_bad_hops(wanted: Sequence[tuple[str, str]] = ALL, seconds: float = 4.0, sabotage: str = "") -> BadHops:
    """Mail to all of them at once, then they mend; `seconds` of load before and during."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(server_directory("bad-hops")) / "log"
        log.touch()
        bad = stack.enter_context(bad_next_hops(log, wanted))
        going = stack.enter_context(
            run(
                sabotage="+".join(filter(None, ("short-patience", sabotage))),
                mix=(("b@dst.test",),),
                sizes=(3000,),
                retry="0.5s",
                pause=0.01,
                clients=2,
                more="".join(
                    route_to(f"smtp://{ADDRESS}:{port}", domain=domain_of(*one)) for one, port in bad.ports.items()
                ),
            )
        )
        going.more_logs.append(log)
        pid = going.victims.start()
        found = BadHops(Findings(), len(wanted))
        time.sleep(0.5)
        found.quiet_ms, _ = measure(going, seconds)
        _send_to_all(going, wanted)
        found.troubled_ms, found.stuck = measure(going, seconds)
        bad.mend()
        wait_until_settled(going, 6.0 if sabotage else 40.0)
        if sabotage:
            going.victims.kill(pid)
            found.findings = going.judge_after_sabotage()
        else:
            assert going.victims.stop(pid) == 0
            found.findings = going.drain()
        return found


def _send_to_all(going: Run, wanted: Sequence[tuple[str, str]]) -> None:
    with contextlib.closing(Client(going.load.port)) as client:
        client.say("EHLO client.test")
        for stage, fault in wanted:
            for number in range(EACH):
                name = f"{stage}-{fault}-{number}"
                octets = content(name, 3000 if number else 60_000, number)
                recipients = [f"r{number}@{domain_of(stage, fault)}"]
                going.ledger.sends(name, octets, recipients)
                going.ledger.answered(name, client.hand_in(octets, recipients))


def measure(going: Run, seconds: float, recipient: str = "b@dst.test") -> tuple[float, int]:
    """(p99 in ms, how many had not arrived) of what was acknowledged from now on."""
    began = time.monotonic()
    time.sleep(seconds)
    names = set(going.ledger.acknowledged_since(began))
    time.sleep(0.5)
    arrived = {one.id: one.at for one in going.sink.arrivals() if one.id in names and one.recipient == recipient}
    waits = sorted(max(0.0, at - going.ledger.acknowledged_at(name)) for name, at in arrived.items())
    missing = len([name for name in names - arrived.keys() if going.ledger.was_sent_to(name, recipient)])
    return (1000 * waits[int(len(waits) * 0.99)] if waits else 1e9), missing


def wait_until_settled(going: Run, seconds: float) -> None:
    """No more load; returns when nothing is left to deliver, or after so many seconds."""
    going.load.running.clear()
    end = time.monotonic() + seconds
    while going.judge_now().lost and time.monotonic() < end:
        time.sleep(0.2)
