"""Signed one-time tokens: what a probe carries, so that its arrival proves a relay and nothing else does.

    4 bits   purpose
    12 bits  number of the case
    40 bits  id of the test
    24 bits  expiry, in minutes since 2020 (until 2051)
    80 bits  HMAC-SHA256 of the above and of what the token is about, cut (RFC 2104 5 wants no less)

Twenty octets, written as 32 letters and digits (base32, lower case): short enough for a local part that must also hold a
routing trick (RFC 5321 4.5.3.1.1: 64), and fit for a host name's label. Case does not matter: servers change it.
"""

import base64
import binascii
import contextlib
import enum
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

import msgspec

from posthouse.tester.keeping import hand_over, make_corner

TOKEN_LENGTH = 32
"""Characters of a token, all of them of a-z and 2-7."""

LONGEST_CASE = 4095
TEST_IDS = 2**40

_EPOCH = 1_577_836_800  # 2020-01-01 00:00 UTC, in seconds since 1970
_LATEST = 2**24 - 1  # minutes
_MAC_OCTETS = 10
_KEY_OCTETS = 32
_TOKEN = re.compile(rf"(?<![a-z0-9])[a-z2-7]{{{TOKEN_LENGTH}}}(?![a-z0-9])")


class Purpose(enum.IntEnum):
    """What a token is for; a token for one purpose is worth nothing for another."""

    PROBE = 1
    """In the forward-path of probe mail: its arrival at the collector means relayed."""
    BOUNCE = 2
    """In the reverse-path of probe mail: its arrival means a notice was sent to it, forwarding by bounce."""
    CONSENT = 3
    """Proof of control over a host; about that host."""
    ECHO = 4
    """In EHLO; about the address that the tester comes from."""


class TokenFault(enum.StrEnum):
    """Why a text is no token of ours, in words for a reply."""

    MALFORMED = "it carries no token"
    FORGED = "its token is not one of ours"
    EXPIRED = "its token has expired"


class Token(msgspec.Struct, frozen=True):
    """What a token says. `test_id` is below TEST_IDS, `case_number` at most LONGEST_CASE, `expires_at` in seconds since
    1970, kept to the minute."""

    purpose: Purpose
    test_id: int
    case_number: int
    expires_at: float


class TokenKey(msgspec.Struct, frozen=True):
    """The secret by which tokens are signed; whoever shares it may test through the same collector."""

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) < 16:
            raise ValueError("a token key needs at least 16 octets of secret")

    def __repr__(self) -> str:
        return "TokenKey(...)"  # never into a log


class KeyFault(Exception):
    """The key file can't be used; the text is one sentence with the place and the remedy."""


def new_key() -> TokenKey:
    """A fresh random key."""
    return TokenKey(secrets.token_bytes(_KEY_OCTETS))


def new_test_id() -> int:
    """A random id for one run of the test."""
    return secrets.randbelow(TEST_IDS)


def mint(key: TokenKey, token: Token, about: str = "") -> str:
    """The token as text. `about` binds it to a host or an address, which `verify` must then be told too.

    ValueError when a number does not fit.
    """
    if not (0 <= token.test_id < TEST_IDS and 0 <= token.case_number <= LONGEST_CASE):
        raise ValueError(f"test {token.test_id}, case {token.case_number} don't fit into a token")
    minutes = -int((_EPOCH - token.expires_at) // 60)  # rounded up: a token lives as long as it was promised
    if not 0 <= minutes <= _LATEST:
        raise ValueError(f"a token can't expire at {token.expires_at}")
    head = token.purpose << 12 | token.case_number
    octets = head.to_bytes(2, "big") + token.test_id.to_bytes(5, "big") + minutes.to_bytes(3, "big")
    return base64.b32encode(octets + _mac(key, octets, about)).decode().lower()


def verify(key: TokenKey, text: str, now: float, purpose: Purpose, about: str = "") -> Token | TokenFault:
    """What the token says if it is ours, for that purpose, about that, and not expired at `now` (seconds since 1970)."""
    found = read_token(key, text, about)
    if isinstance(found, TokenFault):
        return found
    if found.purpose is not purpose:
        return TokenFault.FORGED
    return found if now <= found.expires_at else TokenFault.EXPIRED


def read_token(key: TokenKey, text: str, about: str = "") -> Token | TokenFault:
    """The same whatever its purpose and age: for receipts, which outlive their tokens."""
    if len(text) != TOKEN_LENGTH:
        return TokenFault.MALFORMED
    try:
        octets = base64.b32decode(text.upper())
    except (binascii.Error, ValueError):
        return TokenFault.MALFORMED
    said, mac = octets[:-_MAC_OCTETS], octets[-_MAC_OCTETS:]
    if not hmac.compare_digest(mac, _mac(key, said, about)):
        return TokenFault.FORGED
    head = int.from_bytes(said[:2], "big")
    try:
        purpose = Purpose(head >> 12)
    except ValueError:
        return TokenFault.FORGED  # of a later version
    return Token(
        purpose,
        int.from_bytes(said[2:7], "big"),
        head & LONGEST_CASE,
        float(_EPOCH + 60 * int.from_bytes(said[7:], "big")),
    )


def tokens_in(text: str) -> tuple[str, ...]:
    """All that look like tokens in a text (a local part with a routing trick around it, a banner, a TXT record)."""
    return tuple(dict.fromkeys(_TOKEN.findall(text.lower())))


def load_key(path: Path) -> TokenKey:
    """The key of a file that `make_key` wrote, or that holds any line of at least 16 characters. KeyFault."""
    try:
        line = path.read_bytes().strip().split(b"\n", 1)[0].strip()
    except OSError as error:
        raise KeyFault(f"can't read the testers' key {path}: {error.strerror}") from error
    try:
        return TokenKey(line)
    except ValueError:
        raise KeyFault(
            f"the testers' key {path} is too short: put a secret of at least 16 characters into it "
            f"(`openssl rand -hex 32`), the same at the collector and at those who test through it"
        ) from None


def make_key(path: Path) -> TokenKey:
    """The key of that file, made if there is none yet, readable by its owner alone. KeyFault.

    Several processes may ask at once: the first one's key is everybody's.
    """
    if not path.exists():
        try:
            _write_key(path)
        except OSError as error:
            raise KeyFault(f"can't make the testers' key {path}: {error.strerror}") from error
    return load_key(path)


def _write_key(path: Path) -> None:
    make_corner(path.parent)
    own = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as out:
            out.write(secrets.token_hex(_KEY_OCTETS) + "\n")
            out.flush()
            os.fsync(out.fileno())
        hand_over(own)
        with contextlib.suppress(FileExistsError):
            os.link(own, path)  # unlike a rename, it never takes the place of another's
    finally:
        own.unlink()


def _mac(key: TokenKey, octets: bytes, about: str) -> bytes:
    said = octets + about.strip().lower().encode("utf-8", "surrogateescape")
    return hmac.new(key.secret, b"posthouse token 1\0" + said, hashlib.sha256).digest()[:_MAC_OCTETS]
