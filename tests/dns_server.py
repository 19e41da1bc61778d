"""A name server for tests that says what it is told to, lies included; on loopback, over UDP and TCP, in the test's own loop."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from posthouse.dns.exchange import Server

Behaviour = Callable[[dns.message.QueryMessage], "list[bytes | tuple[float, bytes]]"]
"""The datagrams to send for a query: octets, or (seconds to wait, octets)."""


def answer(query: dns.message.QueryMessage, *records: str, code: int = dns.rcode.NOERROR, authority: str = "") -> bytes:
    """A whole answer with the given records, as "name ttl IN type data"."""
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(dns.rcode.from_text(dns.rcode.to_text(code)))
    response.answer = [_rrset(record) for record in records]
    response.authority = [_rrset(authority)] if authority else []
    return response.to_wire(max_size=65535)


def _rrset(record: str) -> dns.rrset.RRset:
    name, ttl, _, kind, data = record.split(" ", 4)
    return dns.rrset.from_text(name, int(ttl), "IN", kind, data)


class Zone:
    """A behaviour that answers from a list of records: NXDOMAIN for unknown names, with a SOA."""

    def __init__(self, *records: str) -> None:
        self._by_owner: dict[str, list[list[str]]] = {}
        for record in records:
            fields = record.split(" ", 4)
            self._by_owner.setdefault(fields[0].lower(), []).append(fields)
        self.asked: list[tuple[str, str]] = []

    def __call__(self, query: dns.message.QueryMessage) -> list[bytes | tuple[float, bytes]]:
        question = query.question[0]
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name.rstrip("."), kind))
        found: list[str] = []
        owner = name.lower()
        for _ in range(20):
            here = self._by_owner.get(owner, [])
            wanted = [record for record in here if record[3] == kind]
            alias = [record for record in here if record[3] == "CNAME"]
            found += [" ".join(record) for record in wanted or alias]
            if wanted or not alias:
                break
            owner = alias[0][4].lower()
        exists = owner in self._by_owner
        code = dns.rcode.NOERROR if exists else dns.rcode.NXDOMAIN
        soa = (
            f"{owner} 60 IN SOA ns.test. admin.test. 1 3600 600 86400 60"
            if not found or found[-1].split()[3] != kind
            else ""
        )
        return [answer(query, *found, code=code, authority=soa)]


class LyingServer(asyncio.DatagramProtocol):
    """Answers over UDP by `behaviour`, over TCP by `over_tcp` (by default the same)."""

    def __init__(self, behaviour: Behaviour, over_tcp: Behaviour | None = None) -> None:
        self.behaviour = behaviour
        self.over_tcp = over_tcp or behaviour
        self.queries = 0
        self.tcp_queries = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.queries += 1
        query = dns.message.from_wire(data)
        assert isinstance(query, dns.message.QueryMessage)
        for item in self.behaviour(query):
            delay, octets = item if isinstance(item, tuple) else (0.0, item)
            asyncio.get_running_loop().call_later(delay, self._send, octets, addr)

    def _send(self, octets: bytes, address: tuple[str, int]) -> None:
        if not self.transport.is_closing():
            self.transport.sendto(octets, address)

    async def serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            query = dns.message.from_wire(await reader.readexactly(length))
            assert isinstance(query, dns.message.QueryMessage)
            self.tcp_queries += 1
            for item in self.over_tcp(query):
                octets = item[1] if isinstance(item, tuple) else item
                writer.write(struct.pack("!H", len(octets)) + octets)
        except EOFError:
            pass
        finally:
            writer.close()

    @property
    def server(self) -> Server:
        """Where to ask it."""
        host, port = self.transport.get_extra_info("sockname")[:2]
        return Server(host, port)


@asynccontextmanager
async def lying_server(behaviour: Behaviour, over_tcp: Behaviour | None = None) -> AsyncIterator[LyingServer]:
    """The server, running for as long as the block."""
    loop = asyncio.get_running_loop()
    protocol = LyingServer(behaviour, over_tcp)
    for _ in range(20):  # a port that is free for UDP may be taken for TCP
        transport, _ = await loop.create_datagram_endpoint(lambda: protocol, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        try:
            listener = await asyncio.start_server(protocol.serve_tcp, "127.0.0.1", port)
            break
        except OSError:
            transport.close()
    else:
        raise RuntimeError("no port is free for UDP and TCP at once")
    try:
        yield protocol
    finally:
        transport.close()
        listener.close()
        await asyncio.sleep(0)


def truncated(query: dns.message.QueryMessage) -> list[bytes | tuple[float, bytes]]:
    """An answer that says it did not fit."""
    response = dns.message.make_response(query)
    response.flags |= dns.flags.TC
    return [response.to_wire()]
