"""Where an address goes: its class by the domain lists, its transport, and what canonical and virtual maps make of it.

trivial-rewrite(8) and cleanup(8) run with settings of their own: an smtpd's `-o relay_domains=` changes nothing here.
"""

import enum
from ipaddress import ip_address

import msgspec

from posthouse.audit.postfix.address import Rewriting, internal, take_apart
from posthouse.audit.postfix.master import Service
from posthouse.audit.postfix.match_list import MatchList, parents
from posthouse.audit.postfix.opening import Tables
from posthouse.audit.postfix.oracle import Oracle
from posthouse.audit.postfix.place import Hit, ServerError, Stop, Unopened
from posthouse.audit.postfix.settings import Settings
from posthouse.audit.postfix.table import Found, Table
from posthouse.audit.postfix.text import split_list

_MOST_ALIASES = 50


class Class(enum.Enum):
    """Postfix's address classes (ADDRESS_CLASS_README)."""

    LOCAL = "local"
    ALIAS = "virtual alias"
    VIRTUAL = "virtual mailbox"
    RELAY = "relay"
    DEFAULT = "default"


class Resolved(msgspec.Struct, frozen=True):
    """An address after routes through us are stripped; `hit`: the entry of the domain list that gave the class."""

    address: str
    kind: Class
    is_routed: bool
    hit: Hit | None

    @property
    def domain(self) -> str:
        """What stands behind the last `@`."""
        return self.address.rpartition("@")[2]

    @property
    def is_ours(self) -> bool:
        """Final delivery or a relay domain: what reject_unauth_destination lets pass, routing aside."""
        return self.kind is not Class.DEFAULT


class Maps:
    """A parameter that names tables, asked in order (maps_find(3), mail_addr_find(3))."""

    def __init__(self, name: str, settings: Settings, tables: Tables) -> None:
        self.tables: tuple[Table, ...] = tuple(
            tables.open(spec, settings.place(name, spec)) for spec in split_list(settings.text(name))
        )

    def __bool__(self) -> bool:
        return bool(self.tables)

    def lacks_type(self) -> bool:
        """Whether one of the tables can't be opened."""
        return any(isinstance(table.find(""), Unopened) for table in self.tables)

    def find(self, key: str, *, partial: bool = False) -> Found:
        """The first table's answer; a part of a name is not looked up in patterns."""
        for table in self.tables:
            if partial and not table.is_fixed:
                continue
            found = table.find(key)
            if found is not None:
                return found
        return None


