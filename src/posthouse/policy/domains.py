"""Domains by pattern: "example.org" is that domain, ".example.org" all below it, "*" the rest.

One meaning for every list of domains in the configuration. The nearest pattern wins: the exact name, then the longest
".suffix", then "*". Address literals ("[192.0.2.1]") are matched exactly or by "*".
"""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Generic, TypeVar

T = TypeVar("T")

_LABEL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
LONGEST_DOMAIN = 255
"""Octets (RFC 5321 4.5.3.1.2)."""


class PatternError(ValueError):
    """The text is not a domain pattern; the message is a sentence."""


def normalise_pattern(pattern: str) -> str:
    """The pattern in lower case without a trailing dot, as tables hold it. PatternError when it can't match a domain."""
    found = pattern.strip().lower()
    found = found.removesuffix(".") if len(found) > 1 else found
    if found == "*":
        return found
    if found.startswith("[") and found.endswith("]"):
        return _normalise_literal(pattern, found[1:-1])
    labels = found.removeprefix(".").split(".")
    if len(found) > LONGEST_DOMAIN or not all(
        0 < len(label) <= 63 and set(label) <= _LABEL and label[0] != "-" and label[-1] != "-" for label in labels
    ):
        raise PatternError(
            f'"{pattern}" is not a domain; write example.org for one domain, .example.org for all below it, * for the rest'
        )
    return found


def _normalise_literal(pattern: str, inside: str) -> str:
    """An address literal as Path spells it (RFC 5321 4.1.3)."""
    try:
        address = ip_address(inside.removeprefix("ipv6:"))
    except ValueError:
        raise PatternError(f'"{pattern}" is not an address literal; write [192.0.2.1] or [IPv6:2001:db8::1]') from None
    return f"[{address}]" if address.version == 4 else f"[IPv6:{address}]"


class DomainTable(Generic[T]):
    """Values by domain pattern; `lookup` costs one dictionary access a label. Never changed once made.

    The pattern "" is mail without a domain (`<postmaster>`): no configuration can write it, a table of routes may hold it.
    """

    __slots__ = ("_exact", "_rest", "_suffixes", "patterns")

    def __init__(self, values: Mapping[str, T]) -> None:
        self.patterns: dict[str, T] = {}
        for pattern, value in values.items():
            self.patterns[normalise_pattern(pattern) if pattern else ""] = value
        self._suffixes = {pattern: value for pattern, value in self.patterns.items() if pattern.startswith(".")}
        self._rest = self.patterns.get("*")
        self._exact = {pattern: value for pattern, value in self.patterns.items() if not pattern.startswith((".", "*"))}

    def lookup(self, domain: str) -> T | None:
        """The value of the nearest pattern for a domain as Path holds it; None when none fits. "*" does not mean ""."""
        found = self._exact.get(domain)
        if found is not None:
            return found
        if self._suffixes and not domain.startswith("["):
            dot = domain.find(".")
            while dot >= 0:
                found = self._suffixes.get(domain[dot:])
                if found is not None:
                    return found
                dot = domain.find(".", dot + 1)
        return self._rest if domain else None

    def __len__(self) -> int:
        return len(self.patterns)

    def __repr__(self) -> str:
        return f"DomainTable({self.patterns!r})"
