"""Maildir delivery: what is written, where, and what is never written."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from posthouse.mail.message import ContentFile
from posthouse.mail.outcome import Deferred, Delivered, Failed, Outcome
from posthouse.smtp.event import DotForm
from posthouse.transports import maildir
from posthouse.transports.api import Attempt, Closed
from posthouse.transports.maildir import MaildirSettings, MaildirTransport
from transport_cases import ListFeed, attempt


def deliver(path: Path | str, *attempts: Attempt) -> list[Outcome]:
    feed = ListFeed(*attempts)
    end = asyncio.run(MaildirTransport(MaildirSettings(str(path), "mx.example.net")).run(feed))
    assert end == Closed(len(attempts))
    feed.assert_all_reported()
    return [outcome for each in attempts for outcome in feed.of(each)]


def stored(path: Path) -> list[bytes]:
    assert list((path / "tmp").iterdir()) == []
    return [file.read_bytes() for file in sorted((path / "new").iterdir())]


def test_a_message_is_stored_as_readers_expect_it(tmp_path: Path) -> None:
    box = tmp_path / "box"
    body = b"Subject: dots\r\n\r\n..hidden\r\n...\r\nend\r\n"
    (outcome,) = deliver(box, attempt("user@example.net", body=body, dots=DotForm.STUFFED))
    assert isinstance(outcome, Delivered)
    assert outcome.status == "2.0.0"
    (message,) = stored(box)
    assert message == (
        b"Return-Path: <sender@example.org>\nDelivered-To: user@example.net\n"
        b"Received: from client.example.org; Tue, 24 Nov 2026 12:00:00 +0000\n"
        b"Subject: dots\n\n.hidden\n..\nend\n"
    )
    (file,) = (box / "new").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert ".mx.example.net" in file.name


def test_a_notification_has_an_empty_return_path(tmp_path: Path) -> None:
    deliver(tmp_path / "box", attempt(reverse_path=""))
    assert stored(tmp_path / "box")[0].startswith(b"Return-Path: <>\n")


def test_a_large_content_comes_from_its_file_whole(tmp_path: Path) -> None:
    body = b"Subject: large\r\n\r\n" + b"x" * 77 + b"\r\n" * 300_001 + b"..last\r\n"
    source = tmp_path / "content"
    source.write_bytes(b"other" + body)
    large = attempt(dots=DotForm.STUFFED, file=ContentFile(str(source), 5, len(body)))
    deliver(tmp_path / "box", large)
    (message,) = stored(tmp_path / "box")
    assert message.endswith(b"x" * 77 + b"\n" * 300_001 + b".last\n")


def test_what_was_in_the_mailbox_before_is_a_loop_and_in_another_is_none(tmp_path: Path) -> None:
    body = b"Received: x\r\nDelivered-To: ann@example.net\r\n\r\nDelivered-To: bob@example.net\r\n"
    outcomes = deliver(tmp_path / "{local_part}", attempt("ann@example.net", "bob@example.net", body=body))
    assert [type(outcome) for outcome in outcomes] == [Failed, Delivered]
    assert (outcomes[0].status, outcomes[0].reason.slug) == ("5.4.6", "mail-loop")
    assert stored(tmp_path / "ann") == []
    assert len(stored(tmp_path / "bob")) == 1


def test_a_content_cut_short_is_deferred_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "content"
    source.write_bytes(b"short")
    (outcome,) = deliver(tmp_path / "box", attempt(file=ContentFile(str(source), 0, 50)))
    assert isinstance(outcome, Deferred)
    assert outcome.reason.slug == "content-damaged"
    assert stored(tmp_path / "box") == []


def test_each_recipient_gets_a_copy_in_a_mailbox_of_that_name(tmp_path: Path) -> None:
    outcomes = deliver(tmp_path / "mail" / "{local_part}" / "Maildir", attempt("ann@example.net", "Bob+x@example.net"))
    assert [type(outcome) for outcome in outcomes] == [Delivered, Delivered]
    assert b"Delivered-To: ann@example.net" in stored(tmp_path / "mail" / "ann" / "Maildir")[0]
    assert b"Delivered-To: Bob+x@example.net" in stored(tmp_path / "mail" / "bob+x" / "Maildir")[0]
    assert (tmp_path / "mail" / "ann").stat().st_mode & 0o777 == 0o700


def test_a_mailbox_that_is_there_keeps_its_spelling(tmp_path: Path) -> None:
    (tmp_path / "Bob").mkdir()
    deliver(tmp_path / "{local_part}", attempt("Bob@example.net"))
    assert len(stored(tmp_path / "Bob")) == 1


@pytest.mark.parametrize(
    "local_part",
    ["..", "../x", ".hidden", "a/b", "-rf", "a b", "a%b", "/etc/passwd", "a\u00e9", "a{local_part}", "+x"],
)
def test_a_local_part_never_leads_out_of_the_directory(tmp_path: Path, local_part: str) -> None:
    (outcome,) = deliver(tmp_path / "mail" / "{local_part}", attempt(f"{local_part}@example.net"))
    assert isinstance(outcome, Failed)
    assert outcome.status == "5.1.1"
    assert outcome.reason.slug == "mailbox-unavailable"
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_path_takes_any_local_part(tmp_path: Path) -> None:
    (outcome,) = deliver(tmp_path / "box", attempt("../x@example.net"))
    assert isinstance(outcome, Delivered)
    assert len(stored(tmp_path / "box")) == 1


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, "4.3.1"), (errno.EDQUOT, "4.2.2"), (errno.EIO, "4.3.0")])
def test_a_disk_in_trouble_defers(tmp_path: Path, number: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(maildir.os, "fsync", fail)
    box = tmp_path / "box"
    for part in ("tmp", "new", "cur"):
        (box / part).mkdir(parents=True)
    (outcome,) = deliver(box, attempt())
    assert isinstance(outcome, Deferred)
    assert outcome.status == status
    assert str(box) in outcome.reason.words
    assert stored(box) == []


def test_a_message_whose_name_cannot_be_made_durable_is_not_left_to_be_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = tmp_path / "box"
    for part in ("tmp", "new", "cur"):
        (box / part).mkdir(parents=True)
    real = maildir._sync_directory

    def fail(directory: Path) -> None:
        if directory.name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(directory)

    monkeypatch.setattr(maildir, "_sync_directory", fail)
    (outcome,) = deliver(box, attempt())
    assert isinstance(outcome, Deferred)
    assert stored(box) == []
    assert list((box / "tmp").iterdir()) == []


def test_a_file_where_the_maildir_should_be_defers(tmp_path: Path) -> None:
    (tmp_path / "box").write_text("mbox")
    (outcome,) = deliver(tmp_path / "box", attempt())
    assert isinstance(outcome, Deferred)
    assert outcome.status == "4.3.0"


def test_a_delivery_under_way_is_reported_when_it_is_cancelled(tmp_path: Path) -> None:
    async def run() -> ListFeed:
        feed = ListFeed(attempt(), attempt())
        task = asyncio.create_task(MaildirTransport(MaildirSettings(str(tmp_path / "box"))).run(feed))
        while not feed.taken:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return feed

    feed = asyncio.run(run())
    feed.assert_all_reported()
    assert len(stored(tmp_path / "box")) == len(feed.taken)
