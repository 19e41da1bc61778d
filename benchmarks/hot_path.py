"""What Python costs a message, in microseconds, without sockets and without a disk.

    python benchmarks/hot_path.py [--messages 20000] [--size 4096] [--profile] [--budget 50]

One kept session: MAIL, RCPT and DATA, then the content, through the engine, the session, `decide`, the trace field, the intake, the
scheduler and the delivery, with logging and metrics on. The spool answers at once and the next hop takes everything, so
what is printed is our own code alone. The bare engine (every event answered, nothing done) is printed beside it: the difference is the
budget that policy, trace, routing, log, metrics and queue may spend. With --budget the exit status is 1 when they spend more.
"""

import argparse
import asyncio
import cProfile
import pstats
import statistics
import sys
import time

from posthouse.mail.outcome import Outcome, Relayed
from posthouse.mail.reason import Reason, Slug
from posthouse.net.server import Peer
from posthouse.observe import log
from posthouse.policy.facts import Role
from posthouse.policy.rules import compile_rules
from posthouse.relay.backoff import RetryPlan
from posthouse.relay.delivery import Delivery
from posthouse.relay.directions import Directions
from posthouse.relay.intake import Intake
from posthouse.relay.route import NextHop, Route, parse_hop
from posthouse.relay.scheduler import Scheduler
from posthouse.relay.session import Desk, Session
from posthouse.smtp.event import ContentWanted, Event
from posthouse.smtp.reply import Reply
from posthouse.smtp.server import CONTENT_WELCOME, ServerConnection, ServerSettings, Signal
from posthouse.spool.memory import MemorySpool
from posthouse.transports.api import Closed, Feed

OK = Reply(250, "2.0.0", ("Ok",))
TAKEN: Outcome = Relayed("2.0.0", Reason(Slug.RELAYED, "taken"), "mx.test [127.0.0.1]:25", "250 2.0.0 Ok: queued")


def clock() -> int:
    return time.time_ns() // 1_000_000


class Spool(MemorySpool):
    """Durable at once, and forgetful: it must not be what is measured."""

    def accept(self, envelope, message, durable):
        durable(None)

    def record(self, fates, *, at_once=False):
        pass


class Everything:
    async def run(self, feed: Feed) -> Closed:
        while True:
            while (attempt := feed.take()) is not None:
                feed.report(attempt, [TAKEN])
            if not await feed.wait(5):
                return Closed(0)


class Map:
    async def find(self, destination: str) -> Directions:
        route = Route(("*",), (parse_hop("smtp://127.0.0.1:25"),))
        return Directions("site", (NextHop(route.hops[0], route),), route)


class Line:
    """Drives the engine as net.server does, without a socket."""

    def __init__(self, make_handler) -> None:
        self.engine = ServerConnection(ServerSettings("relay.test", rcpt_max=1000))
        self.handler = make_handler(self)
        self.engine.greet(self.handler.connected(Peer("127.0.0.1", 4711)))
        self.receive(b"EHLO client.test\r\n")

    def receive(self, octets: bytes) -> None:
        self.engine.receive_data(octets)
        self.pump()

    def pump(self) -> None:
        engine, handle = self.engine, self.handler.handle
        while True:
            event = engine.next_event()
            if isinstance(event, Signal):
                break
            reply = handle(event)
            if event.needs_reply:
                if reply is None:
                    return
                engine.reply(reply)
        engine.data_to_send()

    def answer(self, reply: Reply) -> None:
        self.engine.reply(reply)

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Bare:
    def connected(self, _peer: Peer) -> None:
        return None

    def handle(self, event: Event) -> Reply | None:
        if not event.needs_reply:
            return None
        return CONTENT_WELCOME if type(event) is ContentWanted else OK


def relay(line: Line) -> Session:
    spool = Spool(0, loop=None, clock=clock)
    scheduler = Scheduler({0: spool}, Map(), lambda _next_hop: Everything(), RetryPlan(), clock)
    scheduler.settle = Delivery(scheduler, None, RetryPlan(), clock).settle
    rules = compile_rules(trusted_networks=["127.0.0.0/8", "10.0.0.0/8"], local_domains=["here.test"])
    return Session(
        Desk(
            Role.RELAY,
            "relay.test",
            "127.0.0.1:25",
            Intake(spool, scheduler, clock),
            rules,
            clock,
            most_messages=1 << 60,
        ),
        line,
        line.engine,
    )


async def measure(make_handler, messages: int, size: int) -> float:
    line = Line(make_handler)
    envelope = b"MAIL FROM:<a@src.test> SIZE=4096\r\n", b"RCPT TO:<b@dst.test>\r\n", b"DATA\r\n"
    header = b"Received: from a by b;\r\n\tFri, 1 Jan 2027 00:00:00 +0000\r\nFrom: a@src.test\r\nSubject: x\r\n\r\n"
    text = b"x" * 76 + b"\r\n"
    content = header + text * ((size - len(header)) // len(text)) + b".\r\n"

    async def some(count: int) -> None:
        for number in range(count):
            for command in envelope:
                line.receive(command)
            line.receive(content)
            if number % 20 == 19:
                await asyncio.sleep(0)

    await some(500)
    began = time.process_time()
    await some(messages)
    return (time.process_time() - began) / messages * 1e6


def main() -> int:
    """0; 1 when a budget was given and is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where the time goes, in place of how much it is")
    parser.add_argument("--budget", type=float, default=0, help="microseconds that may be spent beyond the engine")
    args = parser.parse_args()
    log.configure("json", "info", open("/dev/null", "w"))  # noqa: SIM115
    if args.profile:
        profile = cProfile.Profile()
        profile.enable()
        asyncio.run(measure(relay, args.messages, args.size))
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return 0
    engine, whole = [], []
    for _ in range(args.runs):
        engine.append(asyncio.run(measure(lambda _line: Bare(), args.messages, args.size)))
        whole.append(asyncio.run(measure(relay, args.messages, args.size)))
    bare, full = statistics.median(engine), statistics.median(whole)
    print(
        f"bare engine {bare:.1f} us, whole path {full:.1f} us, so {full - bare:.1f} us beyond the engine (medians of {args.runs})"
    )
    if args.budget and full - bare > args.budget:
        print(f"that is more than the budget of {args.budget:g} us", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
