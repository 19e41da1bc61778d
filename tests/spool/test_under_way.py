"""The journal of what was being tried when a worker died."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from posthouse.spool import under_way
from posthouse.spool.api import SpoolBroken, SpoolError
from posthouse.spool.under_way import BLAME_MS, MOST_DEATHS, NAME, UnderWay

ONE, TWO = (4711, 0), (4712, 3)


def die_with(directory: Path, *keys: tuple[int, int]) -> UnderWay:
    """A life that ends in the midst of these attempts; the next one."""
    life = UnderWay(directory)
    for key in keys:
        life.begins(key)
    return UnderWay(directory)


def test_in_normal_life_nothing_is_noted_of_any_message(tmp_path: Path) -> None:
    life = UnderWay(tmp_path)
    assert not life.is_needed
    octets = (tmp_path / NAME).read_bytes()
    life.begins(ONE)
    life.ended(ONE)
    assert (tmp_path / NAME).read_bytes() == octets
    life.close()
    assert not UnderWay(tmp_path).is_needed


def test_what_was_under_way_at_a_death_is_suspect_until_an_attempt_ends(tmp_path: Path) -> None:
    UnderWay(tmp_path)
    life = die_with(tmp_path, ONE)
    assert life.is_needed
    assert life.is_suspect(ONE)
    assert not life.is_suspect(TWO)
    life.begins(ONE)
    life.ended(ONE)
    assert not life.is_suspect(ONE)
    assert not UnderWay(tmp_path).is_suspect(ONE)


def test_who_outlives_the_worker_too_often_is_condemned_once_and_again_after_one_more_death(tmp_path: Path) -> None:
    UnderWay(tmp_path)
    for _ in range(MOST_DEATHS):
        assert die_with(tmp_path, ONE, TWO).condemned() == []
    life = UnderWay(tmp_path)
    life.begins(TWO)
    life.ended(TWO)
    life.begins(ONE)
    life = UnderWay(tmp_path)
    assert life.condemned() == [(ONE, MOST_DEATHS + 1)]
    life.set_aside(ONE)
    assert life.condemned() == []
    life.close()
    life = UnderWay(tmp_path)  # a clean restart: it stays aside, and is still watched when it is released
    assert life.condemned() == []
    assert life.is_needed
    life.begins(ONE)
    assert UnderWay(tmp_path).condemned() == [(ONE, MOST_DEATHS + 2)]


def test_a_clean_end_blames_nobody_though_attempts_were_dropped(tmp_path: Path) -> None:
    UnderWay(tmp_path)
    life = UnderWay(tmp_path)
    life.begins(ONE)
    life.close()
    assert not UnderWay(tmp_path).is_needed


def test_what_had_hung_for_long_when_the_last_one_was_begun_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    UnderWay(tmp_path)
    life = UnderWay(tmp_path)
    now = under_way._now_ms()
    life.begins(ONE)
    monkeypatch.setattr(under_way, "_now_ms", lambda: now + BLAME_MS + 1000)
    life.begins(TWO)
    life = UnderWay(tmp_path)
    assert not life.is_suspect(ONE)
    assert life.is_suspect(TWO)


def test_a_power_cut_is_blamed_on_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    UnderWay(tmp_path)
    UnderWay(tmp_path).begins(ONE)
    monkeypatch.setattr(under_way, "_boot", lambda: "another")
    life = UnderWay(tmp_path)
    assert not life.is_suspect(ONE)
    assert not life.is_needed


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_or_foreign_journal_stops_no_start(tmp_path: Path, cut: int) -> None:
    UnderWay(tmp_path)
    life = die_with(tmp_path, ONE)
    life.begins(TWO)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-cut] + b"\xff\x00 nonsense\n+ x y z\n- 1\nsuspect 1 2")
    assert UnderWay(tmp_path).condemned() == []


def test_a_message_that_has_left_the_queue_is_forgotten(tmp_path: Path) -> None:
    UnderWay(tmp_path)
    for _ in range(MOST_DEATHS + 1):
        die_with(tmp_path, ONE)
    life = UnderWay(tmp_path)
    assert [key for key, _ in life.condemned()] == [ONE]
    life.forget(ONE)
    assert life.condemned() == []
    life.close()
    assert not UnderWay(tmp_path).is_needed


def fail_with(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_full_disk_stops_neither_start_nor_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    UnderWay(tmp_path)
    life = UnderWay(tmp_path)
    monkeypatch.setattr(under_way, "_write", fail_with(errno.ENOSPC))
    life.begins(ONE)
    life.ended(ONE)
    UnderWay(tmp_path).begins(ONE)


def test_a_failed_sync_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[SpoolError] = []
    UnderWay(tmp_path)
    life = UnderWay(tmp_path, told.append)
    monkeypatch.setattr(os, "fdatasync", fail_with(errno.ENOSPC))
    with pytest.raises(SpoolBroken):
        life.begins(ONE)
    assert isinstance(told[0], SpoolBroken)
