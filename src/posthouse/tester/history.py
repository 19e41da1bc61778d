"""Old results: one file a report below the data directory, and what has changed since the last one.

A result is kept whole but for its dialogues, and only the newest KEPT_RESULTS of a place. Nothing here may keep a test from
telling its result: what can't be kept is a HistoryFault, in words.
"""

import hashlib
import re
import time
from pathlib import Path

import msgspec

from posthouse.tester.report import CaseResult, Report, from_json, to_json
from posthouse.tester.verdict import CASE_WORDS

HISTORY_DIRECTORY = Path("tester") / "results"
"""Where they are, below the data directory."""

KEPT_RESULTS = 100


class HistoryFault(Exception):
    """A result could not be kept or read; one sentence."""


class Change(msgspec.Struct, frozen=True):
    """What is different: `what` is "verdict", "software", "tls" or "case N"; before and now, "" where there was nothing."""

    what: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.what}: {self.before or 'nothing'} -> {self.now or 'nothing'}"


def keep(data_dir: Path, report: Report) -> None:
    """Keeps the result and forgets the oldest beyond KEPT_RESULTS. HistoryFault."""
    directory = _directory(data_dir, report.address, report.port)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(report.started_at))}-{report.test_id:010x}.json"
    own = directory / f".{name}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        own.write_bytes(to_json(msgspec.structs.replace(report, transcripts=())))
        own.replace(directory / name)
        for old in sorted(directory.glob("[0-9]*.json"))[:-KEPT_RESULTS]:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise HistoryFault(f"the result can't be kept in {directory}: {error.strerror}") from error


def last(data_dir: Path, address: str, port: int) -> Report | None:
    """The newest result of that place; None when there is none. HistoryFault when it can't be read."""
    directory = _directory(data_dir, address, port)
    try:
        found = sorted(directory.glob("[0-9]*.json"))
        return from_json(found[-1].read_bytes()) if found else None
    except (OSError, msgspec.DecodeError) as error:
        raise HistoryFault(f"the last result in {directory} can't be read: {error}") from error


def changes(before: Report, now: Report) -> tuple[Change, ...]:
    """What has changed; a case that only one of them has said is left out."""
    found = [Change("verdict", before.verdict, now.verdict)] if before.verdict is not now.verdict else []
    if before.software != now.software:
        found.append(Change("software", before.software, now.software))
    if before.tls.state != now.tls.state or before.tls.subject != now.tls.subject:
        found.append(Change("tls", _tls(before), _tls(now)))
    old = {result.number: result for result in before.results}
    for result in now.results:
        then = old.get(result.number)
        if then is not None and then.verdict is not result.verdict:
            found.append(Change(f"case {result.number}, {result.name}", _case(then), _case(result)))
    return tuple(found)


def _case(result: CaseResult) -> str:
    return f"{CASE_WORDS[result.verdict]} ({result.reply})" if result.reply else CASE_WORDS[result.verdict]


def _tls(report: Report) -> str:
    return f"{report.tls.state} {report.tls.subject}".strip()


def _directory(data_dir: Path, address: str, port: int) -> Path:
    """Named for people; an odd address (a zone id) can't lead out of it."""
    place = f"{address}_{port}"
    if not re.fullmatch(r"[0-9a-fA-F.:_]+", place):
        place = hashlib.sha256(place.encode()).hexdigest()[:32]
    return data_dir / HISTORY_DIRECTORY / place
