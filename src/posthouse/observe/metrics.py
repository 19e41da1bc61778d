"""Metrics as plain numbers in the process, each declared here with the words an operator reads.

`metrics.decisions.inc(slug)` is one dictionary operation (about 0.1 us). Each worker counts for itself; the supervisor
asks for snapshots, adds them (`merge`) and renders Prometheus text (`observe.endpoint`). docs/metrics.md lists them all.

The number of time series is bounded: labels are our own words, except destinations, of which the busiest few have a name
and the rest is "other".
"""

import contextlib
import enum
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from posthouse.observe import log

LabelValues = TypeVar("LabelValues", str, tuple[str, ...])

Snapshot = dict[str, list[tuple[list[str], Any]]]
"""Name to series: label values, and a number or, for a histogram, {"counts": [...], "sum": ...}."""


class Merge(enum.StrEnum):
    """What one gauge of several workers comes to."""

    SUM = "sum"
    MAX = "max"


class Metric:
    """Common to all: `name` without the suffix that Prometheus adds, `help` for operators, the names of the `labels`."""

    kind = ""

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name = f"posthouse_{name}"
        self.help = help_text
        self.labels = labels
        registry[self.name] = self

    def series(self) -> list[tuple[list[str], Any]]:
        """All label values with what was counted."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forgets everything, for tests."""
        raise NotImplementedError


registry: dict[str, Metric] = {}
"""All metrics by name."""


class Total(Metric):
    """A count that only grows, without labels."""

    kind = "counter"

    def __init__(self, name: str, help_text: str) -> None:
        super().__init__(name, help_text)
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Counts."""
        self.value += amount

    def series(self) -> list[tuple[list[str], Any]]:
        """The one series."""
        return [([], self.value)]

    def clear(self) -> None:
        """Back to nothing."""
        self.value = 0


class Counter(Metric, Generic[LabelValues]):
    """Counts that only grow, by label: a str for one label, a tuple for several."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        super().__init__(name, help_text, *labels)
        self.values: dict[LabelValues, int] = {}

    def inc(self, label: LabelValues, amount: int = 1) -> None:
        """Counts under a label."""
        values = self.values
        values[label] = values.get(label, 0) + amount

    def series(self) -> list[tuple[list[str], Any]]:
        """One series a label."""
        if len(self.labels) == 1:
            return [([str(label)], count) for label, count in self.values.items()]
        return [(list[str](label), count) for label, count in self.values.items()]

    def clear(self) -> None:
        """Back to nothing."""
        self.values.clear()


class Gauge(Metric):
    """A number that goes up and down, by at most one label. `read` may be set to ask for it when a snapshot is taken."""

    kind = "gauge"

    def __init__(self, name: str, help_text: str, *labels: str, merge: Merge = Merge.SUM) -> None:
        super().__init__(name, help_text, *labels)
        self.merge = merge
        self.values: dict[str, float] = {}
        self.read: Callable[[], float] | None = None

    def set(self, value: float, label: str = "") -> None:
        """The number is now `value`."""
        self.values[label] = value

    def inc(self, label: str = "", amount: float = 1) -> None:
        """The number grows by `amount`."""
        values = self.values
        values[label] = values.get(label, 0) + amount

    def dec(self, label: str = "", amount: float = 1) -> None:
        """The number shrinks by `amount`."""
        values = self.values
        values[label] = values.get(label, 0) - amount

    def series(self) -> list[tuple[list[str], Any]]:
        """One series a label."""
        if self.read is not None:
            self.values[""] = self.read()
        return [([label] if self.labels else [], value) for label, value in self.values.items()]

    def clear(self) -> None:
        """Back to nothing."""
        self.values.clear()


class Histogram(Metric):
    """How often a quantity was how large. `bounds` are upper bounds, growing; what is larger falls into +Inf."""

    kind = "histogram"

    def __init__(self, name: str, help_text: str, bounds: tuple[float, ...]) -> None:
        super().__init__(name, help_text)
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more of this size."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def series(self) -> list[tuple[list[str], Any]]:
        """The one series: how many fell into each interval (not cumulated), and the sum of all values."""
        return [([], {"counts": list(self.counts), "sum": self.sum})]

    def clear(self) -> None:
        """Back to nothing."""
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0


