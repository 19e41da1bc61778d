"""/openapi.json says what the service does: every route, every answer."""

import json
from typing import Any

import jsonschema
import msgspec

from posthouse.web.app import make_app
from posthouse.web.desk import Desk
from posthouse.web.job import Job
from posthouse.web.openapi import openapi_document
from posthouse.web.service import Service
from posthouse.web.settings import WebSettings
from visiting import host, refusing, site

DESCRIBED = ("/api/", "/test-me", "/health")


def fits(document: dict[str, Any], schema: dict[str, Any], answer: object) -> None:
    """The answer is as the schema says, judged by a stranger's validator."""
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(answer)


def schema_of(document: dict[str, Any], path: str, method: str, status: int) -> dict[str, Any]:
    found: dict[str, Any] = document["paths"][path][method]["responses"][str(status)]["content"]
    return dict(next(iter([each for kind, each in found.items() if "json" in kind]))["schema"])


def test_document_names_every_route_and_no_other() -> None:
    async def never(job: Job) -> None:
        raise AssertionError(job)

    settings = WebSettings("tester.test")
    app = make_app(Service(settings, Desk(settings, never, None)))
    routes = {
        (route.path, method.lower())  # type: ignore[attr-defined]
        for route in app.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
        if route.path.startswith(DESCRIBED)  # type: ignore[attr-defined]
    }
    document = openapi_document("1", "")
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert routes == described | {("/test-me", "post")}, "POST /test-me is the page's own button"


def test_schemas_are_schemas() -> None:
    document = json.loads(msgspec.json.encode(openapi_document("1", "")))
    assert document["openapi"] == "3.1.0"
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    text = json.dumps(document)
    for name in set(json.loads(f"[{','.join(_references(text))}]")):
        assert name in document["components"]["schemas"], name


def _references(text: str) -> list[str]:
    return [f'"{part.partition(chr(34))[0]}"' for part in text.split('"#/components/schemas/')[1:]]


def test_answers_are_as_the_document_says() -> None:
    with site() as web, host(refusing(), web.mail_port) as caller:
        document = web.visit("/openapi.json").json
        test = web.visit("/test-me", caller=caller, accept="application/json")
        fits(document, schema_of(document, "/test-me", "get", 200), test.json)
        created = web.post("/api/tests", {}, caller)
        fits(document, schema_of(document, "/api/tests", "post", created.status), created.json)
        fits(
            document,
            document["paths"]["/api/tests"]["post"]["requestBody"]["content"]["application/json"]["schema"],
            {},
        )
        links = created.test.links
        fits(document, schema_of(document, "/api/tests/{id}", "get", 200), web.visit(links.document).json)
        fits(document, schema_of(document, "/health", "get", 200), web.visit("/health").json)
        missing = web.visit("/api/tests/none")
        fits(document, schema_of(document, "/api/tests/{id}", "get", 404), missing.json)
        event = {"$ref": "#/components/schemas/Event"}
        for block in web.visit(links.events).text.split("\n\n"):
            for line in block.splitlines():
                if line.startswith("data: "):
                    fits(document, event, json.loads(line.removeprefix("data: ")))
