"""Rules: what the configuration says about who may send where, as data. Proof and decision read the same value."""

import enum
from collections.abc import Iterable

import msgspec

from posthouse.policy.aliases import AliasError, AliasTable, Ring, mailbox_key, parse_address_text
from posthouse.policy.domains import DomainTable, PatternError, normalise_pattern
from posthouse.policy.facts import Unknown
from posthouse.policy.lab import Lab, LabFault, make_lab
from posthouse.policy.networks import Address, NetworkError, NetworkSet, parse_address, parse_network
from posthouse.smtp.address import POSTMASTER, Path


class RulesError(ValueError):
    """The rules contradict themselves or can't be read; the message is a sentence with the key and the remedy."""


class Place(enum.StrEnum):
    """What a domain of ours is to us."""

    LOCAL = "local"
    RELAY = "relay"


class Destination(msgspec.Struct, frozen=True):
    """A domain of ours: the pattern under which the configuration names it, and what it is to us."""

    place: Place
    pattern: str


LabTerms = tuple[str, Iterable[str], Iterable[str], float]
"""A lab as a configuration has it: its listener, networks, destinations, and its end in seconds since 1970."""


class NoList(enum.Enum):
    """There is no list of recipients: every local part of our domains is taken as valid."""

    NO_LIST = "no-list"


class RecipientList(msgspec.Struct, frozen=True):
    """The only valid recipients of local and relay domains; aliases and postmaster are valid besides.

    `addresses` holds mailbox keys, `domains` those listed as "@example.org" (all of it), `names` those without a domain
    (valid in every local domain).
    """

    addresses: frozenset[str]
    domains: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


class Rules(msgspec.Struct, frozen=True):
    """Who may send where. `trusted_networks` is already less the gateways that are named as strangers.

    `postmaster` owns the mail of `<postmaster>` (RFC 5321 4.5.1) that has no alias. Where the configuration names nobody it
    is that very path, and the composition root's route for the domain "" keeps the mail in the data directory.
    `relay_enabled` False: only delivery to local domains. `networks_suspended`: an outside test has shown that client
    addresses are not real on this listener, so no network gives a right there. The limits count recipients of one
    transaction. `own_name` is this host's: local users are written to by it (cron's `root`), and their aliases count
    whether or not it is a local domain.
    """

    domains: DomainTable[Destination]
    trusted_networks: NetworkSet
    gateways_trusted: frozenset[Address]
    recipients: RecipientList | NoList
    aliases: AliasTable
    postmaster: Path = POSTMASTER
    recipients_stranger: int = 100
    recipients_trusted: int = 1000
    relay_enabled: bool = True
    own_name: str = ""
    networks_suspended: bool = False
    labs: tuple[Lab, ...] = ()

    @property
    def gateways_as_strangers(self) -> frozenset[Address]:
        """Addresses that get no network grant although a trusted network holds them."""
        return self.trusted_networks.without

    def patterns(self, place: Place) -> tuple[str, ...]:
        """The patterns of the local or of the relay domains."""
        return tuple(pattern for pattern, found in self.domains.patterns.items() if found.place is place)

    def is_local(self, path: Path) -> bool:
        """The address is delivered here: a local domain's, or `<postmaster>`."""
        found = self.domains.lookup(path.domain)
        return not path.domain if found is None else found.place is Place.LOCAL

    def lab(self, name: str) -> Lab | None:
        """The lab window of the listener called that."""
        return next((lab for lab in self.labs if lab.name == name), None)

    def trusts(self, client: Address | Unknown) -> bool:
        """The address is in a trusted network that counts. Not a grant: sessions choose limits by it."""
        return not self.networks_suspended and not isinstance(client, Unknown) and client in self.trusted_networks

    def bears_names(self, path: Path) -> bool:
        """Aliases without a domain count for this address: of a local domain, or of this host's own name."""
        return path.domain == self.own_name or self.is_local(path)

    def is_valid_recipient(self, path: Path, destination: Destination) -> bool:
        """The list of recipients, if there is one, knows an address of that domain of ours."""
        listed = self.recipients
        if isinstance(listed, NoList):
            return True
        key = mailbox_key(path)
        local_part = key.removesuffix(f"@{path.domain}")
        is_local = destination.place is Place.LOCAL
        return (
            key in listed.addresses
            or path.domain in listed.domains
            or (is_local and local_part in listed.names)
            or local_part == "postmaster"
            or bool(self.aliases.targets(path, is_local=is_local))
        )


def with_relay(rules: Rules, enabled: bool) -> Rules:
    """The same rules with the relay option on or off."""
    return msgspec.structs.replace(rules, relay_enabled=enabled)


def with_networks(rules: Rules, suspended: bool) -> Rules:
    """The same rules with the grants of trusted networks suspended or not."""
    return msgspec.structs.replace(rules, networks_suspended=suspended)


