"""The echo: does a server see the addresses that its clients have?

Rules that trust networks are worth what client addresses are worth. A container bridge, SNAT or a load balancer makes all
the world look like one address near the server, and right rules open. From inside this can't be seen; from outside it can:
the tester says in EHLO which address it comes from, and the server compares that with the address it saw.

Whom does the server believe? A false echo would suspend the grants of its networks, so strangers must not be able to make
one. It believes whoever holds a *nonce* that it made itself: it asked for the test (its watch called the tester, or its
owner ran `posthouse relay nonce`) and gave the nonce along. So there is no key to share with any tester, none to steal
from one, and nothing to configure; a stranger has no nonce, and one nonce tells of one test, for an hour or two.

    nonce   ID SECRET               13 + 16 characters: what the owner gives to the tester
            ID = minutes since 2020 when it expires (3 octets), random (5 octets)
            SECRET = HMAC-SHA256(the server's key, ID), 10 octets: the server keeps nothing but its key
    EHLO    ID-ADDRESS-MAC.echo.TESTER
            MAC = HMAC-SHA256(SECRET, ADDRESS), 10 octets: who overhears it can say nothing but the same again,
            and the server heeds the first echo of a nonce at a listener only

All in base32, lower case, which are a host name's characters; the label has 57 of its 63 at most (RFC 1035 2.3.4).
"""

import base64
import binascii
import enum
import hashlib
import hmac
import re
import secrets
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from posthouse.policy.networks import Address, normalise_address
from posthouse.tester.token import TokenKey

NONCE_SECONDS = 2 * 3600.0
"""How long a nonce lives: a test that waits for greylisting is done by then."""

NONCE_LENGTH = 29

_EPOCH = 1_577_836_800  # 2020-01-01 00:00 UTC, in seconds since 1970
_ID_LENGTH = 13
_LONGEST_NAME = 253  # RFC 1035 2.3.4, without the root's dot
_MARK = ".echo."
_NONCE = re.compile(rf"[a-z2-7]{{{NONCE_LENGTH}}}")
_NAME = re.compile(rf"([a-z2-7]{{{_ID_LENGTH}}})-([a-z2-7]{{7}}|[a-z2-7]{{26}})-([a-z2-7]{{16}})\.echo\.([a-z0-9.-]+)")


class Heard(enum.StrEnum):
    """What an echo came to."""

    AGREES = "agrees"
    """The server saw the address that the tester has."""
    DIFFERS = "differs"
    """Masked: it saw another one."""
    FORGED = "forged"
    """By no nonce of this server; it says nothing."""
    EXPIRED = "expired"


class Echo(msgspec.Struct, frozen=True):
    """An echo, judged. `nonce_id` names its nonce without giving it away; `held` is the tester's address, `seen` the
    server's view of it. Both and `tester` are "" unless the echo is by one of our nonces."""

    heard: Heard
    nonce_id: str = ""
    held: str = ""
    seen: str = ""
    tester: str = ""


def new_nonce(key: TokenKey, now: float, seconds: float = NONCE_SECONDS) -> str:
    """A nonce of the server under test, good for `seconds` from `now` (seconds since 1970) on, to the next whole minute."""
    minutes = -int((_EPOCH - now - seconds) // 60)
    octets = minutes.to_bytes(3, "big") + secrets.token_bytes(5)
    return _text(octets) + _secret(key, octets)


def own_key(key: TokenKey) -> TokenKey:
    """The key of nonces that a server gives to nobody: by them it knows its own self-test."""
    return TokenKey(hmac.new(key.secret, b"posthouse self-test 1", hashlib.sha256).digest())


def is_nonce(text: str) -> bool:
    """It has the form of a nonce. Whether it is one only its server can tell."""
    return _NONCE.fullmatch(text.strip().lower()) is not None


def hello_name(nonce: str, source: str, tester_name: str) -> str:
    """The tester's EHLO name: `tester_name` with the echo in front. `source` is the address the tester comes from, as the
    world sees it. ValueError when the nonce is none, the address is none, or the name would be too long."""
    nonce = nonce.strip().lower()
    if not is_nonce(nonce):
        raise ValueError(f"{nonce!r} is no nonce: `posthouse relay nonce` on the server to be tested prints one")
    packed = normalise_address(ip_address(source)).packed
    name = f"{nonce[:_ID_LENGTH]}-{_text(packed)}-{_mac(nonce[_ID_LENGTH:], packed)}{_MARK}{tester_name}"
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"the tester's name {tester_name!r} is too long to carry an echo")
    return name


def may_vouch(source: str, target: str) -> bool:
    """Whether a tester that has the address `source` may say that the world sees it so.

    False for a private address towards a public one: then the tester itself is behind NAT, the server sees that NAT's
    address, rightly, and an echo would accuse it of a mask that is the tester's own.
    """
    try:
        own, other = normalise_address(ip_address(source)), normalise_address(ip_address(target))
    except ValueError:
        return False
    return own.is_global or not other.is_global


def has_echo(name: str) -> bool:
    """A cheap look, for every EHLO: this name may carry an echo."""
    return len(name) > _ID_LENGTH + len(_MARK) and _MARK in name.lower()


def judge_echo(key: TokenKey, name: str, seen: Address, now: float) -> Echo:
    """What the EHLO name of a client that comes from `seen` says, at `now` (seconds since 1970)."""
    match = _NAME.fullmatch(name.lower())
    if match is None:
        return Echo(Heard.FORGED)
    nonce_id, address, mac, tester = match.groups()
    try:
        octets, packed = _octets(nonce_id), _octets(address)
        held = normalise_address(_address(packed))
    except ValueError:
        return Echo(Heard.FORGED)
    if not hmac.compare_digest(mac, _mac(_secret(key, octets), packed)):
        return Echo(Heard.FORGED)
    if now > _EPOCH + 60 * int.from_bytes(octets[:3], "big"):
        return Echo(Heard.EXPIRED, nonce_id)
    heard = Heard.AGREES if held == normalise_address(seen) else Heard.DIFFERS
    return Echo(heard, nonce_id, str(held), str(normalise_address(seen)), tester)


def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _secret(key: TokenKey, octets: bytes) -> str:
    return _text(hmac.new(key.secret, b"posthouse nonce 1\0" + octets, hashlib.sha256).digest()[:10])


def _mac(secret: str, packed: bytes) -> str:
    return _text(hmac.new(secret.encode(), b"posthouse echo 1\0" + packed, hashlib.sha256).digest()[:10])


def _text(octets: bytes) -> str:
    return base64.b32encode(octets).decode().rstrip("=").lower()


def _octets(text: str) -> bytes:
    """ValueError for what no `_text` has made."""
    try:
        octets = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if _text(octets) != text:
        raise ValueError("bits are set that stand for nothing")
    return octets