class BoundedNames:
    """Gives the busiest names a series of their own and calls the rest "other", so that strangers can't make series at will.

    A name is promoted for good once it was seen `promote_at` times while candidates are remembered; the series only grow.
    """

    def __init__(self, most: int = 50, promote_at: int = 10, candidates: int = 1000) -> None:
        self._most = most
        self._promote_at = promote_at
        self._most_candidates = candidates
        self._candidates: dict[str, int] = {}
        self._named: dict[str, str] = {}

    def name(self, wanted: str) -> str:
        """`wanted` itself, or "other"."""
        return self._named.get(wanted) or self._consider(wanted)

    def _consider(self, wanted: str) -> str:
        if len(self._named) >= self._most:
            return "other"
        seen = self._candidates.get(wanted, 0) + 1
        if seen >= self._promote_at:
            self._candidates.pop(wanted, None)
            self._named[wanted] = wanted
            return wanted
        if len(self._candidates) >= self._most_candidates:
            self._candidates.clear()
        self._candidates[wanted] = seen
        return "other"


_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)
_HOURS = (1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 86400.0, 5 * 86400.0)

sessions: Counter[str] = Counter("sessions", "SMTP sessions begun, by listener.", "listener")
sessions_open = Gauge("sessions_open", "SMTP sessions open now, by listener.", "listener")
sessions_refused: Counter[str] = Counter(
    "sessions_refused", "Connections answered with 421 at once, by the limit they met.", "limit"
)
commands_refused: Counter[str] = Counter(
    "commands_refused", "Commands and contents that the protocol engine refused, by reply code.", "code"
)
decisions: Counter[str] = Counter(
    "decisions",
    "What policy said to a recipient, by reason (docs/reasons.md); relay-denied is a stranger refused.",
    "reason",
)
logins: Counter[str] = Counter(
    "logins", "AUTH exchanges, by result: accepted, refused, throttled, unavailable.", "result"
)
messages_accepted = Total("messages_accepted", "Messages on disk and acknowledged with 250.")
recipients_accepted = Total("recipients_accepted", "Recipients of messages acknowledged with 250.")
bytes_accepted = Total("bytes_accepted", "Octets of messages acknowledged with 250, trace fields included.")
messages_deferred: Counter[str] = Counter(
    "messages_deferred",
    "Messages that the spool could not take, by cause: full (452), broken (451). Nothing was promised.",
    "cause",
)
attempts: Counter[tuple[str, ...]] = Counter(
    "attempts",
    "Outcomes of delivery attempts, one a recipient, by outcome (relayed, delivered, deferred, failed) and destination; "
    "the busiest destinations by name, all else as other.",
    "outcome",
    "destination",
)
outcomes: Counter[str] = Counter("outcomes", "Outcomes of delivery attempts, one a recipient, by reason.", "reason")
deliveries_open = Gauge("deliveries_open", "Connections to next hops open now.")
delivery_seconds = Histogram(
    "delivery_seconds", "Seconds from acknowledging a message to relaying or delivering it, a recipient.", _HOURS
)
bounces: Counter[str] = Counter(
    "bounces", "Delivery status notifications sent, by action: failed, delayed, relayed, delivered.", "action"
)
queue_recipients = Gauge("queue_recipients", "Recipients waiting in the queue, those being tried included.")
queue_messages = Gauge("queue_messages", "Messages in the queue.")
queue_held = Gauge("queue_held", "Recipients in the queue that an operator holds.")
queue_oldest_seconds = Gauge("queue_oldest_seconds", "Age of the oldest message in the queue.", merge=Merge.MAX)
sync_seconds = Histogram("sync_seconds", "Time one commit of the spool took, its sync included.", _SECONDS)
commit_messages = Histogram(
    "commit_messages", "Messages that shared one commit of the spool.", (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
spool_free_bytes = Gauge("spool_free_bytes", "Free space where the spool lies, as the guard sees it.", merge=Merge.MAX)
dns_queries: Counter[str] = Counter(
    "dns_queries", "DNS questions, by result: cached, answered, none, failed.", "result"
)
log_lines_dropped = Gauge(
    "log_lines_dropped", "Log lines lost because the reader of standard error was too slow or gone."
)
log_lines_dropped.read = log.dropped
relay_enabled = Gauge("relay_enabled", "1, or 0 after `posthouse relay off`.", merge=Merge.MAX)
probes_collected: Counter[str] = Counter(
    "probes_collected", "Probes of relay tests that arrived at the collector, by way: relayed, bounce.", "way"
)
watch_verdict = Gauge(
    "watch_verdict",
    "1 for what the tester of [watch] last said of this server: open, closed or unknown; 0 for the others; none before the first.",
    "verdict",
    merge=Merge.MAX,
)
watch_looks: Counter[str] = Counter(
    "watch_looks", "Calls of the watch to its tester, by result: answered, failed (which is no verdict).", "result"
)
networks_suspended = Gauge(
    "networks_suspended",
    "1 for a listener whose trusted networks are suspended, as a test from outside found its clients masked; else 0.",
    "listener",
    merge=Merge.MAX,
)
echoes: Counter[str] = Counter(
    "echoes",
    "Echoes of outside tests heard in EHLO, by what they say of client addresses: agrees, differs, forged, expired.",
    "result",
)
web_tests: Counter[str] = Counter(
    "web_tests", "Relay tests that visitors asked for, by how they ended: open, closed, unknown, failed.", "verdict"
)
web_tests_running = Gauge("web_tests_running", "Relay tests of visitors under way.")
web_tests_waiting = Gauge("web_tests_waiting", "Relay tests of visitors in the queue.")
workers = Gauge("workers", "Workers running and ready.")
worker_restarts = Total("worker_restarts", "Workers that ended by themselves and were started again.")
reloads: Counter[str] = Counter("reloads", "Reloads, by result: accepted, refused.", "result")
start_time_seconds = Gauge("start_time_seconds", "When the server started, in seconds since 1970.", merge=Merge.MAX)

destination_names = BoundedNames()
"""For the label `destination` of `attempts`: `attempts.inc((outcome, destination_names.name(destination)))`."""


_OF_SESSIONS = (sessions, sessions_open, commands_refused, decisions, logins, messages_deferred)
_TOTALS_OF_SESSIONS = (messages_accepted, recipients_accepted, bytes_accepted)


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Sessions within the block count for nothing. Only where no real ones are: the supervisor, or a command."""
    kept: list[tuple[Any, dict[Any, Any]]] = [(one, dict(one.values)) for one in _OF_SESSIONS]
    totals = [(one, one.value) for one in _TOTALS_OF_SESSIONS]
    try:
        yield
    finally:
        for metric, values in kept:
            metric.values.clear()
            metric.values.update(values)
        for total, value in totals:
            total.value = value


def snapshot() -> Snapshot:
    """Everything that this process has counted, JSON-able. Metrics without a series are left out."""
    return {name: series for name, metric in registry.items() if (series := metric.series())}


def merge(snapshots: list[Snapshot]) -> Snapshot:
    """Several processes' numbers as one: counts and histograms added, gauges as each says. Unknown names are dropped."""
    merged: dict[str, dict[tuple[str, ...], Any]] = {}
    for one in snapshots:
        for name, series in one.items():
            metric = registry.get(name)
            if metric is None:
                continue
            into = merged.setdefault(name, {})
            for labels, value in series:
                key = tuple(labels)
                into[key] = _joined(metric, into[key], value) if key in into else value
    return {name: [(list(labels), value) for labels, value in into.items()] for name, into in merged.items()}


def counts_only(one: Snapshot) -> Snapshot:
    """The part of a snapshot that stays true when its process has ended: everything but gauges."""
    return {name: series for name, series in one.items() if name in registry and registry[name].kind != "gauge"}


def clear() -> None:
    """Forgets everything, for tests."""
    for metric in registry.values():
        metric.clear()


def _joined(metric: Metric, one: Any, other: Any) -> Any:
    if isinstance(metric, Histogram):
        counts = [a + b for a, b in zip(one["counts"], other["counts"], strict=True)]
        return {"counts": counts, "sum": one["sum"] + other["sum"]}
    if isinstance(metric, Gauge) and metric.merge is Merge.MAX:
        return max(one, other)
    return one + other
