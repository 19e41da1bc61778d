"""The log: one event a line, whatever strangers write into it, and never in the way of mail."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from posthouse.observe import log


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "log").open("w") as out:
        yield out
        log.configure("auto", "info", sys.__stderr__)


def _written(stream: TextIO) -> list[bytes]:
    log.flush()
    return Path(stream.name).read_bytes().splitlines()


def test_json_event_is_one_object_with_time_level_and_fields(stream: TextIO) -> None:
    log.configure("json", "info", stream)
    log.info("accepted", queue_id="3k7", size_bytes=12)
    (line,) = _written(stream)
    event = json.loads(line)
    assert (event["event"], event["level"], event["queue_id"], event["size_bytes"]) == ("accepted", "info", "3k7", 12)
    assert event["at"].endswith("Z")
    assert abs(time.time() - _seconds(event["at"])) < 60


def _seconds(at: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(at).timestamp()


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize(
    "evil",
    [
        "a\nerror forged",
        "a\r\nb",
        "\x1b[2J",
        "\x7f",
        "\x9b31m",
        "\u202eevil",
        "\ud8ff",
        'a" b="c',
        "\x00",
        "x\u2028y",
        "x\x85y",
    ],
)
def test_untrusted_text_cannot_forge_a_line_or_drive_a_terminal(stream: TextIO, form: str, evil: str) -> None:
    log.configure(form, "info", stream)
    log.info("refused", hello_name=evil)
    (line,) = _written(stream)
    assert line.decode().isprintable()
    if form == "json":
        assert json.loads(line)["hello_name"] == evil


def test_text_is_readable_and_leaves_out_empty_fields(stream: TextIO) -> None:
    log.configure("text", "info", stream)
    log.info("relayed", queue_id="3k7", login="", diagnostic="250 Ok")
    (line,) = _written(stream)
    assert line.decode().endswith("info    relayed queue_id=3k7 diagnostic='250 Ok'")


def test_level_hides_what_is_below_it(stream: TextIO) -> None:
    log.configure("json", "warning", stream)
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [json.loads(line)["event"] for line in _written(stream)] == ["c", "d"]


def test_wrong_words_are_refused_with_the_right_ones() -> None:
    with pytest.raises(ValueError, match="debug, info, warning or error"):
        log.configure("json", "loud")
    with pytest.raises(ValueError, match="auto, text or json"):
        log.configure("xml", "info")


def test_exception_says_where(stream: TextIO) -> None:
    log.configure("json", "info", stream)
    try:
        raise KeyError("x")
    except KeyError as error:
        log.exception("broken", error, queue_id="3k7")
    event = json.loads(_written(stream)[0])
    assert event["error"] == "KeyError: 'x'"
    assert "test_exception_says_where" in event["where"]


def test_reader_that_stalls_costs_lines_and_never_time() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as out:
        log.configure("json", "info", out)
        before = log.dropped()
        began = time.monotonic()
        for i in range(2 * log.MOST_WAITING + 5_000):  # as many again may be in the writer's hands
            log.info("relayed", number=i)
        assert time.monotonic() - began < 5
        drained = threading.Thread(target=_drain, args=(reading,))
        _until(lambda: log.dropped() > before)
        drained.start()
        _until(lambda: not log._writer._lines)
        log.configure("auto", "info", sys.__stderr__)
    drained.join()


def _drain(reading: int) -> None:
    while os.read(reading, 1 << 16):
        pass
    os.close(reading)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rest_leaves_no_thread_and_no_line_behind_and_the_log_goes_on(stream: TextIO) -> None:
    log.configure("json", "info", stream)
    others = set(threading.enumerate())
    for number in range(2):
        log.info("accepted", number=number)
        assert set(threading.enumerate()) - others
        log.rest()
        assert not set(threading.enumerate()) - others
        assert len(Path(stream.name).read_bytes().splitlines()) == number + 1


def test_line_that_comes_when_the_thread_is_about_to_end_is_written_and_the_log_goes_on() -> None:
    reading, writing = os.pipe()

    def read(lines: int) -> list[str]:
        read = b""
        while read.count(b"\n") < lines:
            assert select.select([reading], [], [], 10)[0], "nothing more was written"
            read += os.read(reading, 65536)
        return [json.loads(line)["event"] for line in read.splitlines()]

    with os.fdopen(writing, "w") as stream:
        log.configure("json", "info", stream)
        log.info("first", pad="y" * 100_000)  # more than a pipe takes: the thread waits with it
        assert select.select([reading], [], [], 10)[0]
        log.info("second")
        resting = threading.Thread(target=log.rest)
        resting.start()
        while not log._writer._is_resting:
            time.sleep(0.001)
        assert read(2) == ["first", "second"]
        resting.join()
        log.info("third")
        assert read(1) == ["third"]
        log.configure("auto", "info", sys.__stderr__)
    os.close(reading)


def test_all_lines_of_an_ending_process_are_written() -> None:
    code = "from posthouse.observe import log\nlog.configure('json')\nfor i in range(1000): log.info('x', i=i)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30)
    assert [json.loads(line)["i"] for line in done.stderr.splitlines()] == list(range(1000))


def test_process_ends_although_nobody_reads_its_log() -> None:
    code = "from posthouse.observe import log\nlog.configure('json')\nfor i in range(9000): log.info('x', i=i)"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        assert process.wait(timeout=20) == 0


def test_lines_of_several_processes_do_not_mix() -> None:
    code = "from posthouse.observe import log\nlog.configure('json')\nfor i in range(2000): log.info('x', i=i, pad='y' * (i % 300))"
    reading, writing = os.pipe()
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=writing) for _ in range(2)]
    os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        assert len([json.loads(line) for line in lines]) == 4000
    assert [one.wait(timeout=20) for one in both] == [0, 0]
