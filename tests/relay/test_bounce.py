"""Notices on their way into the queue: `done` only when all that are owed are durable."""

import asyncio
from collections.abc import Callable
from pathlib import Path as FilePath

import pytest

from posthouse.mail.dsn import Action
from posthouse.mail.dsn_reader import ReadReport, parse_report
from posthouse.mail.envelope import Envelope, Origin, Recipient
from posthouse.mail.message import Content, ContentFile, Message
from posthouse.mail.outcome import Deferred, Failed, Outcome, Relayed
from posthouse.mail.reason import Reason, Slug
from posthouse.policy.decide import restore_grant
from posthouse.policy.rules import compile_rules
from posthouse.relay.bounce import Bouncer
from posthouse.relay.intake import Accepted, Draft
from posthouse.smtp.address import NULL_PATH, Path
from posthouse.smtp.event import BodyType, DotForm, Notify, Ret
from posthouse.spool.api import SpoolBroken, SpoolError, SpoolFull

NOW = 1_795_559_554_321
ANN = Path(b"ann", "example.org")
GRANT = restore_grant("trusted-network", "trusted-network", "a test")
REFUSED = Failed("5.1.1", Reason(Slug.NEXT_HOP_REFUSED, "Refused."), "mx.example.net [192.0.2.1]:25", "550 No")
LATE = Deferred("4.4.1", Reason(Slug.NEXT_HOP_UNREACHABLE, "Not reached."))
TOOK = Relayed("2.0.0", Reason(Slug.RELAYED, "Taken."))
OCTETS = b"Subject: hello\r\n\r\nbody\r\n"
RULES = compile_rules(
    local_domains=["example.org"],
    relay_domains=[],
    trusted_networks=["127.0.0.1"],
    aliases=[("list", ["x@example.net"])],
)


class StandInIntake:
    """Takes notices in; what comes of them the test decides."""

    def __init__(self) -> None:
        self.full: SpoolError | None = None
        self.error: SpoolError | None = None
        self.waits = False
        self.taken: list[tuple[Draft, bytes, Content]] = []
        self.waiting: list[Callable[[], None]] = []

    def room_for(self, size_bytes: int) -> SpoolError | None:
        return self.full

    def new_queue_id(self) -> int:
        return 77

    def take_in(self, queue_id: int, draft: Draft, trace: bytes, content: Content, accepted: Accepted) -> None:
        self.taken.append((draft, trace, content))
        envelope = Envelope(queue_id, draft.reverse_path, draft.recipients, draft.origin, NOW)
        error = self.error
        if self.waits:
            self.waiting.append(lambda: accepted(envelope, error))
        else:
            accepted(envelope, error)

    def report(self, number: int = 0) -> ReadReport:
        found = parse_report(b"".join(self.taken[number][2].pieces))
        assert found is not None
        return found


def bouncer_over(intake: StandInIntake) -> Bouncer:
    return Bouncer("mx.example.org", intake, lambda: RULES, lambda: NOW, try_again_seconds=0.01)  # type: ignore[arg-type]


def envelope_of(*notify: Notify, reverse_path: Path = ANN, ret: Ret = Ret.DEFAULT) -> Envelope:
    recipients = tuple(Recipient(Path(b"bob%d" % i, "example.net"), GRANT, each) for i, each in enumerate(notify))
    return Envelope(5, reverse_path, recipients, Origin("192.0.2.7", "ESMTP"), NOW - 1000, ret=ret)


MESSAGE = Message(b"Received: by mx\r\n", Content(len(OCTETS), DotForm.NONE, False, (OCTETS,)))


class Done:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


def test_a_failure_is_told_from_the_null_reverse_path_and_done_waits_for_the_disk() -> None:
    intake, done = StandInIntake(), Done()
    intake.waits = True
    bouncer_over(intake).send(envelope_of(Notify.DEFAULT), MESSAGE, [(0, REFUSED)], 0, done)
    (draft, trace, content) = intake.taken[0]
    assert draft.reverse_path == NULL_PATH
    assert [each.forward_path for each in draft.recipients] == [ANN]
    assert draft.recipients[0].grant.kind == "own-notification"
    assert draft.parameters.body is BodyType.SEVEN_BIT
    assert trace.startswith(b"Received: by mx.example.org (Posthouse)")
    assert content.size_bytes == len(b"".join(content.pieces))
    assert intake.report().recipients[0].final_recipient == "rfc822;bob0@example.net"
    assert intake.report().original == b"Received: by mx\r\nSubject: hello\r\n"
    assert done.calls == 0
    intake.waiting[0]()
    assert done.calls == 1


