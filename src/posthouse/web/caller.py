"""Which address a request truly comes from. Whoever connects from an address has shown that it is his.

TCP proves an address: the handshake reached it. A header proves nothing, so X-Forwarded-For is read only where a proxy of
our own wrote it, and only its last entry that no such proxy is. A request that some other proxy passed on comes from that
proxy's address, which is not the host that its user means: it is not tested.
"""

from collections.abc import Mapping
from ipaddress import ip_address

from posthouse.policy.networks import Address, NetworkSet, normalise_address
from posthouse.web.problem import Problem, unreadable

_PASSED_ON = ("x-forwarded-for", "forwarded", "via")


def caller_address(peer: str, headers: Mapping[str, str], proxies: NetworkSet) -> Address:
    """The caller's address, for limits and for the log. Problem when a proxy of ours says something unreadable."""
    address = _address(peer)
    if address not in proxies:
        return address
    for text in reversed(headers.get("x-forwarded-for", "").split(",")):
        if not text.strip():
            continue
        address = _address(text.strip())
        if address not in proxies:
            break
    return address


def proven_address(peer: str, headers: Mapping[str, str], proxies: NetworkSet) -> Address:
    """The address that the caller has shown to be his. Problem when the request came through a proxy that isn't ours."""
    address = caller_address(peer, headers, proxies)
    if normalise_address(ip_address(peer)) in proxies:
        if address in proxies:
            raise Problem(
                403,
                "proxy",
                "Came through a proxy",
                f"The proxy {peer} does not say for whom it asks (X-Forwarded-For).",
            )
        return address
    for name in _PASSED_ON:
        if headers.get(name):
            raise Problem(
                403,
                "proxy",
                "Came through a proxy",
                f"This request came from {peer} with a {name.title()} field: a proxy passed it on, and its address is not "
                f"your mail host's. Call from the mail host itself, without a proxy.",
            )
    return address


def _address(text: str) -> Address:
    bare = text.removeprefix("[").partition("]")[0] if text.startswith("[") else text
    try:
        return normalise_address(ip_address(bare))
    except ValueError:
        raise unreadable(
            f"{text[:80]!r} is no address; the proxy must write plain addresses in X-Forwarded-For."
        ) from None
