"""What belongs to the relay test: [collector], [tester], [web], and the bounds of a lab listener."""

from pathlib import Path
from urllib.parse import urlsplit

from posthouse.config import values
from posthouse.config.settings import CollectorSettings, LabSettings, ListenerRole, TesterSettings, WebSettings
from posthouse.config.table import Table
from posthouse.policy.lab import LabFault, check_destination, check_network
from posthouse.policy.networks import parse_network

MOST_OWN_ADDRESSES = 65_536
"""Public addresses that may be declared to be one's own: a /16. More than that is no network of one's own, it is a sweep."""


def read_lab(table: Table | None, listener: Table, role: ListenerRole, host: str) -> LabSettings | None:
    """`lab` of a [[listener]]; needed by the role lab, and by no other."""
    if role is not ListenerRole.LAB:
        if table is not None:
            raise listener.fault("lab", 'counts only with role = "lab"')
        return None
    if table is None:
        raise listener.fault(
            "role",
            'is "lab", an open relay on purpose: give its bounds, '
            'lab = { destinations = ["collector.example.net"], until = 2026-08-01 }',
        )
    default = LabSettings((), 0.0)
    networks = table.take("networks", values.list_of(_lab_network), ())
    if not networks and not values.is_loopback(host):
        raise table.fault("networks", "is needed for a lab that listens on more than loopback: name who may use it")
    destinations = table.need("destinations", values.one_or_many(_lab_destination))
    return LabSettings(destinations, table.need("until", values.moment), networks or default.networks)


def _lab_network(value: object) -> str:
    found = values.network(value)
    try:
        check_network(parse_network(found))
    except LabFault as fault:
        raise ValueError(str(fault)) from None
    return found


def _lab_destination(value: object) -> str:
    found = values.domain_pattern(value)
    try:
        check_destination(found)
    except LabFault as fault:
        raise ValueError(str(fault)) from None
    return found


def read_collector(table: Table | None) -> CollectorSettings:
    """[collector]."""
    default = CollectorSettings()
    if table is None:
        return default
    ask_host, ask_port = table.take("ask", values.endpoint(least_port=0), ("", 0))
    return CollectorSettings(
        domains=table.need("domains", values.one_or_many(values.host_name)),
        keep=table.take("keep", values.duration, default.keep),
        per_client=table.take("per_client", values.whole(1), default.per_client),
        in_all=table.take("in_all", values.whole(1), default.in_all),
        ask_host=ask_host,
        ask_port=ask_port,
    )


def read_tester(table: Table | None, directory: Path) -> TesterSettings:
    """[tester]."""
    default = TesterSettings()
    if table is None:
        return default
    own = table.take("own_networks", values.list_of(values.network), ())
    _check_own_networks(table, own)
    url = table.take("collector_url", _http_url, "")
    if url and not table.take("collector", values.host_name, ""):
        raise table.fault("collector_url", "needs `collector`, the mail domain of that collector, beside it")
    return TesterSettings(
        collector=table.take("collector", values.host_name, ""),
        collector_url=url,
        key_file=table.take("key_file", values.path_in(directory), None),
        hello_name=table.take("hello_name", values.host_name, ""),
        reverse_path=table.take("reverse_path", values.mail_address, ""),
        contact=table.take("contact", values.mail_address, ""),
        own_networks=own,
        do_not_test=table.take("do_not_test", values.list_of(_untested), ()),
        do_not_test_file=table.take("do_not_test_file", values.path_in(directory), None),
        tests_per_target=table.take("tests_per_target", values.whole(1, 1000), default.tests_per_target),
        tests_per_day=table.take("tests_per_day", values.whole(1, 100_000), default.tests_per_day),
    )


def read_web(table: Table | None) -> WebSettings:
    """[web]."""
    default = WebSettings()
    if table is None:
        return default
    host, port = table.need("listen", values.endpoint(least_port=0))
    call = table.take("call_listen", values.endpoint(least_port=0), None)
    call_host, call_port = call or ("", 0)
    if call and port and call == (host, port):
        raise table.fault("call_listen", "is the same as `listen`; HTTP and bare calls need a port each")
    return WebSettings(
        host=host,
        port=port,
        is_on=True,
        call_host=call_host,
        call_port=call_port,
        is_call_on=call is not None,
        url=table.take("url", _http_url, "").rstrip("/"),
        ports=table.take("ports", values.list_of(values.whole(1, 65_535)), default.ports) or default.ports,
        proxies=table.take("proxies", values.list_of(values.network), ()),
        at_once=table.take("at_once", values.whole(1, 100), default.at_once),
        queue=table.take("queue", values.whole(1, 10_000), default.queue),
        tests_per_address=table.take("tests_per_address", values.whole(1, 100_000), default.tests_per_address),
        tests_in_all=table.take("tests_in_all", values.whole(1, 1_000_000), default.tests_in_all),
        keep=table.take("keep", values.duration, default.keep),
        private_hosts=table.take("private_hosts", values.boolean, default.private_hosts),
    )


def _check_own_networks(table: Table, texts: tuple[str, ...]) -> None:
    from posthouse.policy.proof import public_ipv4  # noqa: PLC0415 - `sendmail` reads a configuration without the proof

    networks = [parse_network(text) for text in texts]
    if sum(last - first + 1 for first, last in public_ipv4(networks)) > MOST_OWN_ADDRESSES or any(
        network.version == 6 and network.prefixlen < 32 and not network.is_private for network in networks
    ):
        words = (
            f"hold more than {MOST_OWN_ADDRESSES:,} public addresses (IPv6: wider than a /32): "
            f"name the networks that are yours; other people's need their proof of control"
        )
        raise table.fault("own_networks", words)


def _untested(value: object) -> str:
    """An address or network, or a domain pattern."""
    written = values.text(value)
    if ":" in written or written.replace(".", "").replace("/", "").isdigit():
        return values.network(written)
    return values.domain_pattern(written)


def _http_url(value: object) -> str:
    written = values.text(value)
    try:
        parts = urlsplit(written)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{written!r} is not a URL such as http://192.0.2.7:8026")
    return written
