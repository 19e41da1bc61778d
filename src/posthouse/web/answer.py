"""How answers look: JSON, problems, pages; what every answer's header says; what a request may hold."""

import contextlib
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posthouse.web.problem import Problem, unreadable

_Body = TypeVar("_Body")

MOST_OCTETS = 4096
"""The largest request body that makes sense here."""

_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_FIELDS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",  # a result's address is its key
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class CarefulHeaders:
    """Puts the fields that keep a page to itself on every answer; nothing is cached unless its handler says so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _FIELDS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_fields)


class JSON(Response):
    """A struct as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encodes it, with a line end: it is read on terminals too."""
        return msgspec.json.encode(content) + b"\n"


class ProblemJSON(JSON):
    """A problem for programs (RFC 9457)."""

    media_type = "application/problem+json"


def problem_fields(problem: Problem) -> dict[str, str]:
    """The header fields that go with a problem."""
    return {"retry-after": str(max(1, round(problem.retry_after)))} if problem.retry_after else {}


def accepts(request: Request, media_type: str) -> bool:
    """Whether the client names that type itself; `*/*` names none."""
    return any(
        part.partition(";")[0].strip().lower() == media_type for part in request.headers.get("accept", "").split(",")
    )


def refuse_other_sites(request: Request) -> None:
    """Another site's page must not have a visitor's browser start a test. Problem."""
    site = request.headers.get("sec-fetch-site", "")
    origin = request.headers.get("origin", "")
    own = f"{request.url.scheme}://{request.headers.get('host', '')}"
    # Behind a proxy that speaks TLS we see http where the browser sees https: hosts are compared.
    is_foreign = bool(origin) and origin.partition("://")[2] != own.partition("://")[2]
    if site in ("cross-site", "same-site") or (not site and is_foreign):
        raise Problem(
            403, "cross-site", "Sent by another site", "Another site had your browser send this; nothing was done."
        )


async def body_of(request: Request) -> bytes:
    """The request's body, at most MOST_OCTETS. Problem."""
    octets = b""
    async for chunk in request.stream():
        octets += chunk
        if len(octets) > MOST_OCTETS:
            raise Problem(413, "too-large", "Too large", f"At most {MOST_OCTETS} octets make sense here.")
    return octets


async def form_of(request: Request) -> Mapping[str, str]:
    """A form's fields, the first value of each. Problem."""
    octets = await body_of(request)
    fields: dict[str, str] = {}
    with contextlib.suppress(ValueError):  # more fields than any form of ours has
        for name, value in parse_qsl(octets.decode("utf-8", "replace"), max_num_fields=20):
            fields.setdefault(name, value)
    return fields


async def json_of(request: Request, kind: type[_Body]) -> _Body:
    """The body as a struct; an empty one is an empty object. Problem."""
    octets = await body_of(request)
    try:
        return msgspec.json.decode(octets or b"{}", type=kind)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise unreadable(f"The body must be JSON as /openapi.json says: {error}.") from None
