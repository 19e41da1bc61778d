"""Real Postfix relays in front of the collector: one hop, behind a smart host, and a notice to the probe's sender."""

import contextlib
from collections.abc import Iterator

import pytest

from collecting import DOMAIN, Collecting, collecting, fresh_test, send
from peer_programs import free_port, wait_until
from peer_servers import NextHop, postfix_next_hop
from posthouse.tester.collector import Receipt
from posthouse.tester.token import Purpose
from posthouse.tester.trail import path_of, signed_by

pytestmark = pytest.mark.peer

OPEN = {
    "mynetworks": "0.0.0.0/0",
    "smtpd_relay_restrictions": "permit_mynetworks, reject",
    "smtp_helo_name": "$myhostname",
}


@contextlib.contextmanager
def open_relay(name: str, next_port: int, **more: str) -> Iterator[NextHop]:
    """A Postfix that relays anything for anybody to a port of this machine."""
    settings = {**OPEN, "myhostname": name, "relayhost": f"[127.0.0.1]:{next_port}", **more}
    with postfix_next_hop(["ours.test"], port=free_port(), settings=settings) as relay:
        yield relay


def await_receipt(collector: Collecting, test: int) -> Receipt:
    wait_until(lambda: collector.receipts(test), "the probe at the collector", 60)
    return collector.receipts(test)[0]


def test_probe_through_an_open_postfix_comes_back_and_tells_one_host() -> None:
    with collecting() as collector, open_relay("edge.test", collector.port) as edge:
        test = fresh_test()
        assert send(edge.port, f"{collector.token(test, 4)}@{DOMAIN}")[0] == 250
        receipt = await_receipt(collector, test)
        path = path_of(receipt, edge.address)
        assert (path.case_number, path.output_hello_name, path.is_multi_hop) == (4, "edge.test", False)
        assert [signed_by(hop.field) for hop in path.hops] == ["edge.test"]


def test_open_edge_behind_a_smart_host_is_told_from_its_output_host() -> None:
    with (
        collecting() as collector,
        open_relay("smart.test", collector.port) as smart,
        open_relay("edge.test", smart.port) as edge,
    ):
        test = fresh_test()
        assert send(edge.port, f"{collector.token(test, 5)}@{DOMAIN}")[0] == 250
        path = path_of(await_receipt(collector, test), edge.address)
        assert path.is_multi_hop
        assert (path.input_host, path.output_hello_name) == (edge.address, "smart.test")
        assert [signed_by(hop.field) for hop in path.hops] == ["edge.test", "smart.test"]


def test_notice_about_a_probe_arrives_as_forwarding_by_bounce() -> None:
    closed = "reject_unauth_destination"
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(collecting())
        inner = f"smtp:[127.0.0.1]:{collector.port}"  # where nobody@ours.test is refused, too late
        edge = stack.enter_context(
            open_relay("edge.test", collector.port, smtpd_relay_restrictions=closed, virtual_transport=inner)
        )
        test = fresh_test()
        reverse_path = f"{collector.token(test, 6, Purpose.BOUNCE)}@{DOMAIN}"
        assert send(edge.port, f"{collector.token(test, 6)}@{DOMAIN}", reverse_path=reverse_path)[0] == 554
        assert send(edge.port, "nobody@ours.test", reverse_path=reverse_path)[0] == 250
        receipt = await_receipt(collector, test)
        assert receipt.is_bounce
        assert (receipt.case_number, receipt.reverse_path) == (6, "<>")
        assert "multipart/report" in receipt.header
