"""What rules allow and is surely not meant: closed, but worth a sentence to whoever wrote it."""

from collections.abc import Iterator

from posthouse.policy.networks import PRIVATE, NetworkSet, network_text, parse_network
from posthouse.policy.rules import Place, Rules

_SECOND_LEVELS = frozenset("ac co com edu gob gov mil ne net nom or org sch".split())  # noqa: SIM905 - read as words

_TRANSLATED = (
    ("NAT64", parse_network("64:ff9b::/96")),  # RFC 6052
    ("6to4", parse_network("2002::/16")),  # RFC 3056
    ("Teredo", parse_network("2001::/32")),  # RFC 4380
)
"""Networks whose addresses are made from IPv4 addresses of strangers."""


def find_doubts(rules: Rules) -> list[str]:
    """One sentence each, with the remedy."""
    return [
        *_straddling_networks(rules),
        *_translated_networks(rules),
        *_public_suffixes(rules),
        *_idle_exceptions(rules),
    ]


def _straddling_networks(rules: Rules) -> Iterator[str]:
    """172.0.0.0/8 for 172.16.0.0/12 has opened relays."""
    for network in rules.trusted_networks.networks:
        inside = [private for private in PRIVATE if NetworkSet([network]).covers(private) and private != network]
        if inside:
            yield (
                f"the trusted network {network_text(network)} holds public addresses beside the private "
                f"{', '.join(map(str, inside))}; name the narrower one if you mean that"
            )


def _translated_networks(rules: Rules) -> Iterator[str]:
    for network in rules.trusted_networks.networks:
        one = NetworkSet([network])
        for name, translated in _TRANSLATED:
            if one.covers(translated) or NetworkSet([translated]).covers(network):
                yield (
                    f"the trusted network {network_text(network)} holds addresses of {name}, which stand for hosts "
                    f"anywhere in IPv4; take them out"
                )


def _public_suffixes(rules: Rules) -> Iterator[str]:
    """No list of public suffixes is kept here; the usual form of them is told by its shape."""
    for pattern in rules.patterns(Place.RELAY):
        labels = pattern.removeprefix(".").split(".")
        if len(labels) == 2 and len(labels[1]) == 2 and labels[0] in _SECOND_LEVELS:
            yield f"relay_domains holds {pattern}, under which strangers register domains; name your own domains"


def _idle_exceptions(rules: Rules) -> Iterator[str]:
    networks = NetworkSet(rules.trusted_networks.networks)
    lists = (("gateways_as_strangers", rules.gateways_as_strangers), ("gateways_trusted", rules.gateways_trusted))
    for key, addresses in lists:
        for address in sorted(addresses, key=str):
            if address not in networks:
                yield f"{key} names {address}, which no trusted network holds; it has no effect"
