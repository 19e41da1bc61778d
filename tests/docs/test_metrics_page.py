"""docs/metrics.md lists every metric as the program has it."""

import re
from pathlib import Path

from posthouse.observe.metrics import registry

DOCS = Path(__file__).parents[2] / "docs"
ROWS = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\| (.+) \|$", (DOCS / "metrics.md").read_text(), re.MULTILINE)


def test_every_metric_stands_on_its_page_with_its_labels_and_words() -> None:
    expected = {
        (
            metric.name + ("_total" if metric.kind == "counter" else ""),
            metric.kind,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.help,
        )
        for metric in registry.values()
    }
    assert {(name, kind, labels.strip(), words) for name, kind, labels, words in ROWS} == expected


def test_every_metric_named_in_the_other_pages_exists() -> None:
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"`(posthouse_\w+)`", page.read_text()):
            assert name in registry or name.removesuffix("_total") in registry, f"{page.name}: {name}"
