"""Lists of hosts: whatever a line holds, the others go on."""

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.tester.places import PlaceFault
from posthouse.tester.report import Report, Target
from posthouse.tester.scan import Entry, Refused, Scanned, Scanner, Skip, Skipped, read_list
from posthouse.tester.verdict import HostVerdict

LIST = """\
# our hosts
mx1.example.org
mx2.example.org:587   # submission

192.0.2.0/24
mx1.example.org:25
not a host
nowhere.example.org
8.8.8.8
mx3.example.org
"""


def report(target: Target, verdict: HostVerdict = HostVerdict.CLOSED) -> Report:
    return Report(target.name, target.address, target.port, verdict, "", (), 0.0, 0.0)


def scan(lines, at_once=3, probe=None):
    async def find(place):
        if place.host.startswith("nowhere"):
            raise PlaceFault("nowhere.example.org can't be found")
        return ("127.0.0.1",)

    def admit(place, address):
        if place.host == "8.8.8.8":
            raise Refused("nobody has proved control over it")

    async def test(target):
        await asyncio.sleep(random.random() / 1000)
        return report(target)

    async def go():
        return [answer async for answer in Scanner(find, admit, probe or test, at_once).scan(read_list(lines))]

    return asyncio.run(go())


def test_each_line_gets_its_answer_and_the_others_go_on():
    answers = {answer.line: answer for answer in scan(LIST.splitlines())}
    assert {line: answer.why for line, answer in answers.items() if isinstance(answer, Skipped)} == {
        5: Skip.NO_HOST,
        6: Skip.TWICE,
        7: Skip.NO_HOST,
        8: Skip.NOT_FOUND,
        9: Skip.NO_CONSENT,
    }
    assert {answer.host for answer in answers.values() if isinstance(answer, Scanned)} == {
        "mx1.example.org",
        "mx2.example.org",
        "mx3.example.org",
    }
    assert answers[3].reports[0].port == 587


def test_no_more_hosts_are_tested_at_once_than_asked_for():
    running = most = 0

    async def probe(target):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return report(target)

    answers = scan([f"h{n}.example.org" for n in range(50)], at_once=7, probe=probe)
    assert len(answers) == 50
    assert most <= 7


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=20))
def test_any_list_is_read_to_its_end(lines):
    for entry in read_list(lines):
        assert isinstance(entry, Entry | Skipped)
        if isinstance(entry, Skipped):
            assert entry.text.isprintable()