def test_several_reports_are_all_durable_before_done() -> None:
    intake, done = StandInIntake(), Done()
    intake.waits = True
    results: list[tuple[int, Outcome]] = [(0, LATE), (1, REFUSED), (2, TOOK)]
    envelope = envelope_of(Notify.DEFAULT, Notify.DEFAULT, Notify.SUCCESS)
    bouncer_over(intake).send(envelope, MESSAGE, results, NOW + 1, done)
    assert [intake.report(i).recipients[0].action for i in range(3)] == [Action.FAILED, Action.DELAYED, Action.RELAYED]
    for i, accepted in enumerate(intake.waiting):
        assert done.calls == 0, i
        accepted()
    assert done.calls == 1


@pytest.mark.parametrize(
    ("reverse_path", "notify"), [(NULL_PATH, Notify.DEFAULT), (ANN, Notify.NEVER), (ANN, Notify.SUCCESS)]
)
def test_nothing_is_sent_where_nothing_is_owed(reverse_path: Path, notify: Notify) -> None:
    intake, done = StandInIntake(), Done()
    bouncer_over(intake).send(envelope_of(notify, reverse_path=reverse_path), MESSAGE, [(0, REFUSED)], 0, done)
    assert not intake.taken
    assert done.calls == 1


def test_ret_full_returns_a_content_that_lies_in_a_file(tmp_path: FilePath) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"before" + OCTETS + b"behind")
    file = ContentFile(str(path), 6, len(OCTETS))
    message = Message(b"", Content(len(OCTETS), DotForm.NONE, False, file=file))

    async def scenario(ret: Ret) -> bytes:
        intake = StandInIntake()
        finished = asyncio.Event()
        bouncer_over(intake).send(envelope_of(Notify.DEFAULT, ret=ret), message, [(0, REFUSED)], 0, finished.set)
        await asyncio.wait_for(finished.wait(), 5)
        return intake.report().original

    assert asyncio.run(scenario(Ret.FULL)) == OCTETS
    assert asyncio.run(scenario(Ret.HEADERS)) == b"Subject: hello\r\n"
    path.unlink()
    assert asyncio.run(scenario(Ret.FULL)) == b""  # told all the same


def test_a_notice_without_room_waits_and_is_stored_later() -> None:
    async def scenario() -> None:
        intake = StandInIntake()
        finished = asyncio.Event()
        intake.full = SpoolFull("no space left")
        bouncer_over(intake).send(envelope_of(Notify.DEFAULT), MESSAGE, [(0, REFUSED)], 0, finished.set)
        await asyncio.sleep(0.03)
        assert not intake.taken
        intake.full, intake.error = None, SpoolFull("no space left")
        while not intake.taken:
            await asyncio.sleep(0.001)
        assert not finished.is_set()
        intake.error = None
        await asyncio.wait_for(finished.wait(), 5)

    asyncio.run(scenario())


def test_a_broken_spool_is_not_tried_again() -> None:
    async def scenario() -> None:
        intake, done = StandInIntake(), Done()
        intake.error = SpoolBroken("sync failed")
        bouncer = bouncer_over(intake)
        bouncer.send(envelope_of(Notify.DEFAULT), MESSAGE, [(0, REFUSED)], 0, done)
        await asyncio.sleep(0.03)
        assert len(intake.taken) == 1
        assert done.calls == 0
        bouncer.stop()

    asyncio.run(scenario())


def test_a_routing_trick_in_the_reverse_path_gets_no_notice() -> None:
    intake, done = StandInIntake(), Done()
    trick = Path(b"victim%example.net", "example.org")
    bouncer_over(intake).send(envelope_of(Notify.DEFAULT, reverse_path=trick), MESSAGE, [(0, REFUSED)], 0, done)
    assert not intake.taken
    assert done.calls == 1


def test_a_notice_to_an_alias_goes_where_the_alias_leads() -> None:
    intake, done = StandInIntake(), Done()
    alias = Path(b"list", "example.org")
    bouncer_over(intake).send(envelope_of(Notify.DEFAULT, reverse_path=alias), MESSAGE, [(0, REFUSED)], 0, done)
    assert [each.forward_path for each in intake.taken[0][0].recipients] == [Path(b"x", "example.net")]
    assert done.calls == 1
