"""What those see who watch a test, and what the host sees of the tester."""

import asyncio
import contextlib

import pytest

from posthouse.tester import echo, message
from posthouse.tester.collector import Receipt
from posthouse.tester.event import EventKind
from posthouse.tester.prober import ProberSettings, probe
from posthouse.tester.report import Target
from posthouse.tester.token import Purpose, new_key, tokens_in, verify
from posthouse.tester.verdict import CaseVerdict, HostVerdict
from rude_servers import Manners, World, serving

TESTER = message.Tester("tester.test", "postmaster@tester.test")
PLAIN = frozenset({101, 102, 201, 601})
KEY = new_key()


class Open(Manners):
    def is_let_through(self, path):
        return True


class Collector:
    """Has what the host has relayed, but for the cases that get lost on the way."""

    domain = "collector.test"

    def __init__(self, world: World, lost: frozenset[int] = frozenset()) -> None:
        self.world, self.lost = world, lost

    async def receipts(self, test_id: int) -> tuple[Receipt, ...]:
        found = []
        for path, _ in self.world.relayed:
            for text in tokens_in(path):
                token = verify(KEY, text, 0.0, Purpose.PROBE)
                if getattr(token, "test_id", -1) == test_id and token.case_number not in self.lost:
                    found.append(
                        Receipt(
                            test_id, token.case_number, token.purpose, text, 0.0, "127.0.0.1", "mx.here.test", "", path
                        )
                    )
        return tuple(found)

    async def close(self) -> None:
        """Nothing to do."""


def run(behaviour, lost=None, on_event=lambda _: None, called="", **more):
    async def go():
        async with serving(behaviour) as world:
            collector = Collector(world, frozenset(lost)) if lost is not None else None
            settings = ProberSettings(TESTER, deadline_seconds=20, **({"numbers": PLAIN} | more))
            target = Target("127.0.0.1", world.port, called, domain="here.test")
            report = await probe(target, settings, tokens=KEY, collector=collector, on_event=on_event)
            return report, world

    return asyncio.run(go())


def test_events_tell_each_case_and_end_with_the_verdict():
    events = []
    report, _ = run(Manners, on_event=events.append)
    judged = [event.result.number for event in events if event.kind is EventKind.JUDGED]
    assert sorted(judged) == sorted(PLAIN)
    assert events[-1].kind is EventKind.DONE
    assert events[-1].line == report.words
    assert any(event.line.endswith("-> RCPT TO:<relay-test@example.com>") for event in events)
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_probe_that_came_back_is_relayed_and_one_that_did_not_is_not_delivered():
    report, _ = run(Open, lost={102}, delivery_seconds=1)
    verdicts = {result.number: result.verdict for result in report.results}
    assert verdicts[101] is CaseVerdict.RELAYED
    assert verdicts[102] is CaseVerdict.NOT_DELIVERED
    assert report.verdict is HostVerdict.OPEN
    assert {path.case_number for path in report.paths} == {101, 201}


def test_nothing_that_came_back_is_no_verdict():
    report, _ = run(Open, lost=PLAIN, delivery_seconds=0.5)
    assert report.verdict is HostVerdict.UNKNOWN, report.words
    assert "nothing arrived" in report.words


def test_recipient_that_is_refused_for_its_length_was_not_tried():
    class Strict(Manners):
        def rcpt(self, path):
            local = path.strip("<>").rpartition("@")[0] or path.strip("<>")
            return "501 5.1.3 the local part is too long" if len(local) > 64 else super().rcpt(path)

    numbers = frozenset({101, 201, 207})
    report, _ = run(Strict, lost=(), numbers=numbers, called="a-host-with-a-long-name.here.test")
    verdicts = {result.number: result.verdict for result in report.results}
    assert verdicts == {
        101: CaseVerdict.REFUSED,
        201: CaseVerdict.REFUSED,
        207: CaseVerdict.NOT_TRIED,
    }
    assert "shorter domain" in report.results[-1].words
    assert report.verdict is HostVerdict.CLOSED
    loose, _ = run(Manners, lost=(), numbers=numbers, called="a-host-with-a-long-name.here.test")
    assert {result.verdict for result in loose.results} == {CaseVerdict.REFUSED}


def test_bad_syntax_of_a_long_recipient_with_two_at_signs_is_a_refusal():
    class Strict(Manners):
        def rcpt(self, path):
            return "501 5.1.3 Bad recipient address syntax" if ";" in path or len(path) > 80 else super().rcpt(path)

    report, _ = run(Strict, lost=(), numbers=frozenset({207, 412}), called="a-host-with-a-rather-long-name.here.test")
    assert {result.number: result.verdict for result in report.results} == {
        207: CaseVerdict.NOT_TRIED,
        412: CaseVerdict.REFUSED,
    }


def test_reverse_path_says_who_tests_and_carries_the_token_for_notices():
    seen = []

    class Listens(Manners):
        def mail(self, path):
            seen.append(path)
            return super().mail(path)

    run(Listens, lost=())
    assert any(path.endswith("@collector.test>") and tokens_in(path) for path in seen)
    seen.clear()
    run(Listens)
    assert "<relay-test@tester.test>" in seen


def test_host_with_a_nonce_hears_the_address_that_the_tester_has():
    heard = []

    class Listens(Manners):
        def mail(self, path):
            heard.append(self.hello)
            return super().mail(path)

    key = new_key()
    nonce = echo.new_nonce(key, 1_800_000_000.0)
    run(Listens, numbers=frozenset({101}), nonce=nonce)
    assert heard == [echo.hello_name(nonce, "127.0.0.1", "tester.test")]


@pytest.mark.parametrize("behaviour", [Manners, Open])
def test_test_that_is_called_off_leaves_nothing_behind(behaviour):
    async def go():
        async with serving(behaviour) as world:
            settings = ProberSettings(TESTER, deadline_seconds=20)
            task = asyncio.ensure_future(probe(Target("127.0.0.1", world.port), settings))
            await asyncio.sleep(0.05)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            for _ in range(100):
                if world.at_once == 0:
                    break
                await asyncio.sleep(0.05)
            return world.at_once

    assert asyncio.run(go()) == 0


def test_sessions_never_exceed_what_was_asked_for():
    _, world = run(Manners, numbers=frozenset(), at_once=2)
    assert world.most_at_once <= 2
