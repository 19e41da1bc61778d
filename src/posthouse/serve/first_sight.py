"""What `posthouse serve` says before it is ready, to someone who starts it for the first time."""

from collections.abc import Mapping, Sequence
from typing import Any

import posthouse
from posthouse.config import Config, ListenerRole, ListenerSettings


def describe(config: Config, addresses: Sequence[str]) -> list[str]:
    """A few plain lines: where it listens, for whom it relays and for whom not, where its data is, one line to try."""
    source = f"configuration {config.source}" if config.source else "embedded default, no configuration file"
    lines = [f"posthouse {posthouse.__version__} on {config.hostname} ({source})"]
    lines += [
        f"  listens on   {address}  {_purpose(listener)}"
        for address, listener in zip(addresses, config.listeners, strict=True)
    ]
    lines.append(f"  relays for   {_relays_for(config)}")
    lines += [f"  takes mail   {words}" for words in _takes_for(config)]
    lines.append("  relays not   for anyone else: they get 550 5.7.1 (`posthouse check` proves it)")
    lines.append(f"  data in      {config.data_dir}")
    example = _example(config, addresses)
    if example:
        lines.append(f"  try          {example}")
    return lines


def ready_line(config: Config, addresses: Sequence[str], pid: int, web: Mapping[str, Any] | None = None) -> str:
    """The line that begins with `ready`, when all listeners accept. `web` is the status of the web, {} without one."""
    workers = f"{config.workers} worker{'s' if config.workers > 1 else ''}"
    pages = f", pages on {web['address']}" if web else ""
    calls = f", calls on {web['calls']}" if web and web["calls"] else ""
    where = ", ".join(addresses) or "the local socket alone"
    return f"ready: accepting mail on {where} ({workers}, pid {pid}){pages}{calls}"


def _purpose(listener: ListenerSettings) -> str:
    words = (
        "mail from logged-in users"
        if listener.role is ListenerRole.SUBMISSION
        else "mail from other servers and clients"
    )
    if listener.tls is None:
        return words
    return f"{words}, {'TLS from the first octet' if listener.tls.implicit else 'STARTTLS'}"


def _relays_for(config: Config) -> str:
    networks = ", ".join(config.relay.trusted_networks) or "no network"
    return f"clients at {networks}, users who log in and local users, to anywhere"


def _takes_for(config: Config) -> list[str]:
    words = []
    if config.relay.local_domains:
        words.append(f"from anyone for {_some(config.relay.local_domains)}, delivered here")
    if config.relay.relay_domains:
        words.append(f"from anyone for {_some(config.relay.relay_domains)}, relayed there")
    return words


def _some(domains: tuple[str, ...]) -> str:
    return ", ".join(domains[:3]) + (f" and {len(domains) - 3} more" if len(domains) > 3 else "")


def _example(config: Config, addresses: Sequence[str]) -> str:
    for address, listener in zip(addresses, config.listeners, strict=True):
        if listener.role is ListenerRole.RELAY and not (listener.tls and listener.tls.implicit):
            host, _, port = address.rpartition(":")
            host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104 - words, not a bind
            mail = f"'me@{config.hostname}', 'YOU@YOUR.DOMAIN', 'Subject: hello\\n\\nHello'"
            return f"python3 -c \"import smtplib; smtplib.SMTP('{host}', {port}).sendmail({mail})\""
    return ""
