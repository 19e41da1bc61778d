"""The ways in: which smtpd services a stranger reaches, and what he may claim on the way (master(5), postscreen(8))."""

from collections.abc import Iterator
from ipaddress import ip_address

import msgspec

from posthouse.audit.postfix.master import Service
from posthouse.audit.postfix.place import Place
from posthouse.audit.postfix.settings import Settings


class Door(msgspec.Struct, frozen=True):
    """One smtpd service and how it is reached.

    `proxy`: the place of the setting by which it believes a PROXY header of whoever connects. `reach`: who connects.
    """

    service: Service
    title: str
    is_loopback: bool
    is_private: bool
    proxy: Place | None


def doors(services: list[Service], settings: Settings) -> list[Door]:
    """All smtpd services that listen on the network, those behind postscreen included."""
    found = [door for service in services if (door := _direct(service, settings)) is not None]
    screens = [one for one in services if one.kind == "inet" and one.command == "postscreen"]
    for service in services:
        if service.kind == "pass" and service.command == "smtpd" and screens:
            found += [_behind(service, screen, settings) for screen in screens]
    return found


def _direct(service: Service, settings: Settings) -> Door | None:
    if service.kind != "inet" or service.command != "smtpd":
        return None
    own = settings.under(service.overrides)
    name = "smtpd_upstream_proxy_protocol"
    proxy = own.place(name) if own.text(name) else None
    loopback, private = _reach(service, settings)
    return Door(service, f"{service.name} inet", loopback, private, proxy)


def _behind(service: Service, screen: Service, settings: Settings) -> Door:
    own = settings.under(screen.overrides)
    name = "postscreen_upstream_proxy_protocol"
    proxy = own.place(name) if own.text(name) else None
    loopback, private = _reach(screen, settings)
    return Door(service, f"{screen.name} inet, behind postscreen", loopback, private, proxy)


def _reach(service: Service, settings: Settings) -> tuple[bool, bool]:
    """Whether only this machine reaches the service, and whether only private networks do."""
    host = service.name.rpartition(":")[0].strip("[]")
    hosts = [host] if host else settings.items("inet_interfaces")
    kinds = list(_kinds(hosts))
    return all(kind == "loopback" for kind in kinds), all(kind != "public" for kind in kinds)


def _kinds(hosts: list[str]) -> Iterator[str]:
    for host in hosts:
        if host in ("loopback-only", "localhost"):
            yield "loopback"
            continue
        try:
            address = ip_address(host.strip("[]"))
        except ValueError:
            yield "public"
            continue
        yield "loopback" if address.is_loopback else "private" if address.is_private else "public"
    if not hosts:
        yield "public"
