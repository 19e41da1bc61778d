"""Which strangers one smtpd tells apart, and which recipients they would try.

Tables and lists cut the world into classes inside which smtpd can't tell two strangers apart; one of each class is asked.
What a stranger may choose: HELO, reverse-path and recipient freely; his host name in domains that he could register; his
address outside every network narrower than a /8 that the configuration names. Narrower ones are somebody whom the
administrator knows.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import TypeVar

import msgspec

from posthouse.audit.postfix.match_list import parents
from posthouse.audit.postfix.pattern import FILLER
from posthouse.audit.postfix.place import Hit, Stop
from posthouse.audit.postfix.smtpd import Restriction, Smtpd, Stage
from posthouse.audit.postfix.stranger import OUTSIDE, OWN_DOMAIN, THIRD_DOMAIN, THIRD_PARTY, Stranger
from posthouse.audit.postfix.table import Entry, Table
from posthouse.policy.networks import Network, NetworkSet

Choice = TypeVar("Choice", bound=str | None)

NARROW = 8
"""A network of public IPv4 with a longer prefix is taken for one that the administrator knows."""
_OUTSIDE_6 = "2a0e:fade::9"
_DEFAULTS = {
    Stage.CLIENT: "check_client_access",
    Stage.HELO: "check_helo_access",
    Stage.SENDER: "check_sender_access",
    Stage.RELAY: "check_recipient_access",
    Stage.RECIPIENT: "check_recipient_access",
}
_MOST_OF_A_KIND = 24
_PRIVATE_TOPS = frozenset("corp home internal intranet lan local localdomain localhost private unknown".split())  # noqa: SIM905
_SECOND_LEVELS = frozenset(("ac", "co", "com", "edu", "gov", "net", "org"))


class Uses(msgspec.Struct, frozen=True):
    """What the lists of an smtpd look at: tables by what they are asked for, and the names of all restrictions."""

    clients: tuple[Table, ...]
    hellos: tuple[Table, ...]
    senders: tuple[Table, ...]
    recipients: tuple[Table, ...]
    words: frozenset[str]

    def mentions(self, *parts: str) -> bool:
        """Whether a restriction's name holds one of the parts."""
        return any(part in word for word in self.words for part in parts)


def uses_of(smtpd: Smtpd) -> Uses:
    """Gathered over all lists and classes; right-hand sides of tables can only name classes and plain restrictions."""
    found: dict[str, list[Table]] = {"client": [], "helo": [], "sender": [], "recipient": []}
    words: set[str] = set()
    for tokens, default in _all_lists(smtpd):
        for name, argument in _pairs(tokens, default):
            words.add(name)
            if argument is None or not name.startswith("check_") or not name.endswith("_access"):
                continue
            kind = name.removeprefix("check_").removeprefix("reverse_").partition("_")[0]
            if kind in found:
                found[kind].append(smtpd.tables.open(argument.text, argument.place))
    for tables in tuple(found.values()):
        for entry in (entry for table in tables for entry in table.entries()):
            words.update(entry.hit.value.lower().replace(",", " ").split())
    return Uses(
        tuple(found["client"]),
        tuple(found["helo"]),
        tuple(found["sender"]),
        tuple(found["recipient"]),
        frozenset(words),
    )


def _all_lists(smtpd: Smtpd) -> Iterator[tuple[tuple[Restriction, ...], str]]:
    for stage, tokens in smtpd.lists.items():
        yield tokens, _DEFAULTS.get(stage, "")
    for tokens in smtpd.classes.values():
        for default in sorted(set(_DEFAULTS.values())):
            yield tokens, default


def _pairs(tokens: Iterable[Restriction], default: str) -> Iterator[tuple[str, Restriction | None]]:
    waiting = list(tokens)
    while waiting:
        token = waiting.pop(0)
        name = token.text.lower()
        if ":" in name:
            yield default, token
        elif (name.startswith("check_") and "_access" in name) or name == "check_policy_service":
            yield name, (waiting.pop(0) if waiting else None)
        else:
            yield name, None


