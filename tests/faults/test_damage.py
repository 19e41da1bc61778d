"""Queues with flipped bits, lost pages, cut, swapped and missing files: the rest is delivered, nothing altered, all of it told.

400 by default; 10,000 by `tests/faults/long.py --damages 10000`.
"""

import os

import pytest

from fault_damage import damage_often
from posthouse.spool import content, reader

DAMAGES = int(os.environ.get("POSTHOUSE_DAMAGES", "400"))

pytestmark = pytest.mark.slow


def test_no_damage_crashes_alters_or_hides_a_message() -> None:
    found = damage_often(DAMAGES)
    print(found)
    assert found.messages_kept > 10 * DAMAGES
    assert not found.problems, found.problems[:10]


def test_control_a_queue_without_checksums_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_check_seal", lambda *_: None)
    monkeypatch.setattr(reader, "checked", lambda octets, *_: octets)
    monkeypatch.setattr(content.SharedFiles, "read", _unchecked)
    found = damage_often(300, seed=1)
    assert any("altered" in problem for problem in found.problems), "the programme measures nothing"


def _unchecked(files: content.SharedFiles, file: str, offset: int, length: int) -> bytes:
    return (files.directory / file).read_bytes()[offset + 8 : offset + 8 + length]
