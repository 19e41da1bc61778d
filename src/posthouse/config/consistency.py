"""What no single key can tell: contradictions between sections (errors), and what is allowed but surely not meant (warnings).

Whether a stranger could relay is not decided here but by policy's proof, on the rules made of this configuration.
"""

from posthouse.config.next_hop import FINAL
from posthouse.config.places import KeyPath
from posthouse.config.settings import Config, ListenerRole, ListenerSettings, RouteSettings
from posthouse.config.table import Document
from posthouse.config.values import is_loopback
from posthouse.net.listen import address_text
from posthouse.policy.domains import DomainTable
from posthouse.relay.route import Hop, HopKind, parse_hop


def check_consistency(config: Config, document: Document) -> None:
    """Refuses contradictions: pure, reads no file. ConfigError at the place of the one found first."""
    _check_listeners(config, document)
    _check_collector(config, document)
    _check_route_domains(config, document)
    routes = DomainTable({pattern: route for route in config.routes for pattern in route.domain})
    for index, domain in enumerate(config.relay.local_domains):
        words = _local_domain_fault(domain, routes)
        if words:
            raise document.fault(("relay", "local_domains", index), f"[relay] local_domains has {domain!r}, {words}")
    _check_domain_lists(config, document)
    _check_gateways(config, document)
    if config.limits.errors_close < config.limits.errors_slow:
        raise document.fault(("limits",), "[limits] errors_close is smaller than errors_slow")


def _check_listeners(config: Config, document: Document) -> None:
    seen: dict[tuple[str, int], int] = {}
    for index, listener in enumerate(config.listeners):
        place = (listener.host, listener.port)
        if listener.port and place in seen:
            raise document.fault(
                ("listener", index, "address"), f"[[listener]] address {_shown(listener)} is given twice"
            )
        seen[place] = index


def _check_collector(config: Config, document: Document) -> None:
    for index, listener in enumerate(config.listeners):
        if listener.role is ListenerRole.COLLECTOR and not config.collector.domains:
            words = (
                '[[listener]] role is "collector": name the domains it takes probes for, [collector] domains = ["..."]'
            )
            raise document.fault(("listener", index, "role"), words)


def _shown(listener: ListenerSettings) -> str:
    return address_text(listener.host, listener.port)


def _check_route_domains(config: Config, document: Document) -> None:
    seen: set[str] = set()
    for index, route in enumerate(config.routes):
        for pattern in route.domain:
            if pattern in seen:
                words = f"[[route]] domain {pattern!r} already has a route; list its next hops in one `to`"
                raise document.fault(("route", index, "domain"), words)
            seen.add(pattern)
        kinds = [parse_hop(url).kind for url in route.to]
        if route.login and any(kind in FINAL or kind is HopKind.MX for kind in kinds):
            words = "[[route]] login goes with smtp:// and smtps:// only: a password is for one known host"
            raise document.fault(("route", index, "login"), words)


def _local_domain_fault(domain: str, routes: DomainTable[RouteSettings]) -> str:
    route = routes.lookup(f"any{domain}" if domain.startswith(".") else domain)
    if route is None or "mx:" in route.to:
        return (
            "but no [[route]] delivers it here; add one with that domain and `to` lmtp://, maildir:, pipe: "
            "or the smtp:// server that holds its mailboxes"
        )
    is_wide = domain == "*" or "." not in domain.lstrip(".")
    if is_wide and not all(parse_hop(url).kind in FINAL for url in route.to):
        return (
            "which is everyone's mail, and its [[route]] hands it on to another server: that would relay for strangers; "
            "name the domains, or deliver with lmtp://, maildir: or pipe:"
        )
    return ""


def _check_domain_lists(config: Config, document: Document) -> None:
    for index, domain in enumerate(config.relay.relay_domains):
        if domain in config.relay.local_domains:
            words = f"[relay] {domain!r} is in local_domains and relay_domains; it can be only one"
            raise document.fault(("relay", "relay_domains", index), words)


def _check_gateways(config: Config, document: Document) -> None:
    for index, address in enumerate(config.relay.gateways_trusted):
        if address in config.relay.gateways_as_strangers:
            words = f"[relay] {address} is in gateways_trusted and in gateways_as_strangers; decide for one"
            path: KeyPath = ("relay", "gateways_trusted", index)
            raise document.fault(path, words)


def find_warnings(config: Config) -> list[str]:
    """What works but is surely not meant, one sentence each; for `check` and the first lines of `serve`."""
    found = [
        f"the submission listener {_shown(listener)} has no tls, so only this machine can log in there: "
        f"add tls = {{ certificate = ..., key = ... }}"
        for listener in config.listeners
        if listener.role is ListenerRole.SUBMISSION and listener.tls is None and not is_loopback(listener.host)
    ]
    for route in config.routes:
        if route.login and route.tls == "never":
            found += [
                f'the route to {url} sends its password in the clear: set tls = "required" or "verified"'
                for url in route.to
                if not _is_safe_for_a_password(parse_hop(url))
            ]
    return found


def _is_safe_for_a_password(hop: Hop) -> bool:
    """Without STARTTLS: TLS from the first octet, or this machine."""
    return hop.kind is HopKind.SMTPS or is_loopback(hop.host)
