"""`posthouse test HOST --prove dns|banner|postmaster`: prints what the owner of a host is to do, and looks whether it is done."""

import asyncio
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import click
import msgspec

from posthouse.cli.options import ExitStatus, fail, print_json
from posthouse.tester.consent import Consent, Denial, Method, Proof
from posthouse.tester.office import OfficeFault
from posthouse.tester.proving import Host, Missing, never_tested, prove

if TYPE_CHECKING:
    from posthouse.config import Config
    from posthouse.dns.resolver import Resolver

METHODS = tuple(method.value for method in Method)


class Shown(msgspec.Struct, frozen=True):
    """What came of one address of the host."""

    host: Host
    result: Proof | Missing


def prove_control(
    config: "Config", name: str, port: int, method: str, *, typed: str = "", as_json: bool = False
) -> int:
    """The command's whole work for `--prove`; `typed` is `--token`. 0 proved, 1 not yet, 2 the host or the state is unusable."""
    try:
        shown = asyncio.run(_prove(config, name, port, Method(method), typed))
    except OfficeFault as fault:
        fail(str(fault))
    if as_json:
        print_json(
            {"host": name, "method": method, "proved": _is_proved(shown), "addresses": [_row(one) for one in shown]}
        )
    else:
        for one in shown:
            _print(one)
    return ExitStatus.DONE if _is_proved(shown) else ExitStatus.NO


def _is_proved(shown: list[Shown]) -> bool:
    return all(isinstance(one.result, Proof) for one in shown)


async def _prove(config: "Config", name: str, port: int, method: Method, typed: str) -> list[Shown]:
    from posthouse.serve.testing import identity_of, office_of  # noqa: PLC0415 - not needed for --help
    from posthouse.serve.wiring import resolver_of  # noqa: PLC0415

    resolver = resolver_of(config)
    try:
        office, identity = office_of(config), identity_of(config)
        shown = []
        for address in await _addresses(resolver, name):
            host = Host(name, address, port)
            forbidden = never_tested(office, host)
            if forbidden:
                fail(forbidden)
            shown.append(Shown(host, await prove(office, method, host, resolver, identity, typed)))
        return shown
    finally:
        resolver.close()


async def _addresses(resolver: "Resolver", name: str) -> tuple[IPv4Address | IPv6Address, ...]:
    from posthouse.dns.host import find_host  # noqa: PLC0415
    from posthouse.dns.mx import NextHops  # noqa: PLC0415
    from posthouse.mail.reason import Slug  # noqa: PLC0415

    try:
        return (ip_address(name.removeprefix("[").removesuffix("]")),)
    except ValueError:
        pass
    found = await find_host(resolver, name, lambda _addresses: None)
    if not isinstance(found, NextHops):
        if found.reason.slug is Slug.DNS_FAILED:
            fail(f"the DNS does not answer for {name}: try again", ExitStatus.NO_VERDICT)
        fail(f"{name} has no address that could be found: check the name")
    return found.hosts[0].addresses


def _row(one: Shown) -> dict[str, object]:
    """A document's row; its keys are public."""
    result = one.result
    row: dict[str, object] = {"address": str(one.host.address), "proved": isinstance(result, Proof)}
    if isinstance(result, Proof):
        return row | {"until": result.expires_at}
    return row | {"words": result.words, "todo": result.todo, "token": result.token}


def _print(one: Shown) -> None:
    from datetime import UTC, datetime  # noqa: PLC0415

    result = one.result
    if isinstance(result, Proof):
        until = datetime.fromtimestamp(result.expires_at, UTC)
        click.echo(f"proved: {one.host.name} ({one.host.address}) may be tested until {until:%Y-%m-%d %H:%M} UTC")
        return
    click.echo(f"not proved yet: {result.words}")
    for line in result.todo:
        click.echo(f"    {line}")


def admitted(config: "Config", name: str, address: IPv4Address | IPv6Address) -> Consent | Denial:
    """May that address of the host be tested now? A yes is counted as one test."""
    from posthouse.serve.testing import office_of  # noqa: PLC0415

    return office_of(config).admit(name, address)
