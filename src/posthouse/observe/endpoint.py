"""GET /metrics in Prometheus' text format, and GET /health.

It listens where [metrics] says, best on loopback: the numbers name busy destinations.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from posthouse.observe.http import response, serve_http
from posthouse.observe.metrics import Histogram, Metric, Snapshot, registry

_SECONDS = 5.0

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

    async def start(self, listening: socket.socket) -> None:
        """Accepts on a listening socket from now on."""
        self._server = await serve_http(listening, self._answer, "metrics-client-lost", _SECONDS)

    def close(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, head: bytes, _body: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in {b"GET", b"HEAD"}:
            return response("405 Method Not Allowed", b"only GET\n")
        if path == b"/metrics":
            body = render(await self._take_snapshot())
            whole = response("200 OK", body, "text/plain; version=0.0.4; charset=utf-8")
            return whole.removesuffix(body) if method == b"HEAD" else whole
        if path == b"/health":
            healthy = self._is_healthy()
            return response(
                "200 OK" if healthy else "503 Service Unavailable", b"ok\n" if healthy else b"not all workers run\n"
            )
        return response("404 Not Found", b"/metrics or /health\n")
