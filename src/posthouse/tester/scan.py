"""Many hosts at once, each of them authorised: a list in, one line a host out.

There is no way to name a network here. A line that names no host, a name that can't be found, a host whose owner has not
consented: each is answered on its own line, and the others go on. Nothing is kept of a host once it has been told, so
that a long list needs no more memory than the hosts that are tested side by side.
"""

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

import msgspec

from posthouse.tester.places import Address, Place, PlaceFault, parse_place
from posthouse.tester.report import Report, Target, judge_places
from posthouse.tester.verdict import HostVerdict

SMTP_PORT = 25


class Skip(enum.StrEnum):
    """Why a line came to no test."""

    NO_HOST = "no-host"
    TWICE = "twice"
    NOT_FOUND = "not-found"
    NO_CONSENT = "no-consent"
    FAULT = "fault"


class Entry(msgspec.Struct, frozen=True):
    """A line that names a host."""

    line: int
    place: Place


class Skipped(msgspec.Struct, frozen=True):
    """A line that came to no test; `words` say why and what to do."""

    line: int
    text: str
    why: Skip
    words: str


class Scanned(msgspec.Struct, frozen=True):
    """A host that was tested: one report for each of its addresses."""

    line: int
    host: str
    verdict: HostVerdict
    reports: tuple[Report, ...]


class Refused(Exception):
    """The host may not be tested; the text says why and what to do."""


Find = Callable[[Place], Awaitable[tuple[Address, ...]]]
"""The addresses of a host. PlaceFault."""

Admit = Callable[[Place, Address], None]
"""Returns when that address may be tested, which counts as a test. Refused."""

Probe = Callable[[Target], Awaitable[Report]]


def read_list(lines: Iterable[str]) -> Iterator[Entry | Skipped]:
    """The hosts of a list: HOST[:PORT] a line, `#` begins a remark. What was named before is not tested twice."""
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip().lstrip("\ufeff")
        if not text:
            continue
        try:
            place = parse_place(text)
        except PlaceFault as fault:
            yield Skipped(number, _shown(text), Skip.NO_HOST, str(fault))
            continue
        slot = place.host, place.port or SMTP_PORT
        if slot in seen:
            yield Skipped(number, _shown(text), Skip.TWICE, "it stands in the list already")
            continue
        seen.add(slot)
        yield Entry(number, place)


def _shown(text: str) -> str:
    """Fit for a terminal: short, and nothing in it moves a cursor."""
    return "".join(one if one.isprintable() else "?" for one in text[:80])


class Scanner:
    """Tests the hosts of a list, `at_once` side by side. What `find`, `admit` and `probe` do is the caller's."""

    def __init__(self, find: Find, admit: Admit, probe: Probe, at_once: int) -> None:
        self._find, self._admit, self._probe = find, admit, probe
        self._at_once = at_once

    async def scan(self, entries: Iterable[Entry | Skipped]) -> AsyncIterator[Scanned | Skipped]:
        """An answer for each entry, as soon as there is one."""
        answers: asyncio.Queue[Scanned | Skipped | None] = asyncio.Queue(maxsize=self._at_once)
        source = iter(entries)
        workers = [asyncio.create_task(self._work(source, answers)) for _ in range(self._at_once)]
        ending = asyncio.create_task(self._end(workers, answers))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
            await ending
        finally:
            for task in (ending, *workers):
                task.cancel()
            await asyncio.gather(ending, *workers, return_exceptions=True)

    async def _end(self, workers: list[asyncio.Task[None]], answers: asyncio.Queue[Scanned | Skipped | None]) -> None:
        try:
            await asyncio.gather(*workers)
        finally:
            await answers.put(None)

    async def _work(self, source: Iterator[Entry | Skipped], answers: asyncio.Queue[Scanned | Skipped | None]) -> None:
        for entry in source:
            await answers.put(entry if isinstance(entry, Skipped) else await self._test(entry))

    async def _test(self, entry: Entry) -> Scanned | Skipped:
        place = entry.place
        try:
            addresses = await self._find(place)
            for address in addresses:
                self._admit(place, address)
        except PlaceFault as fault:
            return Skipped(entry.line, str(place), Skip.NOT_FOUND, str(fault))
        except Refused as refusal:
            return Skipped(entry.line, str(place), Skip.NO_CONSENT, str(refusal))
        except OSError as error:
            return Skipped(entry.line, str(place), Skip.FAULT, f"it could not be tested: {error.strerror or error}")
        port = place.port or SMTP_PORT
        reports = [await self._probe(Target(str(address), port, place.host)) for address in addresses]
        return Scanned(entry.line, place.host, judge_places(reports), tuple(reports))
