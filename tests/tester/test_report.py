"""A host of several addresses and ports: one verdict."""

import msgspec
import pytest

from posthouse.tester.report import Document, Reach, Report, judge_places
from posthouse.tester.verdict import HostVerdict

OPEN, CLOSED, UNKNOWN = HostVerdict.OPEN, HostVerdict.CLOSED, HostVerdict.UNKNOWN


def place(verdict: HostVerdict, reach: Reach = Reach.TALKED) -> Report:
    return Report("mx.example.org", "192.0.2.1", 25, verdict, "", (), 0.0, 0.0, reach=reach)


NOBODY = place(UNKNOWN, Reach.NOBODY_LISTENS)
NO_WAY = place(UNKNOWN, Reach.NO_WAY)
FILTERED = place(UNKNOWN, Reach.NOT_REACHED)


@pytest.mark.parametrize(
    ("places", "verdict"),
    [
        ([place(CLOSED), place(OPEN)], OPEN),
        ([place(CLOSED), place(CLOSED)], CLOSED),
        ([place(CLOSED), place(UNKNOWN)], UNKNOWN),
        ([place(CLOSED), NOBODY], CLOSED),
        ([place(CLOSED), NO_WAY], CLOSED),
        ([place(CLOSED), FILTERED], UNKNOWN),
        ([place(OPEN), FILTERED], OPEN),
        ([NOBODY, NO_WAY], UNKNOWN),
        ([], UNKNOWN),
    ],
)
def test_verdict_on_all_places_of_a_host(places, verdict):
    assert judge_places(places) is verdict


def test_document_of_a_later_format_is_still_read():
    document = Document("mx.example.org", CLOSED, "closed", (place(CLOSED),))
    later = msgspec.json.decode(msgspec.json.encode(document))
    later["something_new"] = later["reports"][0]["something_new"] = 1
    assert msgspec.json.decode(msgspec.json.encode(later), type=Document) == document
