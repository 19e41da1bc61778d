"""Which addresses a stranger's DNS may send us to: public unicast ones, in whatever notation they hide."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network

from posthouse.smtp.ip import Address, normalise_address

_TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))  # NAT64 (RFC 6052, RFC 8215)
_UNSPECIFIED_BLOCK = IPv6Network("::/8")  # holds ::1, IPv4-mapped and IPv4-compatible addresses (RFC 4291 2.5)
_IPV4 = 0xFFFFFFFF


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a mapped, translated or 6to4 address leads to."""
    plain = normalise_address(address)
    if isinstance(plain, IPv4Address):
        return plain
    if any(address in network for network in _TRANSLATED):
        return IPv4Address(int(address) & _IPV4)
    return address.sixtofour


def is_public(address: Address) -> bool:
    """Whether the address is one of the public internet: not loopback, private, link-local, shared, multicast or reserved.

    An IPv6 address that carries an IPv4 address is judged by that one; Teredo's are never followed.
    """
    if isinstance(address, IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.is_site_local or address in _UNSPECIFIED_BLOCK:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved
