"""Messages that kill the worker that sends them, under load: set aside, each, and nothing else with them; the rest flows."""

import contextlib
import time
from collections.abc import Callable

import msgspec

from fault_load import LATER, RELAYED, Client, content
from fault_oracle import Findings, content_of
from fault_run import Run, held_in, release_held, run
from fault_sabotage import POISON
from fault_syscalls import is_alive
from posthouse.spool.inspect import load

WAYS = ("segv", "kill", "load")


class Poisoned(msgspec.Struct):
    """What was done and found."""

    findings: Findings
    messages: int
    deaths: int = 0
    """Of workers, until nothing killed them any more."""
    set_aside: list[str] = []
    """Reasons of what was held then."""
    innocent: int = 0
    """Of these, messages that were not poison."""
    deaths_on_release: int = 0
    """Of workers, after one poison had been released; it was held again then."""
    passed: int = 0
    """Messages acknowledged and delivered between the first death and the last one."""


def poison_often(
    times: int,
    sabotage: str = "",
    seed: int = 0,
    most_deaths: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Poisoned:
    """So many poison messages one after the other, under load; then one is released, then the fault is mended and all are."""
    most_deaths = most_deaths or 8 * times
    with run(sabotage="+".join(filter(None, ("poison", sabotage))), seed=seed, retry="0.5s", pause=0.002) as going:
        found = Poisoned(Findings(), times)
        began = time.monotonic()
        pid = going.victims.start()
        for number in range(times):
            _hand_in(going, number, WAYS[number % len(WAYS)])
            pid, deaths = _live_on(going, pid, most_deaths - found.deaths)
            found.deaths += deaths
            progress(number + 1)
        found.passed = len(_passed_since(going, began))
        if sabotage:
            going.victims.kill(pid)
            found.set_aside = list(held_in(going.data_dir).values())
            found.findings = going.judge_after_sabotage()
            return found
        assert going.victims.stop(pid) == 0
        held = held_in(going.data_dir)
        found.set_aside = list(held.values())
        found.innocent = sum(not _is_poison(going, one) for one in held)
        found.deaths_on_release = _release_one(going, len(held))
        (going.directory / "cured").touch()
        found.findings = going.drain()
        return found


def _hand_in(going: Run, number: int, way: str) -> None:
    """One poison message."""
    name = f"poison-{number}"
    octets = content(name, 300 + 60_000 * (number % 2), number)
    head, blank, body = octets.partition(b"\r\n\r\n")
    octets = head + b"\r\n" + POISON + way.encode() + blank + body
    recipients = [LATER if way == "load" else RELAYED]  # what has just come is not read from the queue
    going.ledger.sends(name, octets, recipients)
    reply = ""
    with contextlib.suppress(OSError), contextlib.closing(Client(going.load.port)) as client:
        client.say("EHLO client.test")
        reply = client.hand_in(octets, recipients)
    going.ledger.answered(name, reply)


def _is_poison(going: Run, queue_id: int) -> bool:
    loaded = load(going.data_dir, queue_id)
    assert loaded is not None
    return POISON in content_of(loaded[1])


def _live_on(going: Run, pid: int, most: int) -> tuple[int, int]:
    """Starts a worker after each death, as the supervisor does, until one lives; (its pid, how many deaths)."""
    deaths = 0
    while deaths < most:
        end = time.monotonic() + going.patience / 2
        while is_alive(pid) and time.monotonic() < end:
            time.sleep(0.01)
        if is_alive(pid):
            return pid, deaths
        going.ledger.fault()
        going.victims.wait(pid)
        going.fault_is_over()
        deaths += 1
        pid = going.victims.start()
    return pid, deaths


def _release_one(going: Run, held: int) -> int:
    """Gives all one more try; how many deaths until as many are held again."""
    release_held(going.data_dir)
    pid, deaths = _live_on(going, going.victims.start(), 8 * held)
    going.victims.stop(pid)
    assert len(held_in(going.data_dir)) == held, held_in(going.data_dir)
    return deaths


def _passed_since(going: Run, began: float) -> set[str]:
    return {one.id for one in going.sink.arrivals() if one.at >= began}
