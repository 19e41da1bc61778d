"""A name server that fails in every way, under load: nothing lost, nothing bounced for a passing fault, nobody led inside."""

import contextlib
import time

import msgspec

from fault_bad_hops import measure, wait_until_settled
from fault_load import Client, content
from fault_name_server import DEFERRED, DELIVERED, FAULTS, RETURNED, name_server
from fault_oracle import Findings
from fault_run import Run, run

EACH = 3
"""Messages for each zone."""


PATIENCE = 20.0
"""Seconds in which what can be known must be, on a busy machine."""


class DnsFaults(msgspec.Struct):
    """What was found."""

    findings: Findings
    faults: int = len(FAULTS)
    wrong: list[str] = []
    """Zones whose mail did not fare as it must, in words."""
    quiet_ms: float = 0.0
    troubled_ms: float = 0.0
    """Between a 250 and the arrival at a destination whose DNS is right, p99."""
    stuck: int = 0


def suffer_dns(seconds: float = 4.0, sabotage: str = "") -> DnsFaults:
    """Mail to all zones at once, then the name server mends; `seconds` of load before and during."""
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(name_server())
        going = stack.enter_context(
            run(
                sabotage=sabotage,
                mix=(("b@good.test",),),
                sizes=(3000,),
                retry="0.5s",
                pause=0.01,
                clients=2,
                name_server=names.address,
                more=_routes,
            )
        )
        pid = going.victims.start()
        found = DnsFaults(Findings())
        time.sleep(0.5)
        found.quiet_ms, _ = measure(going, seconds, "b@good.test")
        _send_to_all(going)
        found.troubled_ms, found.stuck = measure(going, seconds, "b@good.test")
        end = time.monotonic() + PATIENCE
        while (wrong := _judge_zones(going)) and time.monotonic() < end:
            time.sleep(0.2)
        found.wrong = wrong
        names.mend()
        wait_until_settled(going, 6.0 if sabotage else 60.0)
        found.wrong += [f"{name}: still waits for {recipient}" for name, recipient in going.judge_now().lost]
        found.wrong += _never_inside(going)
        if sabotage:
            going.victims.kill(pid)
            found.findings = going.judge_after_sabotage()
        else:
            assert going.victims.stop(pid) == 0
            found.findings = going.drain()
        return found


def _routes(port: int) -> str:
    """By MX, to the sink's port; only `inside` may not go to loopback."""
    return "".join(
        f"""
[[route]]
domain = "{zone}.test"
to = ["mx:{zone}.test:{port}"]
{"" if zone == "inside" else 'allow_networks = ["127.0.0.0/8"]'}
"""
        for zone in ("good", *FAULTS)
    )


def _recipient(zone: str, number: int) -> str:
    return f"r{number}@{zone}.test"


def _send_to_all(going: Run) -> None:
    with contextlib.closing(Client(going.load.port)) as client:
        client.say("EHLO client.test")
        for zone in FAULTS:
            for number in range(EACH):
                name = f"{zone}-{number}"
                octets = content(name, 3000 if number else 60_000, number)
                recipients = [_recipient(zone, number)]
                going.ledger.sends(name, octets, recipients)
                going.ledger.answered(name, client.hand_in(octets, recipients))


def _judge_zones(going: Run) -> list[str]:
    arrivals = going.arrivals()
    came = {one.id.rpartition("-")[0] for one in arrivals if not one.is_notice}
    returned = {one.id.rpartition("-")[0] for one in arrivals if one.is_notice}
    wrong = [f"{zone}: returned for a fault that passes" for zone in DEFERRED if zone in returned]
    wrong += [f"{zone}: delivered, though nothing was known" for zone in DEFERRED if zone in came]
    wrong += [f"{zone}: not returned" for zone in RETURNED if zone not in returned]
    wrong += [f"{zone}: not delivered" for zone in DELIVERED if zone not in came or zone in returned]
    return wrong


def _never_inside(going: Run) -> list[str]:
    inside = [one.id for one in going.arrivals() if one.recipient.endswith("@inside.test")]
    return [f"inside: {one} was led to a loopback address" for one in inside]
