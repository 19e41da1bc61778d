"""What the handlers share: settings, the desk, the caller's address, who may watch how much."""

import time
from collections import Counter
from collections.abc import AsyncIterator
from ipaddress import ip_address

from starlette.requests import Request

from posthouse.policy.networks import Address, NetworkSet, normalise_address
from posthouse.tester.echo import is_nonce
from posthouse.web.caller import caller_address, proven_address
from posthouse.web.control import Control
from posthouse.web.desk import Desk
from posthouse.web.document import RelayTest, State
from posthouse.web.job import Job, Subject
from posthouse.web.problem import Problem, not_found, too_often, unreadable
from posthouse.web.rate import Rate, rate_key
from posthouse.web.settings import WebSettings

PROOFS_PER_HOUR = 60
"""Requests to show control, and looks for proofs, of one client."""

LETTERS_PER_HOUR = 5
"""Mails to postmasters that one client may have sent; ten times that in all. Hosts have a limit of their own (tester.proving)."""

STREAMS_PER_CLIENT = 20
STREAMS_IN_ALL = 1000
MOST_UNPROVED = 2000


class Service:
    """One running service. `control` None: only the caller's own address can be tested."""

    def __init__(self, settings: WebSettings, desk: Desk, control: Control | None = None) -> None:
        self.settings = settings
        self.desk = desk
        self.control = control
        self._proxies = NetworkSet.parse(settings.proxies)
        self._unproved: dict[str, Job] = {}
        self._proofs = Rate(PROOFS_PER_HOUR, 100 * PROOFS_PER_HOUR)
        self._letters = Rate(LETTERS_PER_HOUR, 10 * LETTERS_PER_HOUR)
        self._streams: Counter[str] = Counter()

    def renewed(self, settings: WebSettings, control: Control | None) -> "Service":
        """The same service with other settings: tests that wait for a proof and counts stay."""
        fresh = Service(settings, self.desk, control)
        fresh._unproved, fresh._proofs = self._unproved, self._proofs
        fresh._letters, fresh._streams = self._letters, self._streams
        return fresh

    def base(self, request: Request) -> str:
        """Where this service is, as the caller knows it."""
        return self.settings.url or f"{request.url.scheme}://{request.headers.get('host', self.settings.name)}"

    def caller(self, request: Request) -> Address:
        """For limits. Problem."""
        return caller_address(_peer(request), request.headers, self._proxies)

    def call(self, request: Request) -> Job:
        """A test of the address that this request comes from. Problem."""
        nonce = request.query_params.get("nonce", "").strip().lower()
        unknown = set(request.query_params) - {"nonce"}
        if unknown:
            words = f"{', '.join(sorted(unknown))[:80]}: the only parameter here is `nonce`; it is your own address that is tested."
            raise unreadable(words)
        return self.call_with(request, nonce)

    def call_with(self, request: Request, nonce: str) -> Job:
        """The same, with a nonce that was given otherwise. Problem."""
        return self.test_caller(proven_address(_peer(request), request.headers, self._proxies), nonce)

    def test_caller(self, address: Address, nonce: str = "") -> Job:
        """A test of the address that somebody calls from. Problem."""
        if nonce and not is_nonce(nonce):
            raise unreadable("That nonce is none; `posthouse relay nonce` on the server to be tested prints one.")
        text = str(normalise_address(address))
        subject = Subject(text, text, self.settings.ports, nonce, by_calling=True, doubts=doubts_of(address))
        return self.desk.submit(subject)[0]

    # hosts whose control is to be shown

    async def begin(self, host: str, request: Request) -> Job:
        """A test of `host` that waits for a proof. Problem."""
        if self.control is None:
            raise Problem(
                403, "not-testable", "Not testable", "This service tests only the address that you call from."
            )
        caller = self.caller(request)
        _count(self._proofs, caller, "You have asked for many proofs")
        subject, proof = await self.control.begin(host, caller)
        job = Job(subject, time.time(), State.UNPROVED)
        job.proof = proof
        self._unproved[job.id] = job
        while len(self._unproved) > MOST_UNPROVED:
            del self._unproved[next(iter(self._unproved))]
        return job

    async def prove(self, test_id: str, way: str, answer: str, request: Request) -> Job | RelayTest:
        """Looks for the proof; the test that has begun. Problem, "not-proved" when it is not there."""
        job = self._unproved.get(test_id)
        if job is None or self.control is None:
            found = await self.document(test_id)
            if isinstance(found, Job):
                return found
            raise not_found("This test waits for no proof; begin anew with the host's name.")
        if job.proof is not None and job.proof.expires_at < time.time():
            del self._unproved[test_id]
            raise not_found("The token has expired; begin anew with the host's name.")
        caller = self.caller(request)
        _count(self._proofs, caller, "You have asked for many proofs")
        if way == "postmaster" and not answer:
            _count(self._letters, caller, "Many mails to postmasters have been asked for")
        await self.control.look(job, way, answer)
        submitted, _is_new = self.desk.submit(job.subject, job)
        self._unproved.pop(test_id, None)
        return submitted

    # looking

    def job(self, test_id: str) -> Job | None:
        """A test in memory."""
        return self._unproved.get(test_id) or self.desk.job(test_id)

    async def document(self, test_id: str) -> Job | RelayTest:
        """A test: in memory, or kept. Problem."""
        job = self.job(test_id)
        if job is not None:
            return job
        document = await self.desk.document(test_id)
        if document is None:
            raise not_found("There is no test of that id, or it has been forgotten.")
        return document

    async def bounded(self, stream: AsyncIterator[bytes], caller: Address) -> AsyncIterator[bytes]:
        """A stream, counted for as long as it lasts."""
        key = rate_key(caller)
        self._streams[key] += 1
        try:
            async for chunk in stream:
                yield chunk
        finally:
            self._streams[key] -= 1
            if self._streams[key] <= 0:
                del self._streams[key]

    def check_streams(self, caller: Address) -> None:
        """Whether one more may be opened. Problem."""
        if self._streams[rate_key(caller)] >= STREAMS_PER_CLIENT or self._streams.total() >= STREAMS_IN_ALL:
            raise too_often("Too many streams are open", 30)


def _count(rate: Rate, caller: Address, words: str) -> None:
    """One more, or Problem."""
    now = time.monotonic()
    seconds = rate.wait_seconds(rate_key(caller), now)
    if seconds:
        raise too_often(words, seconds)
    rate.count(rate_key(caller), now)


def doubts_of(address: Address) -> tuple[str, ...]:
    """Why a test of that address is no view from outside."""
    if address.is_loopback:
        return ("the tester runs on the same machine, so it sees what this machine sees, not what a stranger sees",)
    if not address.is_global:
        return ("you call from a private address: the tester sees what your network sees, not what a stranger sees",)
    return ()


def _peer(request: Request) -> str:
    if request.client is None:
        raise unreadable("The address of this connection is not known.")
    return str(ip_address(request.client.host))
