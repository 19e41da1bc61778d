"""For people: the pages, made on the server and whole without script."""

import hashlib
import time
from collections.abc import AsyncIterator, Iterable
from importlib.resources import files
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from posthouse.tester.report import CaseResult
from posthouse.tester.verdict import CASE_WORDS, CaseVerdict, HostVerdict
from posthouse.web.answer import form_of, refuse_other_sites
from posthouse.web.document import RelayTest, State
from posthouse.web.event import EventKind, printable
from posthouse.web.job import Job
from posthouse.web.problem import PROBLEMS, Problem, in_words
from posthouse.web.service import Service

HOST_WORDS = {HostVerdict.OPEN: "open relay", HostVerdict.CLOSED: "closed", HostVerdict.UNKNOWN: "no verdict"}
ROWS = "<!--rows-->"
"""Where a page that is streamed takes its rows."""

_ORDER = (
    CaseVerdict.RELAYED,
    CaseVerdict.ACCEPTED,
    CaseVerdict.NOT_DELIVERED,
    CaseVerdict.UNKNOWN,
    CaseVerdict.BOUNCED,
)


class Page(msgspec.Struct, frozen=True):
    """An entry of the navigation, which every page shows."""

    path: str
    title: str


PAGES = (Page("/", "Relay test"), Page("/about", "About"))


def static_path(name: str) -> str:
    """The address of a static file, with a mark that changes with its content, so that it may be cached for good."""
    octets = (files("posthouse.web") / "static" / name).read_bytes()
    return f"/static/{hashlib.sha256(octets).hexdigest()[:12]}/{name}"


def what_matters_first(results: Iterable[CaseResult]) -> list[CaseResult]:
    """What proves something bad, then what proves nothing, then the rest in its order."""
    return sorted(results, key=lambda one: _ORDER.index(one.verdict) if one.verdict in _ORDER else len(_ORDER))


def sentence(words: str, *, capital: bool = True) -> str:
    """Words as a sentence, with its full stop; printable, whoever said them."""
    words = printable(words).rstrip(".")
    return f"{words[:1].upper() if capital else words[:1]}{words[1:]}." if words else ""


def moment(seconds: float) -> str:
    """A time for people, in UTC: they may be anywhere."""
    return time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(seconds))


def headline(test: RelayTest) -> str:
    """Where a test stands, in a few words."""
    match test.state:
        case State.QUEUED:
            return (
                f"Waiting: number {test.queue.place} of {test.queue.waiting} in the queue" if test.queue else "Waiting"
            )
        case State.RUNNING:
            return "Under way"
        case State.FAILED:
            return "No test"
    return {
        HostVerdict.OPEN: "An open relay",
        HostVerdict.CLOSED: "Closed to strangers",
        HostVerdict.UNKNOWN: "No verdict",
        None: "Waiting for a proof",
    }[test.verdict]


