"""Delivery to a program: what it is given, and what its end means."""

import ast
import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from posthouse.mail.message import ContentFile
from posthouse.mail.outcome import Deferred, Delivered, Failed, Outcome
from posthouse.smtp.event import DotForm
from posthouse.transports.api import COMMAND_FIELDS, Attempt, Closed
from posthouse.transports.pipe import PipeSettings, PipeTransport
from transport_cases import ListFeed, attempt

SAVE = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read())"
SAVE_ARGUMENTS = "import sys; open(sys.argv[1], 'a').write(repr(sys.argv[2:]) + '\\n')"


def deliver(command: tuple[str, ...], *attempts: Attempt, seconds: float = 20.0) -> list[Outcome]:
    feed = ListFeed(*attempts)
    end = asyncio.run(PipeTransport(PipeSettings(command, seconds)).run(feed))
    assert end == Closed(len(attempts))
    feed.assert_all_reported()
    return [outcome for each in attempts for outcome in feed.of(each)]


def test_a_program_gets_the_message_on_standard_input(tmp_path: Path) -> None:
    body = b"Subject: dots\r\n\r\n..hidden\r\n"
    outcomes = deliver((sys.executable, "-c", SAVE, str(tmp_path / "got")), attempt(body=body, dots=DotForm.STUFFED))
    assert isinstance(outcomes[0], Delivered)
    assert (tmp_path / "got").read_bytes() == (
        b"Return-Path: <sender@example.org>\nDelivered-To: user@example.net\n"
        b"Received: from client.example.org; Tue, 24 Nov 2026 12:00:00 +0000\n"
        b"Subject: dots\n\n.hidden\n"
    )


def test_a_large_message_reaches_a_slow_reader_whole(tmp_path: Path) -> None:
    source = tmp_path / "content"
    source.write_bytes(b"0123456789abcde\r\n" * 200_000)
    large = attempt(file=ContentFile(str(source), 0, source.stat().st_size))
    (outcome,) = deliver((sys.executable, "-c", SAVE, str(tmp_path / "got")), large)
    assert isinstance(outcome, Delivered)
    assert (tmp_path / "got").read_bytes().endswith(b"0123456789abcde\n" * 200_000)


def test_placeholders_are_filled_within_arguments_and_no_shell_sees_them(tmp_path: Path) -> None:
    command = (
        sys.executable, "-c", SAVE_ARGUMENTS, str(tmp_path / "got"),
        "list-{local_part}", "{domain}", "{forward_path}", "{reverse_path}", "$HOME `id`", "{unknown}", "{queue_id}",
    )  # fmt: skip
    deliver(command, attempt("a+b@example.net", reverse_path="x;rm -rf@example.org", queue_id=31))
    assert (tmp_path / "got").read_text() == repr(
        ["list-a+b", "example.net", "a+b@example.net", '"x;rm -rf"@example.org', "$HOME `id`", "{unknown}", "10"]
    ) + "\n"  # fmt: skip


def test_every_field_that_a_configuration_may_name_is_filled(tmp_path: Path) -> None:
    fields = [f"{{{name}}}" for name in COMMAND_FIELDS]
    deliver((sys.executable, "-c", SAVE_ARGUMENTS, str(tmp_path / "got"), *fields), attempt())
    assert not set(fields) & set(ast.literal_eval((tmp_path / "got").read_text()))


def test_what_was_in_the_mailbox_before_is_a_loop_and_reaches_no_program(tmp_path: Path) -> None:
    body = b"delivered-to: <User@example.net>\r\nSubject: round and round\r\n\r\nHello.\r\n"
    (outcome,) = deliver((sys.executable, "-c", SAVE, str(tmp_path / "got")), attempt(body=body))
    assert isinstance(outcome, Failed)
    assert (outcome.status, outcome.reason.slug) == ("5.4.6", "mail-loop")
    assert not (tmp_path / "got").exists()


def test_each_recipient_has_its_own_process(tmp_path: Path) -> None:
    command = (sys.executable, "-c", SAVE_ARGUMENTS, str(tmp_path / "got"), "{local_part}")
    assert len(deliver(command, attempt("a@example.net", "b@example.net"))) == 2
    assert (tmp_path / "got").read_text() == "['a']\n['b']\n"


