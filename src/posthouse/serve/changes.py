"""What a reload changes besides who may relay where, in words: listeners, routes, and that something else did."""

from collections.abc import Iterator

from posthouse.config import Config, ListenerSettings, RouteSettings
from posthouse.net.listen import address_text

_TOLD_APART = frozenset({"source", "listeners", "routes", "relay", "aliases"})
"""What is told in sentences, here or with the relay matrix; of the rest only the names."""


def setting_changes(old: Config, new: Config) -> list[str]:
    """One sentence for each listener and route that comes, goes or changes, and one for all the other sections."""
    found = [*_listener_changes(old, new), *_route_changes(old, new)]
    others = [
        name
        for name in Config.__struct_fields__
        if name not in _TOLD_APART and getattr(old, name) != getattr(new, name)
    ]
    if others:
        found.append(f"changed too: {', '.join(others)}")
    return found


def _listener_changes(old: Config, new: Config) -> Iterator[str]:
    before, after = _by_address(old), _by_address(new)
    for address, listener in after.items():
        if address not in before:
            yield f"listens on {address} now ({listener.role})"
        elif before[address] != listener:
            yield f"the listener on {address} is changed"
    for address in before:
        if address not in after:
            yield f"listens on {address} no longer"


def _by_address(config: Config) -> dict[str, ListenerSettings]:
    return {address_text(each.host, each.port): each for each in config.listeners}


def _route_changes(old: Config, new: Config) -> Iterator[str]:
    before, after = _by_pattern(old), _by_pattern(new)
    for pattern, route in after.items():
        name = "all other mail" if pattern == "*" else f"mail for {pattern}"
        if pattern not in before or before[pattern].to != route.to:
            yield f"{name} goes to {', then '.join(route.to)} now"
        elif before[pattern] != route:
            yield f"the route of {name} is changed"
    for pattern in before:
        if pattern not in after:
            yield f"mail for {pattern} has no route of its own any more"


def _by_pattern(config: Config) -> dict[str, RouteSettings]:
    return {pattern: route for route in config.routes for pattern in route.domain}
