"""IP addresses in their one form, so that one rule holds for both families and no second spelling slips past it."""

from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address


def normalise_address(address: Address) -> Address:
    """The address in its one form: IPv4-mapped IPv6 (RFC 4291 2.5.5.2) turned into IPv4, the scope of a link-local one dropped."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv6Address(int(address)) if address.scope_id else address
