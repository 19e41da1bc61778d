"""GET /metrics in Prometheus' text format, and GET /health, over a server small enough to be read.

It listens where [metrics] says, best on loopback: the numbers name busy destinations.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from posthouse.observe import log
from posthouse.observe.metrics import Histogram, Metric, Snapshot, registry

_HEAD_BYTES = 8192
_HEAD_SECONDS = 5.0
_MOST_CLIENTS = 20

TakeSnapshot = Callable[[], Awaitable[Snapshot]]
IsHealthy = Callable[[], bool]


class _Snapshots(Collector):
    """What prometheus_client asks for its metrics."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Family]:
        """Every declared metric, those without a series too: a rule that watches one is never about nothing."""
        for metric in registry.values():
            yield _family(metric, self._snapshot)


def render(snapshot: Snapshot) -> bytes:
    """A snapshot as Prometheus' text format, version 0.0.4."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(_Snapshots(snapshot))
    return generate_latest(collectors)


def _family(metric: Metric, snapshot: Snapshot) -> Family:
    series = snapshot.get(metric.name, [])
    if isinstance(metric, Histogram):
        histogram = HistogramMetricFamily(metric.name, metric.help)
        for _labels, value in series:
            histogram.add_metric([], _buckets(metric.bounds, value["counts"]), value["sum"])
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in series:
        family.add_metric(labels, value)
    return family


def _buckets(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    """Prometheus counts cumulatively: each bucket holds all that is not larger."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


class Endpoint:
    """The server. `take_snapshot` gives the numbers when somebody asks, `is_healthy` whether mail is taken."""

    def __init__(self, take_snapshot: TakeSnapshot, is_healthy: IsHealthy) -> None:
        self._take_snapshot = take_snapshot
        self._is_healthy = is_healthy
        self._server: asyncio.Server | None = None
        self._clients = 0

    async def start(self, listening: socket.socket) -> None:
        """Accepts on a listening socket from now on."""
        self._server = await asyncio.start_server(self._serve, sock=listening, limit=_HEAD_BYTES)

    def close(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > _MOST_CLIENTS:
                return
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(await self._answer(head))
            async with asyncio.timeout(_HEAD_SECONDS):
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("metrics-client-lost", error=type(error).__name__)
            writer.transport.abort()  # a client that does not read must not keep its descriptor
        finally:
            self._clients -= 1
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in {b"GET", b"HEAD"}:
            return _response("405 Method Not Allowed", b"only GET\n")
        if path == b"/metrics":
            body = render(await self._take_snapshot())
            return _response("200 OK", body, "text/plain; version=0.0.4; charset=utf-8", only_head=method == b"HEAD")
        if path == b"/health":
            healthy = self._is_healthy()
            return _response(
                "200 OK" if healthy else "503 Service Unavailable", b"ok\n" if healthy else b"not all workers run\n"
            )
        return _response("404 Not Found", b"/metrics or /health\n")


def _response(status: str, body: bytes, kind: str = "text/plain; charset=utf-8", *, only_head: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("ascii") + (b"" if only_head else body)