def environment() -> Environment:
    """The templates, which escape all that they are given."""
    made = Environment(
        loader=PackageLoader("posthouse.web"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(printable=printable, sentence=sentence, moment=moment, what_matters_first=what_matters_first)
    made.globals.update(
        words_of=CASE_WORDS, host_words=HOST_WORDS, static={n: static_path(n) for n in STATIC}.__getitem__, pages=PAGES
    )
    return made


STATIC = {
    "style.css": "text/css; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""All static files with their types."""


class Pages:
    """The handlers; `service` does the work."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._environment = environment()
        settings = service.settings
        self._environment.globals["site"] = {
            **msgspec.structs.asdict(settings),
            "keep_words": f"{settings.keep / 86400:g} days" if settings.keep >= 2 * 86400 else in_words(settings.keep),
        }
        self._files = {name: (files("posthouse.web") / "static" / name).read_bytes() for name in STATIC}

    async def index(self, request: Request) -> Response:
        """The two forms."""
        return self._index(request)

    def _index(self, request: Request, host: str = "", fault: str = "", status: int = 200) -> Response:
        service = self._service
        running, waiting = service.desk.counts
        base = service.base(request)
        return self._page(
            request,
            "index.html",
            status,
            caller=str(service.caller(request)),
            has_control=service.control is not None,
            call_host=base.partition("://")[2].rpartition(":")[0] or base.partition("://")[2],
            host=host,
            fault=fault,
            running=running,
            waiting=waiting,
        )

    async def about(self, request: Request) -> Response:
        """Who tests, why, and where to complain: probes point here."""
        return self._page(request, "about.html")

    async def problems(self, request: Request) -> Response:
        """What each problem means."""
        return self._page(request, "problems.html", problems=PROBLEMS)

    async def test_caller(self, request: Request) -> Response:
        """The button: a test of the address that the browser calls from."""
        refuse_other_sites(request)
        await form_of(request)
        job = self._service.call(request)
        return RedirectResponse(job.document.links.page, 303)

    async def begin(self, request: Request) -> Response:
        """The form with a host: to the page that says how to show control."""
        refuse_other_sites(request)
        host = (await form_of(request)).get("host", "").strip()
        try:
            job = await self._service.begin(host, request)
        except Problem as problem:
            if problem.status >= 500:
                raise
            return self._index(request, host, problem.detail, problem.status)
        return RedirectResponse(job.document.links.page, 303)

    async def show(self, request: Request) -> Response:
        """A test: what to do, how far it is, or its result."""
        found = await self._service.document(request.path_params["id"])
        test = found.document if isinstance(found, Job) else found
        if test.state is State.UNPROVED:
            return self._page(request, "proof.html", test=test)
        return self._page(request, "test.html", test=test, headline=headline(test), streamed=False)

    async def prove(self, request: Request) -> Response:
        """A button below one of the ways: to the test, or back with the reason why not."""
        refuse_other_sites(request)
        fields = await form_of(request)
        test_id = request.path_params["id"]
        try:
            found = await self._service.prove(test_id, fields.get("way", ""), fields.get("answer", "").strip(), request)
        except Problem as problem:
            job = self._service.job(test_id)
            if job is None or job.proof is None or job.state is not State.UNPROVED:
                raise
            test = msgspec.structs.replace(job.document, proof=msgspec.structs.replace(job.proof, fault=problem.detail))
            return self._page(request, "proof.html", problem.status, test=test)
        return RedirectResponse((found.document if isinstance(found, Job) else found).links.page, 303)

    async def live(self, request: Request) -> Response:
        """A test as a page that grows while it is loaded."""
        service = self._service
        found = await service.document(request.path_params["id"])
        test = found.document if isinstance(found, Job) else found
        if not isinstance(found, Job) or test.state.is_over or test.state is State.UNPROVED:
            return RedirectResponse(test.links.page, 303)
        caller = service.caller(request)
        service.check_streams(caller)
        page = self._render(request, "test.html", test=test, headline=headline(test), streamed=True)
        stream = service.bounded(self._growing(found, page), caller)
        return StreamingResponse(stream, media_type="text/html; charset=utf-8", headers={"x-accel-buffering": "no"})

    async def _growing(self, job: Job, page: str) -> AsyncIterator[bytes]:
        parts: Any = self._environment.get_template("parts.html").module
        before, _, after = page.partition(ROWS)
        table_end, _, foot = after.partition("</table>")
        yield before.encode()
        async for event in job.watch():
            if event is None:
                yield b"<!-- still here -->\n"
            elif event.kind is EventKind.CASE:
                yield f"{parts.case_row(event.port, event.case)}\n".encode()
            elif event.kind in (EventKind.QUEUED, EventKind.NOTE, EventKind.PORT):
                words = event.words or (f"number {event.place.place} in the queue" if event.place else "")
                port = f"Port {event.port}: " if event.port else ""
                row = self._environment.from_string('<tr><td colspan="5">{{ words | printable }}</td></tr>\n')
                yield row.render(words=port + words).encode()
        test = job.document
        result = str(parts.result(test, headline(test))).replace('<div id="result">', "<div>", 1)
        yield f"{table_end}</table>\n{result}{foot}".encode()

    async def static(self, request: Request) -> Response:
        """A static file; its address changes with its content, so it may be kept for good."""
        name = request.path_params["name"]
        octets = self._files.get(name)
        if octets is None:
            raise Problem(404, "not-found", "Not found", "There is no such file.")
        is_current = request.url.path == static_path(name)
        fields = {"cache-control": "public, max-age=31536000, immutable"} if is_current else {}
        return Response(octets, media_type=STATIC[name], headers=fields)

    def problem(self, request: Request, problem: Problem, fields: dict[str, str]) -> Response:
        """A problem as a page."""
        return self._page(request, "problem.html", problem.status, fields, problem=problem)

    def _render(self, request: Request, template: str, **values: Any) -> str:
        return self._environment.get_template(template).render(
            here=request.url.path, base=self._service.base(request), **values
        )

    def _page(
        self, request: Request, template: str, status: int = 200, fields: dict[str, str] | None = None, **values: Any
    ) -> Response:
        return HTMLResponse(self._render(request, template, **values), status, fields)
