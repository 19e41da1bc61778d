"""From a destination to a site: the route's next hops made reachable (RFC 5321 5.1), or the outcome when there is none.

A hop that the configuration names is the operator's word and is followed wherever it points. A hop found through the DNS is
a stranger's word: it may not lead into our own networks unless the route says so.
"""

import random
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from posthouse.dns.host import find_host
from posthouse.dns.mx import Host, NextHops, NoNextHop, Ourselves, find_next_hops, literal_next_hop
from posthouse.dns.resolver import Resolver
from posthouse.mail.outcome import Deferred, Failed
from posthouse.mail.reason import Reason, Slug
from posthouse.policy.networks import NetworkSet
from posthouse.relay.route import Hop, HopKind, NextHop, Route, RouteError, RouteTable

_NO_NETWORKS = NetworkSet(())
DIRECTIONS_TTL = 300.0
"""Seconds that directions are used at most; the resolver's cache has the records' own lives."""


class Directions(msgspec.Struct, frozen=True):
    """Where a destination's mail goes; destinations with one `key` share a site. `ttl` is in seconds."""

    key: str
    next_hops: tuple[NextHop, ...]
    route: Route
    ttl: float = DIRECTIONS_TTL


class Pathfinder:
    """Finds directions for destinations. `routes` may be replaced at a reload."""

    def __init__(self, routes: RouteTable, resolver: Resolver, ourselves: Ourselves) -> None:
        self.routes = routes
        self._resolver = resolver
        self._ourselves = ourselves

    async def find(self, destination: str) -> Directions | Deferred | Failed:
        """Directions, or the outcome for all that waits for this destination."""
        try:
            route = self.routes.find(destination)
        except RouteError as error:
            return Failed("5.3.5", Reason(Slug.CONFIGURATION, str(error)))
        if route is None:
            words = f'no [[route]] says where mail for {destination} goes; add one, or the route "*"'
            return Deferred("4.3.5", Reason(Slug.CONFIGURATION, words))
        found: list[NextHop] = []
        trouble: NoNextHop | None = None
        ttl = DIRECTIONS_TTL
        for hop in route.hops:
            result = await self._reach(hop, destination, route)
            if isinstance(result, NoNextHop):
                trouble = trouble or result
            elif isinstance(result, NextHops):
                ttl = min(ttl, max(result.ttl, 1.0))
                found.append(NextHop(hop, route, _flatten(result.hosts, hop.port)))
            else:
                found.append(NextHop(hop, route))
        if found:
            return Directions(_site_key(found), tuple(found), route, ttl)
        if trouble is None or not trouble.is_permanent:
            reason = (
                trouble.reason
                if trouble
                else Reason(Slug.CONFIGURATION, f"the route for {destination} has no next hop")
            )
            return Deferred(trouble.status if trouble else "4.3.5", reason)
        if destination in self._ourselves.names:
            return self._kept_here(destination)
        return Failed(trouble.status, trouble.reason)

    def _kept_here(self, destination: str) -> Directions | Failed:
        """Mail to this host's own name (cron's, say) that the DNS leads nowhere: kept where `<postmaster>`'s is, not bounced to itself."""
        route = self.routes.find("")
        if route is None:
            words = (
                f"{destination} is this server itself, and nothing says who reads its mail; name it in local_domains"
            )
            return Failed("5.4.6", Reason(Slug.MX_LOOP, words))
        next_hops = tuple(NextHop(hop, route) for hop in route.hops)
        return Directions(_site_key(list(next_hops)), next_hops, route)

    async def _reach(self, hop: Hop, destination: str, route: Route) -> NextHops | NoNextHop | None:
        """The hosts of a hop; None for a hop that needs none."""
        if hop.kind in (HopKind.MAILDIR, HopKind.PIPE) or (hop.kind is HopKind.LMTP and hop.path):
            return None
        networks = route.allow_networks or _NO_NETWORKS
        if hop.kind is HopKind.MX:
            domain = hop.host or destination
            if domain.startswith("["):
                return _literal(domain, networks, self._ourselves)
            return await find_next_hops(self._resolver, domain, self._ourselves, networks, random.shuffle)
        return await find_host(self._resolver, hop.host, random.shuffle)


def _flatten(hosts: tuple[Host, ...], port: int) -> tuple[tuple[str, str, int], ...]:
    return tuple((host.name, str(address), port) for host in hosts for address in host.addresses)


def _literal(domain: str, networks: NetworkSet, ourselves: Ourselves) -> NextHops | NoNextHop:
    """The host of an address literal (RFC 5321 4.1.3): a stranger's word like any other."""
    address = _address(domain[1:-1].removeprefix("ipv6:").removeprefix("IPv6:"))
    if address is None:
        return NoNextHop(Reason(Slug.NO_ADDRESS, f"{domain} is not an address that mail can be sent to"), "5.1.2")
    return literal_next_hop(domain, address, ourselves, networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _site_key(next_hops: list[NextHop]) -> str:
    """The same next hops by the same route are one site, whatever the order in which equal MX hosts were shuffled."""
    parts = []
    for next_hop in next_hops:
        names = sorted({name for name, _address, _port in next_hop.hosts})
        parts.append(f"{next_hop.hop} {','.join(names)}" if next_hop.hop.kind is HopKind.MX else str(next_hop.hop))
    route = next_hops[0].route
    ways = (route.source_address, route.hello_name, route.tls, route.login.user if route.login else "", *route.command)
    tail = " ".join(word for word in ways if word and word != "opportunistic")
    return " | ".join(parts) + (f" ({tail})" if tail else "")
