"""A name server that fails in every way it can, in a process of its own: each zone has a fault; told so, all mend.

    python fault_name_server.py ADDRESS PORT

SIGUSR1 mends. The zone `FAULT.test` is asked for its MX and for the address of `mail.FAULT.test`; `good.test` is always right.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import dns.flags
import dns.message
import dns.rcode
import uvloop

from dns_server import LyingServer, answer, truncated
from fault_sabotage import python_path
from peer_programs import free_port, loopback_address, wait_until

Query = dns.message.QueryMessage
Answers = list[bytes | tuple[float, bytes]]

ADDRESS = "127.0.0.1"
"""Of every next hop."""

SOA = "{zone} 1 IN SOA ns.test. admin.test. 1 3600 600 86400 1"


def _zone_of(query: Query) -> tuple[str, str, str]:
    question = query.question[0]
    name, kind = question.name.to_text().lower(), question.rdtype.name
    labels = name.rstrip(".").split(".")
    return ".".join(labels[-2:]) + ".", name, kind


def right(query: Query) -> Answers:
    """What a working server says."""
    zone, name, kind = _zone_of(query)
    if kind == "MX" and name == zone:
        return [answer(query, f"{zone} 1 IN MX 10 mail.{zone}")]
    if kind == "A" and name != zone:
        return [answer(query, f"{name} 1 IN A {ADDRESS}")]
    return [answer(query, authority=SOA.format(zone=zone))]


def _code(code: int) -> Callable[[Query], Answers]:
    return lambda query: [answer(query, code=code, authority=SOA.format(zone=_zone_of(query)[0]))]


def _silent(_query: Query) -> Answers:
    return []


def _late(query: Query) -> Answers:
    return [(5.0, one) for one in right(query) if isinstance(one, bytes)]


def _garbage(query: Query) -> Answers:
    return [query.to_wire()[:2] + b"\x81\x80" + b"\xff" * 60, b"", b"\x00"]


def _forged(query: Query) -> Answers:
    (whole,) = right(query)
    assert isinstance(whole, bytes)
    return [bytes([whole[0] ^ 1, whole[1]]) + whole[2:]]


def _lame(query: Query) -> Answers:
    """Knows nothing, and sends us to servers that do: what a server says that was never told about the zone."""
    response = dns.message.make_response(query)
    response.authority = [dns.rrset.from_text(_zone_of(query)[0], 60, "IN", "NS", "ns.elsewhere.test.")]
    return [response.to_wire()]


def _loop(query: Query) -> Answers:
    zone, name, _ = _zone_of(query)
    other = f"a.{zone}" if name != f"a.{zone}" else f"b.{zone}"
    return [answer(query, f"{name} 1 IN CNAME {other}", f"{other} 1 IN CNAME {name}")]


def _flap(query: Query) -> Answers:
    return right(query) if time.monotonic() % 2 < 1 else _code(dns.rcode.NXDOMAIN)(query)


def _wild(query: Query) -> Answers:
    """Every name exists, as an address alone."""
    zone, name, kind = _zone_of(query)
    return [
        answer(query, f"{name} 1 IN A {ADDRESS}") if kind == "A" else answer(query, authority=SOA.format(zone=zone))
    ]


def _many(query: Query, best: str) -> Answers:
    zone, name, kind = _zone_of(query)
    if kind == "MX":
        others = [f"{zone} 1 IN MX 20 h{number}.{zone}" for number in range(300)]
        return [answer(query, f"{zone} 1 IN MX 10 {best}.{zone}", *others)]
    if kind == "A":
        addresses = [ADDRESS] if name.startswith("mail.") else [f"127.9.{number}.1" for number in range(200)]
        return [answer(query, *(f"{name} 1 IN A {one}" for one in addresses))]
    return [answer(query, authority=SOA.format(zone=zone))]


def _inside(query: Query) -> Answers:
    """Would have us connect to this machine's inside. (Nothing beyond it: the control does connect.)"""
    zone, name, kind = _zone_of(query)
    if kind == "MX":
        return [answer(query, *(f"{zone} 1 IN MX {n} h{n}.{zone}" for n in range(4)))]
    if kind == "A":
        return [answer(query, *(f"{name} 1 IN A {one}" for one in (ADDRESS, "0.0.0.0", "127.9.9.9")))]
    return [answer(query, *(f"{name} 1 IN AAAA {one}" for one in ("::1", "::ffff:127.0.0.1", "::")))]


