"""PROXY headers, version 1 and 2, whole and octet by octet."""

import random
import struct
from ipaddress import ip_address

import pytest

from posthouse.net.proxy import Header, Malformed, NeedMore, NotProxied, Proxied, ProxyReader

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(command: int, family: int, body: bytes, octets: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body) if octets is None else octets) + body


def tcp4(source: str, destination: str, source_port: int = 1234, destination_port: int = 25) -> bytes:
    return (
        ip_address(source).packed + ip_address(destination).packed + struct.pack("!HH", source_port, destination_port)
    )


CLIENT = Proxied("192.0.2.1", 1234, "198.51.100.1", 25)
CLIENT6 = Proxied("2001:db8::1", 1234, "2001:db8::2", 25)
HEADERS: dict[bytes, Header] = {
    b"PROXY TCP4 192.0.2.1 198.51.100.1 1234 25\r\n": CLIENT,
    b"PROXY TCP6 2001:db8::1 2001:0db8:0::2 1234 25\r\n": CLIENT6,
    b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 1234 25\r\n": CLIENT,
    b"PROXY UNKNOWN\r\n": NotProxied(),
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n": NotProxied(),
    v2(0x21, 0x11, tcp4("192.0.2.1", "198.51.100.1")): CLIENT,
    v2(0x21, 0x11, tcp4("192.0.2.1", "198.51.100.1") + b"\x03\x00\x04abcd"): CLIENT,
    v2(0x21, 0x21, tcp4("2001:db8::1", "2001:db8::2")): CLIENT6,
    v2(0x21, 0x21, tcp4("::ffff:192.0.2.1", "::ffff:198.51.100.1")): CLIENT,
    v2(0x20, 0x00, b""): NotProxied(),
    v2(0x20, 0x11, tcp4("192.0.2.1", "198.51.100.1")): NotProxied(),
    v2(0x21, 0x00, b""): NotProxied(),
    v2(0x21, 0x12, tcp4("192.0.2.1", "198.51.100.1")): NotProxied(),
    v2(0x21, 0x31, b"x" * 216): NotProxied(),
}
BROKEN = [
    b"EHLO a.example\r\n", b"\x16\x03\x01\x00", b"PROXY\r\n", b"PROXY TCP4\r\n",
    b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n", b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 1234\r\n", b"PROXY TCP4 192.0.2.1 198.51.100.1 1234 25 x\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 1234 65536\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 -1 25\r\n", b"PROXY TCP4 192.0.2.1 198.51.100.1 01 25\r\n", b"PROXY TCP4 ::1 ::1 1 25\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.1 1 25\r\n", b"PROXY TCP6 fe80::1%eth0 ::1 1 25\r\n", b"PROXY TCP4 192.0.2.01 198.51.100.1 1 25\r\n",
    b"PROXY TCP4 192.0.2.1  198.51.100.1 1 25\r\n", b"PROXY TCP4 192.0.2.1 198.51.100.1 1 25\n", b"PROXY TCP4 \xff 198.51.100.1 1 25\r\n",
    b"PROXY " + b"x" * 200, b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
    v2(0x31, 0x11, tcp4("192.0.2.1", "198.51.100.1")), v2(0x22, 0x11, tcp4("192.0.2.1", "198.51.100.1")),
    v2(0x21, 0x11, b"x" * 11), v2(0x21, 0x21, b"x" * 35), v2(0x21, 0x11, b"", 65535), SIGNATURE[:-1] + b"x",
]  # fmt: skip


@pytest.mark.parametrize(("octets", "header"), HEADERS.items())
def test_headers_are_read_whole_and_octet_by_octet(octets: bytes, header: Header) -> None:
    reader = ProxyReader()
    assert reader.receive(octets + b"EHLO a\r\n") == header
    assert reader.rest == b"EHLO a\r\n"
    reader = ProxyReader()
    for octet in octets[:-1]:
        assert reader.receive(bytes([octet])) == NeedMore()
    assert reader.receive(octets[-1:] + b"EHLO") == header
    assert reader.rest == b"EHLO"


@pytest.mark.parametrize("octets", BROKEN)
def test_what_is_no_header_is_malformed_and_hands_out_nothing(octets: bytes) -> None:
    reader = ProxyReader()
    result = reader.receive(octets)
    assert isinstance(result, Malformed), result
    assert result.words


def test_a_header_is_bounded() -> None:
    reader = ProxyReader()
    assert reader.receive(b"PROXY " + b"x" * 100) == NeedMore()
    assert isinstance(reader.receive(b"x"), Malformed)


def test_any_octets_have_a_result() -> None:
    chance = random.Random(1)
    starts = [b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00\x0c"]
    for _ in range(3000):
        ProxyReader().receive(chance.choice(starts) + chance.randbytes(chance.randint(0, 40)))
