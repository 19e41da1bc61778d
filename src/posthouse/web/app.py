"""The application: every address with its handler, and how what goes wrong is answered."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from posthouse.observe import log
from posthouse.web.answer import JSON, CarefulHeaders, ProblemJSON, accepts, problem_fields
from posthouse.web.api import Api
from posthouse.web.openapi import openapi_document
from posthouse.web.pages import Pages
from posthouse.web.problem import Problem
from posthouse.web.service import Service

Handler = Callable[[Request], Awaitable[Response]]


def make_app(service: Service) -> Starlette:
    """The service as an ASGI application."""
    api, pages = Api(service), Pages(service)
    settings = service.settings
    answers = Answers(pages)
    return Starlette(
        routes=_routes(api, pages, openapi_document(settings.version, settings.url)),
        middleware=[Middleware(CarefulHeaders)],
        exception_handlers={
            Problem: answers.problem,
            HTTPException: answers.http_fault,
            Exception: answers.fault,
        },
    )


def _routes(api: Api, pages: Pages, openapi: dict[str, object]) -> list[Route]:
    async def describe(request: Request) -> Response:
        del request
        return JSON(openapi)

    async def robots(request: Request) -> Response:
        del request
        return PlainTextResponse("User-agent: *\nDisallow: /tests\nDisallow: /test-me\nDisallow: /api\n")

    async def test_me(request: Request) -> Response:
        """A browser gets the page with the button: to follow a link must start nothing."""
        if accepts(request, "text/html"):
            return RedirectResponse("/#calling", 303)
        return await api.test_me(request)

    return [
        Route("/", pages.index, methods=["GET"]),
        Route("/about", pages.about, methods=["GET"]),
        Route("/problems", pages.problems, methods=["GET"]),
        _only_get("/test-me", test_me),
        Route("/test-me", pages.test_caller, methods=["POST"]),
        Route("/tests", pages.begin, methods=["POST"]),
        Route("/tests/{id}", pages.show, methods=["GET"]),
        _only_get("/tests/{id}/live", pages.live),
        Route("/tests/{id}/proof", pages.prove, methods=["POST"]),
        Route("/api/tests", api.create, methods=["POST"]),
        Route("/api/tests/{id}", api.read, methods=["GET"]),
        Route("/api/tests/{id}/proof", api.prove, methods=["POST"]),
        _only_get("/api/tests/{id}/events", api.events),
        Route("/health", api.health, methods=["GET"]),
        Route("/openapi.json", describe, methods=["GET"]),
        Route("/robots.txt", robots, methods=["GET"]),
        Route("/static/{mark}/{name}", pages.static, methods=["GET"]),
    ]


def _only_get(path: str, handler: Handler) -> Route:
    """A stream: HEAD, which Starlette adds to GET, would have it made and thrown away, and a test begun for nothing."""
    route = Route(path, handler, methods=["GET"])
    route.methods = {"GET"}
    return route


class Answers:
    """What goes wrong: a page for a browser, a problem document for the API, a line for a terminal."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def problem(self, request: Request, error: Exception) -> Response:
        """A Problem."""
        if not isinstance(error, Problem):
            return await self.fault(request, error)
        fields = problem_fields(error)
        if accepts(request, "text/html"):
            return self._pages.problem(request, error, fields)
        if request.url.path == "/test-me" and not accepts(request, "application/json"):
            return PlainTextResponse(f"no test: {error.detail}\n", error.status, fields)
        return ProblemJSON(error.document, error.status, fields)

    async def http_fault(self, request: Request, error: Exception) -> Response:
        """No such address, or not with that method."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status == 405:
            problem = Problem(
                405, "method", "Not with this method", f"{request.url.path} does not take {request.method}."
            )
            fields = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
            answer = await self.problem(request, problem)
            answer.headers.update(fields)
            return answer
        words = f"There is nothing at {request.url.path[:200]}."
        return await self.problem(request, Problem(404, "not-found", "Not found", words))

    async def fault(self, request: Request, error: Exception) -> Response:
        """A fault of ours: logged, told without its details."""
        log.exception("web-request-failed", error, path=request.url.path)
        words = "A fault of this service's own; it has been logged. Try again."
        return await self.problem(request, Problem(500, "fault", "Fault", words))
