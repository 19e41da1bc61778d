"""One verdict for a host of many ports."""

import msgspec
import pytest

from posthouse.tester.report import Report
from posthouse.tester.verdict import HostVerdict
from posthouse.web.document import PortState, RelayTest, judge
from posthouse.web.event import printable
from posthouse.web.job import Job, Subject
from posthouse.web.rate import HOUR, Rate, rate_key

OPEN, CLOSED, UNKNOWN = HostVerdict.OPEN, HostVerdict.CLOSED, HostVerdict.UNKNOWN


def report(port: int, verdict: HostVerdict) -> Report:
    return Report("mx.test", "192.0.2.1", port, verdict, f"{verdict}: because", (), 0.0, 1.0)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((CLOSED, CLOSED), CLOSED),
        ((CLOSED, UNKNOWN), UNKNOWN),
        ((UNKNOWN, OPEN, CLOSED), OPEN),
        ((), UNKNOWN),
    ],
)
def test_host_is_open_if_a_port_is_and_closed_only_if_all_are(
    verdicts: tuple[HostVerdict, ...], expected: HostVerdict
) -> None:
    reports = [report(25 + number, verdict) for number, verdict in enumerate(verdicts)]
    assert judge(reports)[0] is expected


def test_port_that_answers_and_was_not_tested_makes_closed_impossible() -> None:
    ports = [PortState(25, True), PortState(587, True, "was not tested")]
    assert judge([report(25, CLOSED)], ports)[:2] == (UNKNOWN, "port 587 was not tested")
    assert judge([report(25, OPEN)], ports)[0] is OPEN
    assert judge([report(25, CLOSED)], [PortState(25, True), PortState(587, False, "closed")])[0] is CLOSED


def test_document_comes_back_from_json_as_it_was() -> None:
    job = Job(Subject("mx.test", "192.0.2.1", (25,)), 1.0)
    assert msgspec.json.decode(msgspec.json.encode(job.document), type=RelayTest) == job.document


def test_what_is_not_printable_is_escaped() -> None:
    assert printable("a\x1b[2J\r\n\u202eb\u00e9") == r"a\x1b[2J\x0d\x0a\x202ebé"


def test_rate_counts_an_hour_for_each_and_for_all() -> None:
    rate = Rate(2, 3)
    for now in (0.0, 10.0):
        assert rate.wait_seconds("a", now) == 0
        rate.count("a", now)
    assert rate.wait_seconds("a", 20.0) == HOUR - 20
    rate.count("b", 20.0)
    assert rate.wait_seconds("c", 30.0) == HOUR - 30, "three in all"
    assert rate.wait_seconds("a", HOUR + 1) == 0


def test_owner_of_an_ipv6_network_counts_once() -> None:
    from ipaddress import ip_address

    assert rate_key(ip_address("2001:db8::1")) == rate_key(ip_address("2001:db8::ffff:1"))
    assert rate_key(ip_address("2001:db8::1")) != rate_key(ip_address("2001:db8:0:1::1"))
    assert rate_key(ip_address("192.0.2.1")) != rate_key(ip_address("192.0.2.2"))