def compile_rules(
    *,
    local_domains: Iterable[str] = (),
    relay_domains: Iterable[str] = (),
    trusted_networks: Iterable[str] = (),
    gateways_as_strangers: Iterable[str] = (),
    gateways_trusted: Iterable[str] = (),
    recipients: Iterable[str] | None = None,
    aliases: Iterable[tuple[str, Iterable[str]]] = (),
    postmaster: str = "",
    recipients_stranger: int = 100,
    recipients_trusted: int = 1000,
    relay_enabled: bool = True,
    own_name: str = "",
    labs: Iterable[LabTerms] = (),
) -> Rules:
    """Rules from the plain values of a configuration (`recipients` None: no list). RulesError."""
    as_strangers = _parse_gateways("gateways_as_strangers", gateways_as_strangers)
    trusted = _parse_gateways("gateways_trusted", gateways_trusted)
    for address in sorted(as_strangers & trusted, key=str):
        raise RulesError(
            f"{address} stands in gateways_as_strangers and in gateways_trusted; it can be one or the other"
        )
    try:
        networks = NetworkSet((parse_network(text) for text in trusted_networks), as_strangers)
    except NetworkError as error:
        raise RulesError(f"trusted_networks: {error}") from error
    try:
        alias_table = AliasTable(aliases)
        owner = parse_address_text(postmaster) if postmaster else POSTMASTER
    except AliasError as error:
        raise RulesError(str(error)) from error
    rules = Rules(
        domains=_compile_domains(local_domains, relay_domains),
        trusted_networks=networks,
        gateways_trusted=trusted,
        recipients=_compile_recipients(recipients),
        aliases=alias_table,
        postmaster=owner,
        recipients_stranger=recipients_stranger,
        recipients_trusted=recipients_trusted,
        relay_enabled=relay_enabled,
        own_name=own_name.lower(),
        labs=_compile_labs(labs, as_strangers),
    )
    _examine_aliases(rules)
    return rules


def _compile_labs(terms: Iterable[LabTerms], as_strangers: frozenset[Address]) -> tuple[Lab, ...]:
    labs: dict[str, Lab] = {}
    for name, networks, destinations, ends_at in terms:
        if name in labs:
            raise RulesError(f"two labs are on {name}; give each a port of its own")
        try:
            labs[name] = make_lab(name, networks, destinations, ends_at, as_strangers)
        except LabFault as error:
            raise RulesError(str(error)) from error
    return tuple(labs.values())


def _parse_gateways(key: str, texts: Iterable[str]) -> frozenset[Address]:
    try:
        return frozenset(map(parse_address, texts))
    except NetworkError as error:
        raise RulesError(f"{key}: {error}") from error


def _compile_domains(local: Iterable[str], relay: Iterable[str]) -> DomainTable[Destination]:
    """One table for both lists, so that the nearest pattern decides what a domain is to us."""
    table: dict[str, Destination] = {}
    for place, patterns in ((Place.LOCAL, local), (Place.RELAY, relay)):
        for text in patterns:
            try:
                pattern = normalise_pattern(text)
            except PatternError as error:
                raise RulesError(f"{place}_domains: {error}") from error
            if pattern in table and table[pattern].place is not place:
                raise RulesError(f"{pattern} stands in local_domains and in relay_domains; it can be one or the other")
            table[pattern] = Destination(place, pattern)
    return DomainTable(table)


def _compile_recipients(texts: Iterable[str] | None) -> RecipientList | NoList:
    if texts is None:
        return NoList.NO_LIST
    addresses, domains, names = set(), set(), set()
    for text in map(str.strip, texts):
        try:
            if text.startswith("@"):
                domains.add(parse_address_text(f"any{text}").domain)
            elif "@" in text:
                addresses.add(mailbox_key(parse_address_text(text)))
            elif text:
                names.add(text.lower())
        except AliasError as error:
            raise RulesError(f"recipients: {error}") from error
    return RecipientList(frozenset(addresses), frozenset(domains), frozenset(names))


def _examine_aliases(rules: Rules) -> None:
    """RulesError for an alias that could never be used, or that leads back to itself."""
    for key in rules.aliases.addresses:
        domain = key.rpartition("@")[2]
        if domain != rules.own_name and rules.domains.lookup(domain) is None:
            raise RulesError(
                f"The alias {key} is of a domain that is neither local nor a relay domain, so no mail for it gets here; "
                f"add the domain to local_domains or remove the alias"
            )
    for path in rules.aliases.all_targets():
        if isinstance(ring := rules.aliases.follow(path, rules.bears_names), Ring):
            raise RulesError(f"The alias {ring.key} leads back to itself; take out one of the aliases in the ring")