class Resolver:
    """The world as the services see it that one smtpd asks, as a rule the same for all of them."""

    def __init__(self, settings: Settings, asking: Settings, services: list[Service], tables: Tables) -> None:
        """`settings` are main.cf's; `asking` are the smtpd's, which name the services that it asks."""
        self._services = {service.name: service for service in services if service.kind == "unix"}
        rewrite = self._services.get(asking.text("rewrite_service_name") or "rewrite")
        cleanup = self._services.get(asking.text("cleanup_service_name") or "cleanup")
        own = settings.under(rewrite.overrides) if rewrite else settings
        self.settings = own
        self.local = MatchList("mydestination", "string", own, tables)
        self.alias = MatchList("virtual_alias_domains", "string", own, tables)
        self.virtual = MatchList("virtual_mailbox_domains", "string", own, tables)
        self.relay = MatchList("relay_domains", "domain", own, tables)
        self._transports = Maps("transport_maps", own, tables)
        mapping = settings.under(cleanup.overrides) if cleanup else settings
        self.rewriting_maps = [Maps(name, mapping, tables) for name in ("recipient_canonical_maps", "canonical_maps")]
        self.alias_maps = Maps("virtual_alias_maps", mapping, tables)
        is_checked = "no_header_body_checks" not in asking.items("receive_override_options")
        self._header_checks = Maps("header_checks", mapping, tables) if is_checked else None
        self.delimiters = mapping.text("recipient_delimiter")
        self._rules = Rewriting(
            origin=own.text("myorigin"),
            domain=own.text("mydomain"),
            host=own.text("myhostname"),
            percent_hack=own.is_yes("allow_percent_hack"),
            swap_bangpath=own.is_yes("swap_bangpath"),
            append_origin=own.is_yes("append_at_myorigin"),
            append_domain=own.is_yes("append_dot_mydomain"),
            dequoted=own.is_yes("resolve_dequoted_address"),
            null_domain=own.is_yes("resolve_null_domain"),
        )

    def resolve(self, path: str, oracle: Oracle) -> Resolved:
        """The class of a path as it stands between angle brackets."""
        return self._resolve(internal(path), oracle)

    def _resolve(self, address: str, oracle: Oracle) -> Resolved:
        taken = take_apart(address, self._rules, lambda domain: self._is_local(domain, oracle) is not None)
        if taken.is_local:
            hit = self._is_local(taken.domain, oracle)
            return Resolved(taken.address.lower(), Class.LOCAL, taken.is_routed, hit)
        for kind, domains in ((Class.ALIAS, self.alias), (Class.VIRTUAL, self.virtual), (Class.RELAY, self.relay)):
            hit = oracle.settle(domains.match_name(taken.domain), f"{kind.value} {taken.domain}")
            if hit is not None:
                return Resolved(taken.address.lower(), kind, taken.is_routed, hit)
        return Resolved(taken.address.lower(), Class.DEFAULT, taken.is_routed, None)

    def _is_local(self, domain: str, oracle: Oracle) -> Hit | None:
        name = domain.removesuffix(".") if not domain.endswith("..") else ""
        if not name:
            return None
        hit = oracle.settle(self.local.match_name(name), f"local {name}")
        if hit is None and name.startswith("[") and name.endswith("]") and self._is_own_address(name[1:-1]):
            return Hit(name, self.settings.place("inet_interfaces"))
        return hit

    def _is_own_address(self, text: str) -> bool:
        try:
            address = ip_address(text.lower().removeprefix("ipv6:"))
        except ValueError:
            return False
        listed = self.settings.items("inet_interfaces") + self.settings.items("proxy_interfaces")
        return str(address) in listed or (address.is_loopback and ("all" in listed or "loopback-only" in listed))

    # --- after acceptance ---------------------------------------------------------------------------------------------

    def destinations(self, path: str, oracle: Oracle) -> list[Resolved]:
        """Where the mail goes after canonical and virtual alias maps. ServerError when cleanup takes no mail at all."""
        if self._header_checks is not None and self._header_checks.lacks_type():
            raise ServerError
        first = self._resolve(internal(path), oracle).address
        for maps in self.rewriting_maps:
            first = self._mapped(maps, first, oracle) or first
        done: list[Resolved] = []
        waiting = [first]
        seen: set[str] = set()
        while waiting and len(seen) < _MOST_ALIASES:
            address = waiting.pop(0)
            if address in seen:
                continue
            seen.add(address)
            mapped = self._mapped(self.alias_maps, address, oracle)
            if mapped is None:
                done.append(self._resolve(address, oracle))
                continue
            for one in split_list(mapped):
                if one.lower() == address:
                    done.append(self._resolve(address, oracle))
                else:
                    waiting.append(one.lower())
        return done

    def _mapped(self, maps: Maps, address: str, oracle: Oracle) -> str | None:
        """What a map makes of an address; "" stands for anything, where it isn't known."""
        hit = oracle.settle(self.find_address(maps, address), f"map {address}")
        if hit is None:
            return None
        if hit.value == "":
            return UNKNOWN_ADDRESS
        if hit.value.startswith("@"):
            return f"{address.rpartition('@')[0]}{hit.value}"
        return hit.value if "@" in hit.value else f"{hit.value}@{self._rules.origin}"

    def find_address(self, maps: Maps, address: str) -> Found:
        """mail_addr_find(3): the whole address, without extension, the local part of our own, then @domain."""
        local, _, domain = address.rpartition("@")
        bare = self._without_extension(local)
        tries = [(address, False)]
        if bare:
            tries.append((f"{bare}@{domain}", True))
        if domain == self._rules.origin.lower() or isinstance(self.local.match_name(domain), Hit):
            tries += [(local, True), *([(bare, True)] if bare else [])]
        tries.append((f"@{domain}", True))
        for key, partial in tries:
            found = maps.find(key, partial=partial)
            if found is not None:
                return found
        return None

    def _without_extension(self, local: str) -> str:
        ends = [local.find(char) for char in self.delimiters if local.find(char) > 0]
        return local[: min(ends)] if ends else ""

    def access_keys(self, address: str, *, with_parents: bool) -> list[tuple[str, bool]]:
        """The keys by which an access table is asked for an address (access(5)), each with whether it is a part only."""
        local, _, domain = address.rpartition("@")
        bare = self._without_extension(local)
        keys = [(address, False)]
        if bare:
            keys.append((f"{bare}@{domain}", True))
        keys += [(name, True) for name in parents(domain, with_dots=not with_parents)]
        keys.append((f"{local}@", True))
        if bare:
            keys.append((f"{bare}@", True))
        return keys

    def transport(self, resolved: Resolved, oracle: Oracle) -> tuple[str, str]:
        """The program that delivers ("smtp", "local", "error" ...) and the transport as configured."""
        name = {
            Class.LOCAL: "local_transport",
            Class.ALIAS: "",
            Class.VIRTUAL: "virtual_transport",
            Class.RELAY: "relay_transport",
            Class.DEFAULT: "default_transport",
        }[resolved.kind]
        if not name:
            return "error", "error"
        chosen = self.settings.text(name)
        found = self._transport_of(resolved)
        if isinstance(found, Unopened):
            raise ServerError
        if isinstance(found, Stop):
            found = None  # another transport may take it; that it was accepted is what counts
        if found is not None and found.value.partition(":")[0]:
            chosen = found.value
        service = chosen.partition(":")[0]
        known = self._services.get(service)
        return (known.command if known else service), chosen

    def _transport_of(self, resolved: Resolved) -> Found:
        keys = [(resolved.address, False)]
        with_dots = "transport_maps" not in self.settings.items("parent_domain_matches_subdomains")
        keys += [(name, True) for name in parents(resolved.domain, with_dots=with_dots)]
        keys.append(("*", True))
        for key, partial in keys:
            found = self._transports.find(key, partial=partial)
            if found is not None:
                return found
        return None


UNKNOWN_ADDRESS = "anyone@anywhere.invalid"
"""What an alias that can't be read may lead to."""
