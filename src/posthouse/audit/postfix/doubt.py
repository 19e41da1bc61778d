"""What is closed as far as main.cf says, and worth a sentence all the same."""

from collections.abc import Iterator
from ipaddress import IPv4Network

from posthouse.audit.crowd import gateway_doubts
from posthouse.audit.postfix.door import Door
from posthouse.audit.postfix.smtpd import Smtpd
from posthouse.policy.gateways import Gateway
from posthouse.policy.networks import network_text


def find_doubts(smtpd: Smtpd, door: Door, gateways: tuple[Gateway, ...]) -> Iterator[str]:
    """One sentence each, with what to do."""
    yield from gateway_doubts([network for network, _ in smtpd.mynetworks.networks()], gateways)
    yield from _wide_networks(smtpd)
    if not smtpd.is_complete():
        yield (
            f"the service {door.title} answers every recipient with 451: neither smtpd_relay_restrictions nor "
            f"smtpd_recipient_restrictions holds a refusal such as reject_unauth_destination"
        )
    milters = smtpd.settings.text("smtpd_milters")
    if milters and milters.lower() != "none":
        yield f"the milters {milters} were not asked; they may refuse mail or add recipients"
    if smtpd.settings.text("smtpd_proxy_filter"):
        yield f"the filter {smtpd.settings.text('smtpd_proxy_filter')} before the queue was not asked"
    for pattern in smtpd.resolver.relay.patterns:
        if pattern.text == "*":
            yield f"relay_domains holds *, which Postfix takes for a name and not for everything ({pattern.place})"


def _wide_networks(smtpd: Smtpd) -> Iterator[str]:
    for network, place in smtpd.mynetworks.networks():
        if isinstance(network, IPv4Network) and 8 < network.prefixlen < 16 and network.is_global:
            yield f"mynetworks holds {network_text(network)} ({place}), many more hosts than most people know"
