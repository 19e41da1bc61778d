"""The metrics endpoint: Prometheus' text, whatever is in the labels, and no way to hold it up."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from posthouse.observe import metrics
from posthouse.observe.endpoint import Endpoint, render


def test_every_declared_metric_is_rendered_with_help_and_type() -> None:
    families = {family.name: family for family in text_string_to_metric_families(render({}).decode())}
    for name, metric in metrics.registry.items():
        assert families[name].documentation == metric.help
        assert families[name].type == metric.kind


def test_histogram_is_cumulative_and_labels_are_escaped() -> None:
    evil = 'a"b\\c\nd'
    text = render(
        {
            "posthouse_sync_seconds": [([], {"counts": [1, 0, 2, *[0] * 10, 1], "sum": 2.5})],
            "posthouse_logins": [([evil], 3)],
        }
    ).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["posthouse_logins"].samples[0].labels == {"result": evil}
    values = {sample.labels.get("le"): sample.value for sample in families["posthouse_sync_seconds"].samples}
    assert (values["0.0005"], values["0.001"], values["0.002"], values["30.0"], values["+Inf"]) == (1, 1, 3, 3, 4)


def _with_endpoint(talk: Callable[[int], Awaitable[None]], *, healthy: bool = True) -> None:
    async def run() -> None:
        async def snapshot() -> metrics.Snapshot:
            return {"posthouse_messages_accepted": [([], 7)]}

        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        endpoint = Endpoint(snapshot, lambda: healthy)
        await endpoint.start(listening)
        try:
            await talk(listening.getsockname()[1])
        finally:
            endpoint.close()

    asyncio.run(run())


async def _ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        ("GET /metrics HTTP/1.1", "200 OK", "posthouse_messages_accepted_total 7.0\n"),
        ("GET /metrics?name=x HTTP/1.0", "200 OK", "posthouse_messages_accepted_total 7.0\n"),
        ("HEAD /metrics HTTP/1.1", "200 OK", ""),
        ("GET /health HTTP/1.1", "200 OK", "ok\n"),
        ("GET /health HTTP/1.1\r\nContent-Length: x", "200 OK", "ok\n"),
        ("GET /../etc/passwd HTTP/1.1", "404 Not Found", ""),
        ("POST /metrics HTTP/1.1", "405 Method Not Allowed", ""),
        ("\x00\x01\x02", "405 Method Not Allowed", ""),
    ],
)
def test_requests_are_answered(request_line: str, status: str, body: str) -> None:
    async def talk(port: int) -> None:
        answer = (await _ask(port, f"{request_line}\r\nHost: x\r\n\r\n".encode())).decode()
        assert answer.startswith(f"HTTP/1.1 {status}\r\n")
        assert body in answer.partition("\r\n\r\n")[2]

    _with_endpoint(talk)


def test_health_is_503_while_not_all_workers_run() -> None:
    async def talk(port: int) -> None:
        assert (await _ask(port, b"GET /health HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 503")

    _with_endpoint(talk, healthy=False)


def test_head_without_end_is_cut_off() -> None:
    async def talk(port: int) -> None:
        with pytest.raises((ConnectionError, AssertionError)):
            assert await _ask(port, b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 10_000)
        assert b"200 OK" in await _ask(port, b"GET /health HTTP/1.1\r\n\r\n")

    _with_endpoint(talk)


def test_client_too_many_is_turned_away_and_the_others_are_answered() -> None:
    async def talk(port: int) -> None:
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        for reader, writer in clients:
            writer.write(b"GET /health HTTP/1.1\r\n\r\n")
            assert b"200 OK" in await reader.read()
            writer.close()
        assert b"200 OK" in await _ask(port, b"GET /health HTTP/1.1\r\n\r\n")

    _with_endpoint(talk)