def strangers(smtpd: Smtpd, *, trusts_public_authorities: bool) -> Iterator[Stranger]:
    """One of each class, the plainest first."""
    uses = uses_of(smtpd)
    clients, names = _clients(smtpd, uses), _names(smtpd, uses)
    hellos, paths = _hellos(smtpd, uses), _reverse_paths(smtpd, uses)
    ways = _ways(smtpd, trusts_public_authorities=trusts_public_authorities)
    counts = (1, 2) if smtpd.lists[Stage.DATA] or smtpd.lists[Stage.END_OF_DATA] else (1,)
    recipients = _forward_paths(smtpd, uses)
    for forward_path, way, count, client, name, hello, path in itertools.product(
        recipients, ways, counts, clients, names, hellos, paths
    ):
        yield msgspec.structs.replace(
            way,
            client=client,
            name=name,
            reverse_name=name,
            hello=hello,
            reverse_path=path,
            forward_path=forward_path,
            recipients=count,
        )


def claimed(smtpd: Smtpd, plain: Stranger, how: str) -> Iterator[Stranger]:
    """The same stranger as whom he can pose once he may claim an address: a trusted one, or one who has logged in."""
    trusted = [network for network, _ in smtpd.mynetworks.networks()]
    addresses = [str(network.network_address) for network in trusted if network.num_addresses == 1]
    addresses += [str(network.network_address + 1) for network in trusted if network.num_addresses > 1]
    for address in addresses[:3]:
        claim = f"{plain.client}, which claims {address} by {how}"
        yield msgspec.structs.replace(plain, client=address, claim=claim)
    if smtpd.has_login and how.startswith("XCLIENT"):
        yield msgspec.structs.replace(plain, login="someone", claim=f"{plain.client}, which claims a login by {how}")


# --- clients --------------------------------------------------------------------------------------------------------------


def _clients(smtpd: Smtpd, uses: Uses) -> list[str]:
    narrow = [network for network, _ in smtpd.mynetworks.networks()]
    for table in uses.clients:
        narrow += [network for entry in table.entries() if (network := _entry_network(entry)) is not None]
    for pattern_table in (one.table for one in smtpd.mynetworks.patterns if one.table is not None):
        narrow += [network for entry in pattern_table.entries() if (network := _entry_network(entry)) is not None]
    candidates = [OUTSIDE, *_spread(narrow)]
    if smtpd.settings.text("inet_protocols").lower() != "ipv4":
        candidates.append(_OUTSIDE_6)
    named = NetworkSet(network for network in narrow if _is_known(network))
    outside = [one for one in candidates if ip_address(one) not in named]

    def signature(address: str) -> Hashable:
        return (
            _seen(smtpd.mynetworks.match_host("unknown", address)),
            _seen(smtpd.xclient_hosts.match_host("unknown", address)),
            *(tuple(_seen(table.find(key)) for key in _address_keys(table, address)) for table in uses.clients),
        )

    return _one_of_each(outside or candidates[:1], signature)


def _is_known(network: Network) -> bool:
    return network.prefixlen > (NARROW if network.version == 4 else 16)


def _entry_network(entry: Entry) -> Network | None:
    """The network that an entry stands for: its own, or that of a key like 192.0.2 or 2001:db8."""
    if entry.network is not None:
        return entry.network
    for key in entry.keys:
        parts = key.split(".")
        if len(parts) <= 4 and all(part.isdigit() and int(part) < 256 for part in parts):
            return IPv4Network(".".join([*parts, "0", "0", "0"][:4]) + f"/{8 * len(parts)}")
        groups = key.split(":")
        if ":" in key and "::" not in key and len(groups) < 8:
            try:
                return IPv6Network(f"{key}::/{16 * len(groups)}")
            except ValueError:
                return None
    return None


