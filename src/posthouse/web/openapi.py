"""The interface for programs as an OpenAPI 3.1 document, its schemas made of the very structs that are answered."""

from collections.abc import Mapping
from typing import Any

import msgspec

from posthouse.web.api import Health, NewTest, ProofGiven
from posthouse.web.document import RelayTest
from posthouse.web.event import Event
from posthouse.web.problem import PROBLEMS, ProblemDocument

_STRUCTS = (RelayTest, NewTest, ProofGiven, Health, Event, ProblemDocument)
_REF = "#/components/schemas/{name}"
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "The test's id; whoever knows it may read the test.",
    "schema": {"type": "string"},
}
_NONCE = {
    "name": "nonce",
    "in": "query",
    "description": "A nonce of the Posthouse under test (`posthouse relay nonce`): the tester's EHLO name then says which "
    "address it comes from, so that the server can see whether its clients are masked.",
    "schema": {"type": "string"},
}
_LAST_EVENT = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "Only the events behind this one.",
    "schema": {"type": "string"},
}


def openapi_document(version: str, url: str) -> dict[str, Any]:
    """The document. `url` is where the service is, "" for the host that is asked."""
    _, components = msgspec.json.schema_components(_STRUCTS, ref_template=_REF)
    info = {
        "title": "Posthouse relay test",
        "version": version,
        "description": "Tests mail hosts for relaying to third parties. Only the address that calls is tested, or a host whose "
        "owner has shown control of it. Limits answer 429 and 503 with Retry-After.",
    }
    return {
        "openapi": "3.1.0",
        "info": info,
        "servers": [{"url": url or "/"}],
        "paths": _paths(),
        "components": {"schemas": components},
    }


def _paths() -> dict[str, Any]:
    document = _json(RelayTest, "The test")
    return {
        "/test-me": {
            "get": {
                "operationId": "testMe",
                "summary": "Test the address that calls",
                "description": "There is no parameter for the address. Joins a test of the same address that is under way.",
                "parameters": [_NONCE],
                "responses": {
                    "200": {
                        "description": "As Accept asks: the dialogue as text while it happens, events, or the test when it is over.",
                        "content": {
                            "text/plain": {"schema": {"type": "string"}},
                            "text/event-stream": {"schema": {"type": "string"}},
                            "application/json": {"schema": _ref(RelayTest)},
                        },
                    },
                    **_problems(400, 403, 409, 429, 503),
                },
            }
        },
        "/api/tests": {
            "post": {
                "operationId": "createTest",
                "summary": "Begin a test of the caller, or of a host once control of it is shown",
                "requestBody": _body(NewTest),
                "responses": {
                    "201": {
                        **document,
                        "headers": {"Location": {"description": "The test's document", "schema": {"type": "string"}}},
                    },
                    **_problems(400, 403, 409, 413, 429, 503),
                },
            }
        },
        "/api/tests/{id}": {
            "get": {
                "operationId": "readTest",
                "summary": "A test as it stands",
                "parameters": [_ID],
                "responses": {"200": document, **_problems(404)},
            }
        },
        "/api/tests/{id}/proof": {
            "post": {
                "operationId": "proveControl",
                "summary": "Look for the proof of control, and begin the test",
                "parameters": [_ID],
                "requestBody": _body(ProofGiven),
                "responses": {"200": document, **_problems(400, 403, 404, 413, 422, 429, 503)},
            }
        },
        "/api/tests/{id}/events": {
            "get": {
                "operationId": "watchTest",
                "summary": "What happens in a test, as server-sent events",
                "description": "Each event's data is an Event as JSON; `done` or `failed` is the last.",
                "parameters": [_ID, _LAST_EVENT],
                "responses": {
                    "200": {
                        "description": "The events",
                        "content": {"text/event-stream": {"schema": {"type": "string"}, "x-event-data": _ref(Event)}},
                    },
                    **_problems(404, 429),
                },
            }
        },
        "/health": {
            "get": {
                "operationId": "health",
                "summary": "Whether the service answers",
                "responses": {"200": _json(Health, "It does")},
            }
        },
    }


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _json(kind: type, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(kind)}}}


def _body(kind: type) -> dict[str, Any]:
    return {"required": False, "content": {"application/json": {"schema": _ref(kind)}}}


def _problems(*statuses: int) -> Mapping[str, Any]:
    words = {
        400: "unreadable",
        403: "not-testable",
        404: "not-found",
        409: "another-nonce",
        413: "too-large",
        422: "not-proved",
        429: "too-often",
        503: "queue-full",
    }
    schema = {"application/problem+json": {"schema": _ref(ProblemDocument)}}
    return {str(status): {"description": PROBLEMS[words[status]], "content": schema} for status in statuses}