@pytest.mark.parametrize("local_part", ["-oQ", "a b", "a;b", "../a", "$(id)", "a\u00e9", ".a"])
def test_an_unsafe_local_part_never_reaches_a_program(tmp_path: Path, local_part: str) -> None:
    command = (sys.executable, "-c", SAVE_ARGUMENTS, str(tmp_path / "got"), "{local_part}")
    (outcome,) = deliver(command, attempt(f"{local_part}@example.net"))
    assert isinstance(outcome, Failed)
    assert outcome.status == "5.1.1"
    assert not (tmp_path / "got").exists()


def test_a_reverse_path_is_never_taken_for_an_option(tmp_path: Path) -> None:
    command = (sys.executable, "-c", SAVE_ARGUMENTS, str(tmp_path / "got"), "{reverse_path}")
    (outcome,) = deliver(command, attempt(reverse_path="-X/etc/x@example.org"))
    assert isinstance(outcome, Failed)
    assert outcome.reason.slug == "address-unusable"
    assert not (tmp_path / "got").exists()
    (outcome,) = deliver((*command[:-1], "-f{reverse_path}"), attempt(reverse_path="-X@example.org"))
    assert isinstance(outcome, Delivered)


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (0, Delivered, "2.0.0"), (64, Failed, "5.3.0"), (65, Failed, "5.6.0"), (67, Failed, "5.1.1"), (68, Failed, "5.1.2"),
        (71, Deferred, "4.3.0"), (75, Deferred, "4.3.0"), (77, Failed, "5.7.0"), (78, Failed, "5.3.5"), (1, Failed, "5.3.0"),
    ],
)  # fmt: skip
def test_exit_statuses_mean_what_sysexits_says(status: int, kind: type[Outcome], code: str) -> None:
    (outcome,) = deliver(("/bin/sh", "-c", f"echo no such list; exit {status}"), attempt())
    assert type(outcome) is kind
    assert outcome.status == code
    assert outcome.diagnostic == "no such list"


def test_a_program_killed_by_a_signal_is_tried_again() -> None:
    (outcome,) = deliver(("/bin/sh", "-c", "kill -KILL $$"), attempt())
    assert isinstance(outcome, Deferred)
    assert f"signal {signal.SIGKILL.value}" in outcome.reason.words


def test_a_program_that_is_not_there_is_tried_again() -> None:
    (outcome,) = deliver(("/nonexistent/program",), attempt())
    assert isinstance(outcome, Deferred)
    assert outcome.status == "4.3.5"
    assert "/nonexistent/program" in outcome.reason.words


def test_a_program_that_does_not_read_has_still_answered(tmp_path: Path) -> None:
    source = tmp_path / "content"
    source.write_bytes(b"0123456789abcde\r\n" * 100_000)
    large = attempt(file=ContentFile(str(source), 0, source.stat().st_size))
    (outcome,) = deliver(("/bin/sh", "-c", "exec <&-; exit 67"), large)
    assert isinstance(outcome, Failed)
    assert outcome.status == "5.1.1"


def test_output_is_kept_up_to_a_bound_and_made_printable() -> None:
    (outcome,) = deliver(("/bin/sh", "-c", "printf 'a\\033[31m\\nb'; yes | head -c 1000000; exit 75"), attempt())
    assert outcome.diagnostic.startswith("a?[31m b")
    assert len(outcome.diagnostic) <= 2048


def test_a_program_that_does_not_end_is_killed_with_all_its_group(tmp_path: Path) -> None:
    started = time.monotonic()
    script = f"sleep 1000 & echo $! > {tmp_path}/child; sleep 1000"
    (outcome,) = deliver(("/bin/sh", "-c", script), attempt(), seconds=0.5)
    assert isinstance(outcome, Deferred)
    assert time.monotonic() - started < 10
    assert is_gone(int((tmp_path / "child").read_text()))


def test_a_child_left_behind_does_not_hold_up_the_delivery() -> None:
    started = time.monotonic()
    (outcome,) = deliver(("/bin/sh", "-c", "sleep 30 & exit 0"), attempt())
    assert isinstance(outcome, Delivered)
    assert time.monotonic() - started < 15


def test_cancelling_kills_the_program(tmp_path: Path) -> None:
    async def run() -> None:
        command = ("/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 1000")
        task = asyncio.create_task(PipeTransport(PipeSettings(command)).run(ListFeed(attempt())))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert is_gone(int((tmp_path / "pid").read_text()))


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if b"\nState:\tZ" in Path(f"/proc/{pid}/status").read_bytes():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False