def _spread(networks: Iterable[Network]) -> Iterator[str]:
    """One address of each public /8, outside everything narrower that is named."""
    named = NetworkSet(network for network in networks if isinstance(network, IPv4Network) and _is_known(network))
    for first in range(1, 224):
        for low in (0x090909, 0xC8C8C8, 0x505050, 0xF0A1B2):
            address = IPv4Address((first << 24) + low)
            if address.is_global and address not in named:
                yield str(address)
                break


def _address_keys(table: Table, address: str) -> Iterator[str]:
    yield address
    if table.is_fixed:
        separator = ":" if ":" in address else "."
        while separator in address:
            address = address.rpartition(separator)[0]
            yield address


def _names(smtpd: Smtpd, uses: Uses) -> list[str]:
    own = f"mail.{OWN_DOMAIN}"
    tables = [*uses.clients, *(one.table for one in smtpd.mynetworks.patterns if one.table is not None)]
    if not tables and not uses.mentions("client", "check_relay_domains") and not _names_in_mynetworks(smtpd):
        return ["unknown"]
    candidates = ["unknown", own]
    candidates += [f"mail.{FILLER}.{one}" for one in _top_levels(tables, _names_in_mynetworks(smtpd))]
    if uses.mentions("check_relay_domains"):
        candidates += [f"mail.{FILLER}.{one}" for one in _top_levels((), _domain_names(smtpd))]
    for entry in (entry for table in tables if not table.is_fixed for entry in table.entries()):
        for key in entry.keys:
            candidates += [key, f"{key}.{OWN_DOMAIN}", f"{FILLER}{key}", f"mail.{FILLER}.{key.lstrip('.')}"]
    mine = [name for name in candidates if name == "unknown" or (is_strangers(name) and _is_host_name(name))]

    def signature(name: str) -> Hashable:
        return (
            name == "unknown",
            _seen(smtpd.mynetworks.match_name(name)),
            _seen(smtpd.relay_domains.match_name(name)),
            *(tuple(_seen(table.find(key)) for key in _name_keys(smtpd, table, name)) for table in tables),
        )

    return _one_of_each(mine, signature)


def _names_in_mynetworks(smtpd: Smtpd) -> list[str]:
    return [one.text for one in smtpd.mynetworks.patterns if one.table is None and one.network is None and not one.stop]


def _name_keys(smtpd: Smtpd, table: Table, name: str) -> Iterator[str]:
    return parents(name, with_dots=not smtpd.with_parents) if table.is_fixed else iter([name])


def _top_levels(tables: Iterable[Table], more: Iterable[str] = ()) -> list[str]:
    """Keys that are a top-level domain, or one under which strangers register."""
    keys = [key for table in tables if table.is_fixed for entry in table.entries() for key in entry.keys]
    found = []
    for key in (*keys, *more):
        bare = key.strip(".@").lower()
        labels = bare.split(".")
        is_top = len(labels) == 1 and bare.isalpha() and bare not in _PRIVATE_TOPS
        if is_top or (len(labels) == 2 and len(labels[1]) == 2 and labels[0] in _SECOND_LEVELS):
            found.append(bare)
    return found[:_MOST_OF_A_KIND]


# --- what he says ---------------------------------------------------------------------------------------------------------


def _hellos(smtpd: Smtpd, uses: Uses) -> list[str | None]:
    fresh = f"mail.{OWN_DOMAIN}"
    if not uses.hellos and not uses.mentions("helo", "hostname", "naked"):
        return [fresh]
    own = [smtpd.settings.text("myhostname"), smtpd.settings.text("mydomain")]
    candidates: list[str | None] = [fresh, *own, "localhost", f"[{OUTSIDE}]", "192.0.2.25", FILLER]
    if not smtpd.settings.is_yes("smtpd_helo_required"):
        candidates.append(None)
    candidates += [variant for key in _keys(uses.hellos) for variant in (key, f"mail.{key.lstrip('.')}")]

    def signature(hello: str | None) -> Hashable:
        if hello is None:
            return None
        form = ("." in hello, hello.startswith("["), hello.replace(".", "").isdigit())
        found = (tuple(_seen(table.find(key)) for key in _name_keys(smtpd, table, hello)) for table in uses.hellos)
        return (form, *found)

    return _one_of_each([one for one in candidates if one is None or (one and " " not in one)], signature)


