"""Who is tested when: one test of an address at a time, a few at once, the rest in a queue that everybody sees.

submit -> (joins a test of the same address under way) | QUEUED -> RUNNING -> DONE | FAILED
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

from posthouse.observe import log, metrics
from posthouse.web.document import Place, RelayTest, State
from posthouse.web.event import EventKind
from posthouse.web.job import Job, Subject
from posthouse.web.problem import Problem, too_often
from posthouse.web.rate import Rate, rate_key
from posthouse.web.settings import WebSettings
from posthouse.web.store import ResultStore, StoreFault

MOST_REMEMBERED = 50
"""Tests that are over and still in memory with their dialogue, for those who come late to watch."""

Carry = Callable[[Job], Awaitable[None]]
"""Carries out a test: tells the job's events, fills its ports and reports. NotCarriedOut when nothing could be found out."""


class NotCarriedOut(Exception):
    """A test could not be carried out; the text is one sentence."""


class Desk:
    """All tests of the service that are not yet forgotten. Used from one event loop."""

    def __init__(self, settings: WebSettings, carry: Carry, store: ResultStore | None) -> None:
        self._settings = settings
        self._carry = carry
        self._store = store
        self._rate = Rate(settings.per_address, settings.in_all)
        self._jobs: dict[str, Job] = {}
        self._by_address: dict[str, Job] = {}
        self._over: deque[str] = deque()
        self._waiting: deque[Job] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = False
        metrics.web_tests_running.read = lambda: len(self._running)
        metrics.web_tests_waiting.read = lambda: len(self._waiting)

    def renew(self, settings: WebSettings, carry: Carry) -> None:
        """Other settings, and another way to carry tests out, from the next test on; rates begin anew if they change."""
        if (settings.per_address, settings.in_all) != (self._settings.per_address, self._settings.in_all):
            self._rate = Rate(settings.per_address, settings.in_all)
        self._settings, self._carry = settings, carry

    @property
    def counts(self) -> tuple[int, int]:
        """How many are under way, and how many wait."""
        return len(self._running), len(self._waiting)

    def submit(self, subject: Subject, proved: Job | None = None) -> tuple[Job, bool]:
        """A test of that subject, to be carried out: a new one (True), or the one under way. Problem.

        `proved` is a test that waited for the proof that has just been seen: it goes on under its own id.
        """
        under_way = self._by_address.get(subject.address)
        if under_way is not None:
            if subject.nonce and subject.nonce != under_way.subject.nonce:
                raise Problem(
                    409,
                    "another-nonce",
                    "Another test is under way",
                    f"A test of {subject.address} is under way without your nonce; ask again when it is over.",
                    30,
                )
            return under_way, False
        self._check(subject)
        self._rate.count(rate_key(ip_address(subject.address)), time.monotonic())
        job = proved or Job(subject, time.time())
        job.state = State.QUEUED
        self._jobs[job.id] = job
        self._by_address[subject.address] = job
        self._waiting.append(job)
        self._start_more()
        return job, True

    def _check(self, subject: Subject) -> None:
        if self._stopping:
            raise Problem(503, "stopping", "Stopping", "The service is stopping; try again in a minute.", 60)
        seconds = self._rate.wait_seconds(rate_key(ip_address(subject.address)), time.monotonic())
        if seconds:
            raise too_often(
                f"{subject.address} has been tested often enough for now, or all tests together have", seconds
            )
        if len(self._waiting) >= self._settings.queue:
            words = f"{len(self._waiting)} tests are waiting already; try again in a few minutes."
            raise Problem(503, "queue-full", "Too many are waiting", words, 300)

    def job(self, test_id: str) -> Job | None:
        """The test of that id, if it is in memory."""
        return self._jobs.get(test_id)

    async def document(self, test_id: str) -> RelayTest | None:
        """The test of that id, in memory or kept; None when there is none (any more)."""
        job = self._jobs.get(test_id)
        if job is not None:
            return job.document
        if self._store is None:
            return None
        try:
            return await asyncio.to_thread(self._store.find, test_id, time.time())
        except StoreFault as fault:
            log.error("web-result-lost", test=test_id, words=str(fault))
            return None

    async def stop(self, seconds: float) -> None:
        """No new tests; those under way have `seconds` to end, then they and those that wait fail in words."""
        self._stopping = True
        for job in list(self._waiting):
            self._fail(job, "the service is stopping; ask again in a minute")
        self._waiting.clear()
        if self._running:
            _done, late = await asyncio.wait(self._running, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _start_more(self) -> None:
        while self._waiting and len(self._running) < self._settings.at_once:
            job = self._waiting.popleft()
            job.state, job.started_at, job.place = State.RUNNING, time.time(), None
            task = asyncio.create_task(self._run(job))
            self._running.add(task)
            task.add_done_callback(self._ended)
        for number, job in enumerate(self._waiting, 1):
            place = Place(number, len(self._waiting), len(self._running))
            if job.place is None or job.place.place != number:
                job.place = place
                job.tell(EventKind.QUEUED, place=place)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not self._stopping:
            self._start_more()

    async def _run(self, job: Job) -> None:
        log.info("web-test-begins", test=job.id, address=job.subject.address, by_calling=job.subject.by_calling)
        try:
            await self._carry(job)
        except NotCarriedOut as fault:
            self._fail(job, str(fault))
        except asyncio.CancelledError:
            self._fail(job, "the service was stopped before the test was over; ask again in a minute")
            raise
        except Exception as error:  # the rim: a fault of ours in one test must not end the others, and is told
            log.exception("web-test-failed", error, test=job.id)
            self._fail(job, "a fault of this service's own ended the test; it has been logged")
        else:
            await self._finish(job)

    async def _finish(self, job: Job) -> None:
        now = time.time()
        job.state, job.ended_at, job.expires_at = State.DONE, now, now + self._settings.keep
        document = job.document
        job.tell(EventKind.DONE, verdict=document.verdict, words=document.words)
        metrics.web_tests.inc(str(document.verdict))
        log.info("web-test-ends", test=job.id, address=job.subject.address, verdict=str(document.verdict))
        self._forget_oldest(job)
        if self._store is not None:
            try:
                await asyncio.to_thread(self._store.keep, document, now)
            except StoreFault as fault:
                log.error("web-result-lost", test=job.id, words=str(fault))

    def _fail(self, job: Job, words: str) -> None:
        job.state, job.ended_at, job.words = State.FAILED, time.time(), words
        job.tell(EventKind.FAILED, words=words)
        metrics.web_tests.inc("failed")
        log.warning("web-test-fails", test=job.id, address=job.subject.address, words=words)
        self._forget_oldest(job)

    def _forget_oldest(self, job: Job) -> None:
        if self._by_address.get(job.subject.address) is job:
            del self._by_address[job.subject.address]
        self._over.append(job.id)
        while len(self._over) > MOST_REMEMBERED:
            self._jobs.pop(self._over.popleft(), None)
