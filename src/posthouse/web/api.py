"""For programs: tests as JSON, their events, the test by calling."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from posthouse.web.answer import JSON, accepts, json_of, refuse_other_sites
from posthouse.web.document import RelayTest
from posthouse.web.event import events_of
from posthouse.web.job import Job
from posthouse.web.problem import unreadable
from posthouse.web.service import Service
from posthouse.web.stream import as_document, as_events, as_lines, told_again

_UNBUFFERED = {"x-accel-buffering": "no"}  # nginx would gather what is meant to be seen at once


class NewTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /api/tests: `host` is what to test once control of it is shown; without one, the address that calls."""

    host: str = ""
    nonce: str = ""


class ProofGiven(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /api/tests/ID/proof: by which of the ways; `answer` is the token that came to the postmaster."""

    way: str
    answer: str = ""


class Health(msgspec.Struct, frozen=True):
    """GET /health."""

    status: str
    version: str
    running: int
    waiting: int


class Api:
    """The handlers; `service` does the work."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def test_me(self, request: Request) -> Response:
        """The test by calling, as the Accept field asks: text that streams, events, or one document at the end."""
        service = self._service
        refuse_other_sites(request)
        caller = service.caller(request)
        service.check_streams(caller)
        job = service.call(request)
        fields = {**_UNBUFFERED, "content-location": job.document.links.document}
        if accepts(request, "application/json"):
            stream, kind = as_document(job), "application/json"
        elif accepts(request, "text/event-stream"):
            stream, kind = as_events(job, 0), "text/event-stream"
        else:
            stream, kind = as_lines(job, service.base(request)), "text/plain; charset=utf-8"
        return StreamingResponse(service.bounded(stream, caller), media_type=kind, headers=fields)

    async def create(self, request: Request) -> Response:
        """A test of a host (it waits for a proof) or of the caller (it begins)."""
        refuse_other_sites(request)
        wanted = await json_of(request, NewTest)
        if wanted.host:
            if wanted.nonce:
                raise unreadable("A nonce goes with a test of the address that you call from, without `host`.")
            job = await self._service.begin(wanted.host, request)
        else:
            job = self._service.call_with(request, wanted.nonce)
        document = job.document
        return JSON(document, 201, {"location": document.links.document})

    async def read(self, request: Request) -> Response:
        """The document of a test."""
        return JSON(document_of(await self._service.document(request.path_params["id"])))

    async def prove(self, request: Request) -> Response:
        """Looks for the proof, and begins the test."""
        refuse_other_sites(request)
        given = await json_of(request, ProofGiven)
        found = await self._service.prove(request.path_params["id"], given.way, given.answer, request)
        return JSON(document_of(found))

    async def events(self, request: Request) -> Response:
        """Server-sent events, from behind the one that Last-Event-ID names."""
        service = self._service
        caller = service.caller(request)
        service.check_streams(caller)
        found = await service.document(request.path_params["id"])
        last = request.headers.get("last-event-id", "0")
        after = int(last) if last.isdecimal() and len(last) < 10 else 0
        stream = as_events(found, after) if isinstance(found, Job) else told_again(events_of(found), after)
        return StreamingResponse(
            service.bounded(stream, caller), media_type="text/event-stream", headers=dict(_UNBUFFERED)
        )

    async def health(self, request: Request) -> Response:
        """Whether the service answers, and how much it has to do."""
        del request
        running, waiting = self._service.desk.counts
        return JSON(Health("ok", self._service.settings.version, running, waiting))


def document_of(found: Job | RelayTest) -> RelayTest:
    """What can be said of a test now."""
    return found.document if isinstance(found, Job) else found