def _reverse_paths(smtpd: Smtpd, uses: Uses) -> list[str]:
    fresh = f"someone@{OWN_DOMAIN}"
    if not uses.senders and not uses.mentions("sender", "bounce"):
        return [fresh]
    domains = [smtpd.settings.text("myorigin"), smtpd.settings.text("mydomain"), *_own_domains(smtpd).values()]
    candidates = [
        fresh,
        "",
        *(f"someone@{domain}" for domain in domains),
        *(f"postmaster@{domain}" for domain in domains),
    ]
    candidates += [path for key in _keys(uses.senders) for path in _as_paths(key, OWN_DOMAIN)]
    tables = [*uses.senders, *smtpd.login_maps.tables]

    def signature(path: str) -> Hashable:
        if not path:
            return tuple(_seen(table.find(smtpd.null_key)) for table in uses.senders)
        keys = smtpd.resolver.access_keys(path.lower(), with_parents=smtpd.with_parents)
        found = (tuple(_seen(table.find(key)) for key, part in keys if table.is_fixed or not part) for table in tables)
        return ("@" in path, "." in path, *found)

    return _one_of_each(candidates, signature)


def _forward_paths(smtpd: Smtpd, uses: Uses) -> list[str]:
    """A plain third party, the routing tricks through each kind of domain of ours, and what tables let him choose."""
    candidates = [THIRD_PARTY]
    local, domain = THIRD_PARTY.split("@")
    for own in _own_domains(smtpd).values():
        candidates += [f"{local}%{domain}@{own}", f"{domain}!{local}@{own}", f'"{local}@{domain}"@{own}']
        candidates += [f"@{own}:{THIRD_PARTY}", f'"{local}%{domain}"@{own}', f"{local}@{domain}@{own}"]
    candidates += [f"{local}%{domain}", f"{domain}!{local}", f'"{local}@{domain}"']
    tables = [*uses.recipients, *_domain_tables(smtpd)]
    candidates += [f"someone@{FILLER}.{one}" for one in _top_levels(tables, _domain_names(smtpd))]
    for key in _keys(tables):
        candidates += [path for path in _as_paths(key, THIRD_DOMAIN) if is_strangers(path.rpartition("@")[2])]
    maps = (*smtpd.resolver.rewriting_maps, smtpd.resolver.alias_maps)
    for key in _keys(tuple(table for one in maps for table in one.tables if not table.is_fixed)):
        candidates += list(_as_paths(key, THIRD_DOMAIN))
    return list(dict.fromkeys(path for path in candidates if _is_path(path)))[: 4 * _MOST_OF_A_KIND]


def _own_domains(smtpd: Smtpd) -> dict[str, str]:
    """A domain of each class that has one."""
    resolver, found = smtpd.resolver, {}
    for kind, domains in (
        ("local", resolver.local),
        ("alias", resolver.alias),
        ("virtual", resolver.virtual),
        ("relay", resolver.relay),
    ):
        for pattern in domains.patterns:
            names = [pattern.text.lstrip(".")] if pattern.table is None and pattern.stop is None else []
            if pattern.table is not None:
                entries = itertools.islice(pattern.table.entries(), 50)
                names = [key.lstrip("@.") for entry in entries for key in entry.keys if "@" not in key.lstrip("@")]
            name = next((name for name in names if "." in name and _is_host_name(name)), None)
            if name and kind not in found and not pattern.is_negated:
                found[kind] = name
    return found


def _domain_tables(smtpd: Smtpd) -> list[Table]:
    lists = (smtpd.resolver.local, smtpd.resolver.alias, smtpd.resolver.virtual, smtpd.resolver.relay)
    return [one.table for domains in lists for one in domains.patterns if one.table is not None]