def _empty_tcp(query: Query) -> Answers:
    return [b""]


FAULTS: dict[str, tuple[Callable[[Query], Answers], Callable[[Query], Answers] | None]] = {
    "servfail": (_code(dns.rcode.SERVFAIL), None),
    "refused": (_code(dns.rcode.REFUSED), None),
    "notimp": (_code(dns.rcode.NOTIMP), None),
    "silent": (_silent, None),
    "late": (_late, None),
    "garbage": (_garbage, None),
    "forged": (_forged, None),
    "lame": (_lame, None),
    "loop": (_loop, None),
    "truncated": (truncated, _silent),
    "cut": (truncated, _empty_tcp),
    "manydead": (truncated, lambda query: _many(query, "h0")),
    "nxdomain": (_code(dns.rcode.NXDOMAIN), None),
    "nullmx": (lambda query: [answer(query, f"{_zone_of(query)[0]} 1 IN MX 0 .")], None),
    "inside": (_inside, None),
    "flap": (_flap, None),
    "wild": (_wild, None),
    "many": (truncated, lambda query: _many(query, "mail")),
    "overtcp": (truncated, right),
}
"""Zone → (over UDP, over TCP)."""

DEFERRED = (
    "servfail",
    "refused",
    "notimp",
    "silent",
    "late",
    "garbage",
    "forged",
    "lame",
    "truncated",
    "cut",
    "manydead",
)
"""Nothing is known: tried again, and delivered when the server has mended."""

RETURNED = ("nxdomain", "nullmx", "inside")
"""The domain says no, or leads where mail must not go: returned to the sender."""

DELIVERED = ("wild", "many", "overtcp")
"""Odd, and right."""

EITHER = ("flap", "loop")
"""Delivered or returned, by what was said just then."""


class _Mending:
    is_done = False


async def _serve(address: str, port: int) -> None:
    mending = _Mending()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: setattr(mending, "is_done", True))

    def behaviour(which: int) -> Callable[[Query], Answers]:
        def behave(query: Query) -> Answers:
            fault = FAULTS.get(_zone_of(query)[0].partition(".")[0])
            if fault is None or mending.is_done:
                return right(query)
            return (fault[which] or fault[0])(query)  # type: ignore[misc]

        return behave

    server = LyingServer(behaviour(0), behaviour(1))
    await loop.create_datagram_endpoint(lambda: server, local_addr=(address, port))
    await asyncio.start_server(server.serve_tcp, address, port)
    await asyncio.Event().wait()


class NameServer:
    """The running process."""

    def __init__(self, process: "subprocess.Popen[bytes]", address: str) -> None:
        self._process = process
        self.address = address

    def mend(self) -> None:
        """From now on all zones are right."""
        self._process.send_signal(signal.SIGUSR1)


@contextlib.contextmanager
def name_server() -> Iterator[NameServer]:
    """For as long as the block."""
    address = loopback_address()
    port = free_port(address)
    process = subprocess.Popen(
        [sys.executable, __file__, address, str(port)],
        env={**os.environ, "PYTHONPATH": python_path()},
        start_new_session=True,
    )
    try:
        wait_until(lambda: _answers(address, port), "the name server to answer")
        yield NameServer(process, f"{address}:{port}")
    finally:
        process.kill()
        process.wait()


def _answers(address: str, port: int) -> bool:
    import dns.query

    try:
        return bool(dns.query.udp(dns.message.make_query("good.test.", "MX"), address, timeout=1, port=port).answer)
    except (OSError, dns.exception.Timeout):
        return False


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2])))
