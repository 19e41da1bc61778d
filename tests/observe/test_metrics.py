"""Metrics: counted in each worker, added by the supervisor, bounded whatever strangers send."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from posthouse.observe import metrics


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    metrics.clear()
    yield
    metrics.clear()


def test_snapshot_travels_as_json_and_merges_with_itself() -> None:
    metrics.decisions.inc("relay-denied")
    metrics.attempts.inc(("relayed", "example.org"), 2)
    metrics.messages_accepted.inc()
    metrics.sync_seconds.observe(0.003)
    metrics.queue_oldest_seconds.set(5)
    metrics.queue_recipients.set(7)
    metrics.sessions_open.inc("127.0.0.1:25")
    one = json.loads(json.dumps(metrics.snapshot()))
    both = metrics.merge([one, one])
    assert both["posthouse_decisions"] == [(["relay-denied"], 2)]
    assert both["posthouse_attempts"] == [(["relayed", "example.org"], 4)]
    assert both["posthouse_messages_accepted"] == [([], 2)]
    assert both["posthouse_queue_recipients"] == [([], 14)]
    assert both["posthouse_queue_oldest_seconds"] == [([], 5)]
    assert both["posthouse_sync_seconds"][0][1]["sum"] == pytest.approx(0.006)
    assert sum(both["posthouse_sync_seconds"][0][1]["counts"]) == 2


def test_counts_of_an_ended_worker_stay_and_its_gauges_go() -> None:
    metrics.decisions.inc("relay-denied")
    metrics.queue_recipients.set(7)
    kept = metrics.counts_only(metrics.snapshot())
    assert "posthouse_decisions" in kept
    assert "posthouse_queue_recipients" not in kept


def test_unknown_metrics_of_an_older_worker_are_dropped() -> None:
    assert metrics.merge([{"posthouse_gone": [([], 1)]}]) == {}


def test_gauge_may_be_read_when_it_is_asked_for() -> None:
    metrics.queue_messages.read = lambda: 42
    try:
        assert metrics.snapshot()["posthouse_queue_messages"] == [([], 42)]
    finally:
        metrics.queue_messages.read = None


def test_value_on_a_bound_belongs_to_its_bucket() -> None:
    metrics.commit_messages.observe(4)
    assert metrics.commit_messages.counts[metrics.commit_messages.bounds.index(4)] == 1
    metrics.commit_messages.observe(10_000)
    assert metrics.commit_messages.counts[-1] == 1


def test_strangers_cannot_make_series_at_will() -> None:
    names = metrics.BoundedNames(most=5, promote_at=3, candidates=50)
    seen = {names.name(f"d{i}.example") for i in range(10_000)}
    assert seen == {"other"}
    for _ in range(3):
        names.name("busy.example")
    assert names.name("busy.example") == "busy.example"
    for i in range(20):
        for _ in range(4):
            seen.add(names.name(f"busy{i}.example"))
    assert len(seen - {"other"}) == 4
    assert names.name("busy.example") == "busy.example"


def test_every_declared_metric_is_counted_somewhere() -> None:
    source = Path(metrics.__file__).parents[1]
    text = "".join(one.read_text() for one in source.rglob("*.py"))
    names = [name for name, value in vars(metrics).items() if isinstance(value, metrics.Metric)]
    assert len(names) == len(metrics.registry)
    assert [name for name in names if not re.search(rf"\b{name}\.(inc|dec|set|observe|read)\b", text)] == []