def _domain_names(smtpd: Smtpd) -> list[str]:
    """Relay domains by name; one that is also our own host's name is no top-level domain."""
    ours = {one.text for one in smtpd.resolver.local.patterns} | {smtpd.settings.text("myhostname").lower()}
    return [one.text for one in smtpd.resolver.relay.patterns if one.table is None and one.text not in ours]


def _ways(smtpd: Smtpd, *, trusts_public_authorities: bool) -> list[Stranger]:
    """In the clear, over TLS, with a certificate of his own, with one that anybody can have from a public authority."""
    ways = [] if smtpd.must_encrypt else [Stranger()]
    if smtpd.has_tls:
        if not smtpd.demands_certificate:
            ways.append(Stranger(is_encrypted=True))
        if smtpd.asks_certificate and not smtpd.demands_certificate:
            ways.append(Stranger(is_encrypted=True, has_certificate=True))
        if smtpd.asks_certificate and trusts_public_authorities:
            ways.append(Stranger(is_encrypted=True, has_certificate=True, is_certified=True))
    return ways


# --- keys of tables -------------------------------------------------------------------------------------------------------


def _keys(tables: Iterable[Table]) -> list[str]:
    """Keys and samples of patterns, a few for each thing that they find."""
    counts: dict[tuple[str, str, str], int] = {}
    found = []
    for table in tables:
        for entry in table.entries():
            for key in entry.keys:
                shape = (
                    "@"
                    if "@" in key.strip("@")
                    else key[:1]
                    if key[:1] in ".@"
                    else key[-1:]
                    if key.endswith("@")
                    else ""
                )
                kind = (table.spec, shape if table.is_fixed else key, entry.hit.value.partition(" ")[0].lower())
                counts[kind] = counts.get(kind, 0) + 1
                if counts[kind] <= 2:
                    found.append(key)
    return found[: 4 * _MOST_OF_A_KIND]


def _as_paths(key: str, domain: str) -> Iterator[str]:
    """Mailboxes that a key of an access table finds, the free part filled in."""
    if key == "<>":
        yield ""
        return
    if key.endswith("@"):
        yield f"{key}{domain}"
        return
    if "@" in key.strip("@"):
        yield key
        yield f"{key}.{domain}"
        yield f"{FILLER}{key}"
        return
    bare = key.lstrip(".@")
    yield f"someone@{bare}"
    yield f"someone@sub.{bare}"
    yield f"someone@{FILLER}{bare}"
    yield f"{key}@{domain}"
    yield f"someone@{bare}.{domain}"


def is_strangers(domain: str) -> bool:
    """Whether a stranger may own the domain: its registered part is of his choice."""
    name = domain.lower().strip(".")
    if name in (THIRD_DOMAIN, OWN_DOMAIN) or name.endswith((f".{THIRD_DOMAIN}", f".{OWN_DOMAIN}")):
        return True
    labels = name.split(".")
    if len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVELS:
        labels = labels[:-1]
    return FILLER in labels[-2] if len(labels) > 1 else FILLER in name


def _is_host_name(name: str) -> bool:
    labels = name.split(".")
    return len(labels) > 1 and all(label and all(char.isalnum() or char in "-_" for char in label) for label in labels)


def _is_path(path: str) -> bool:
    local, _, domain = path.rpartition("@")
    if not local:
        return bool(path) and "@" not in path and " " not in path
    plain = local.startswith('"') or not any(char.isspace() or char in '<>()[],;"\\' for char in local)
    return plain and (_is_host_name(domain) or path.startswith("@"))


def _seen(found: Hit | Stop | None) -> Hashable:
    """What of a look-up matters: a stop is itself, a hit its action."""
    return found.value.lower() if isinstance(found, Hit) else found


def _one_of_each(candidates: Iterable[Choice], signature: Callable[[Choice], Hashable]) -> list[Choice]:
    found: dict[Hashable, Choice] = {}
    for candidate in candidates:
        found.setdefault(signature(candidate), candidate)
    return list(found.values())
