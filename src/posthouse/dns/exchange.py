"""One question to one name server, and the answer that truly belongs to it (RFC 1035 4, RFC 5452, RFC 6891).

The socket is connected and its port chosen at random by the kernel, so only datagrams from the server asked come in. One that
has the wrong id or question, or cannot be read, is passed over and the wait goes on: whoever sends a forgery must not be able to end
the exchange with it. A truncated answer is asked for again over TCP.
"""

import asyncio
import struct

import dns.exception
import dns.flags
import dns.message
import msgspec

EDNS_PAYLOAD = 1232  # octets that pass unfragmented over IPv6 (the DNS flag day of 2020)
_HEADER_LENGTH = 12


class Server(msgspec.Struct, frozen=True):
    """A recursive name server: an address (with a scope, perhaps) and a port."""

    host: str
    port: int = 53

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ExchangeFailed(msgspec.Struct, frozen=True):
    """The server gave no usable answer; `words` say why."""

    words: str


class _Truncated(msgspec.Struct, frozen=True):
    """The answer did not fit into a datagram."""


class _Datagrams(asyncio.DatagramProtocol):
    """Waits for the one datagram that answers the query."""

    def __init__(self, query: dns.message.Message) -> None:
        self.query = query
        self.answer: asyncio.Future[dns.message.Message | _Truncated] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self.answer.done() or len(data) < _HEADER_LENGTH:
            return
        is_truncated = bool(struct.unpack_from("!H", data, 2)[0] & dns.flags.TC)
        message = _read(data, self.query, question_only=is_truncated)
        if message is not None:
            self.answer.set_result(_Truncated() if is_truncated else message)

    def error_received(self, exc: Exception) -> None:
        """The kernel reports an ICMP error: nobody listens there."""
        if not self.answer.done():
            self.answer.set_exception(exc)


def _read(data: bytes, query: dns.message.Message, question_only: bool = False) -> dns.message.Message | None:
    """The message when it answers the query, else None."""
    try:
        message = dns.message.from_wire(data, ignore_trailing=True, question_only=question_only)
        return message if query.is_response(message) else None
    except (dns.exception.DNSException, ValueError, struct.error):
        return None


async def exchange(query: dns.message.Message, server: Server, seconds: float) -> dns.message.Message | ExchangeFailed:
    """The server's answer, over UDP and, when truncated, TCP; in `seconds` at most, for both together."""
    try:
        async with asyncio.timeout(seconds):
            answer = await _over_udp(query, server)
            if isinstance(answer, _Truncated):
                return await _over_tcp(query, server)
            return answer
    except TimeoutError:
        return ExchangeFailed(f"name server {server} did not answer within {seconds:g} s")
    except (OSError, EOFError) as error:
        return ExchangeFailed(f"name server {server}: {error}")


async def _over_udp(query: dns.message.Message, server: Server) -> dns.message.Message | _Truncated:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: _Datagrams(query), remote_addr=(server.host, server.port)
    )
    try:
        transport.sendto(query.to_wire())
        return await protocol.answer
    finally:
        transport.close()


async def _over_tcp(query: dns.message.Message, server: Server) -> dns.message.Message | ExchangeFailed:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        wire = query.to_wire()
        writer.write(struct.pack("!H", len(wire)) + wire)
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        message = _read(await reader.readexactly(length), query)
        return message or ExchangeFailed(f"name server {server} sent something else than an answer over TCP")
    finally:
        writer.close()
