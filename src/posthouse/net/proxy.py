"""The PROXY protocol, versions 1 and 2: who really calls, as a trusted proxy in front of us says it. No I/O.

Read from the first octets of a connection, before the greeting and before TLS. What is no header is malformed: there is no
connection "with or without". UNKNOWN (v1), LOCAL (v2) and address families other than IP come out as NotProxied: then no
client address is known, and whoever asks must not take the proxy's for it.

Source: "The PROXY protocol", haproxy.org, sections 2.1 and 2.2.
"""

import struct
from ipaddress import IPv4Address, IPv6Address

import msgspec

from posthouse.smtp.ip import normalise_address

V1_OCTETS = 107
"""The longest v1 line, CRLF included (section 2.1)."""
V2_BODY_OCTETS = 4096
"""What we read of v2 addresses and TLVs; real ones have some hundred octets."""

_V1 = b"PROXY "
_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEADER_OCTETS = 16
_TCP4, _TCP6 = 0x11, 0x21


class NeedMore(msgspec.Struct, frozen=True):
    """The header has not come whole."""


class Proxied(msgspec.Struct, frozen=True):
    """The client behind the proxy, and where it connected to. An IPv4-mapped IPv6 address is given as IPv4."""

    source_address: str
    source_port: int
    destination_address: str
    destination_port: int


class NotProxied(msgspec.Struct, frozen=True):
    """The proxy speaks for itself (LOCAL) or does not know (UNKNOWN): no client address."""


class Malformed(msgspec.Struct, frozen=True):
    """No PROXY header, or a broken one: the connection must end. `words` say what is wrong."""

    words: str


Header = Proxied | NotProxied | Malformed


class ProxyReader:
    """Reads one header. `rest` holds the octets behind it once it has been read."""

    def __init__(self) -> None:
        self.rest = b""
        self._buffer = b""

    def receive(self, data: bytes) -> NeedMore | Header:
        """Takes octets; call it again while it needs more."""
        self._buffer += data
        buffer = self._buffer
        if buffer.startswith(_V2[: len(buffer)]) and buffer[:1] == b"\r":
            return self._read_v2(buffer)
        if buffer.startswith(_V1[: len(buffer)]):
            return self._read_v1(buffer)
        return Malformed("The connection does not begin with a PROXY header")

    def _read_v1(self, buffer: bytes) -> NeedMore | Header:
        end = buffer.find(b"\r\n", 0, V1_OCTETS)
        if end < 0:
            if len(buffer) < V1_OCTETS and b"\n" not in buffer:
                return NeedMore()
            return Malformed("The PROXY line does not end with CRLF within 107 octets")
        self.rest = buffer[end + 2 :]
        return _parse_v1(buffer[len(_V1) : end])

    def _read_v2(self, buffer: bytes) -> NeedMore | Header:
        if len(buffer) < _V2_HEADER_OCTETS:
            return NeedMore()
        command, family, octets = struct.unpack_from("!BBH", buffer, len(_V2))
        if command not in (0x20, 0x21):
            return Malformed("The PROXY header has an unknown version or command")
        if octets > V2_BODY_OCTETS:
            return Malformed(f"The PROXY header is longer than {V2_BODY_OCTETS} octets")
        if len(buffer) < _V2_HEADER_OCTETS + octets:
            return NeedMore()
        self.rest = buffer[_V2_HEADER_OCTETS + octets :]
        if command == 0x20:  # LOCAL: the addresses, if any, mean nothing
            return NotProxied()
        return _parse_v2(family, buffer[_V2_HEADER_OCTETS : _V2_HEADER_OCTETS + octets])


def _parse_v1(line: bytes) -> Header:
    family, *words = line.split(b" ")
    if family == b"UNKNOWN":
        return NotProxied()
    if family not in (b"TCP4", b"TCP6") or len(words) != 4:
        return Malformed("The PROXY line is not: PROXY TCP4|TCP6 source destination port port")
    kind = IPv4Address if family == b"TCP4" else IPv6Address
    try:
        source, destination = (kind(word.decode("ascii")) for word in words[:2])
        ports = [_port(word) for word in words[2:]]
    except ValueError:  # UnicodeDecodeError and AddressValueError are such
        return Malformed("The PROXY line holds an address or a port that is none")
    return _proxied(source, ports[0], destination, ports[1])


def _parse_v2(family: int, body: bytes) -> Header:
    if family == _TCP4 and len(body) >= 12:
        source4, destination4, *ports = struct.unpack_from("!4s4sHH", body)
        return _proxied(IPv4Address(source4), ports[0], IPv4Address(destination4), ports[1])
    if family == _TCP6 and len(body) >= 36:
        source6, destination6, *ports = struct.unpack_from("!16s16sHH", body)
        return _proxied(IPv6Address(source6), ports[0], IPv6Address(destination6), ports[1])
    if family in (_TCP4, _TCP6):
        return Malformed("The PROXY header is too short for its addresses")
    return NotProxied()  # UNSPEC, UDP or UNIX: nothing that could be a client of ours


def _proxied(
    source: IPv4Address | IPv6Address, source_port: int, destination: IPv4Address | IPv6Address, destination_port: int
) -> Header:
    if "%" in str(source) or "%" in str(destination):
        return Malformed("The PROXY line holds an address with a zone")
    return Proxied(str(normalise_address(source)), source_port, str(normalise_address(destination)), destination_port)


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (len(word) > 1 and word.startswith(b"0")) or int(word) > 65535:
        raise ValueError(word)
    return int(word)
