"""For the whole suite: what was not run is said by name, with the reason."""

import os
from collections import defaultdict

import pytest

from posthouse.observe import log

_nowhere = open(os.devnull, "w")  # noqa: SIM115 - as long as the run


def pytest_configure() -> None:
    """What rooms log inside the tests' own processes would drown the dots; servers under test write to files of their own."""
    log.configure("json", "info", _nowhere)


def pytest_unconfigure() -> None:
    """Closes what `pytest_configure` opened."""
    log.flush()
    _nowhere.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists each skipped test under its reason, and how many there are."""
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        by_reason[reason.removeprefix("Skipped: ")].append(report.nodeid)
    for reason, names in by_reason.items():
        terminalreporter.section(f"{len(names)} not run: {reason}")
        for name in sorted(names):
            terminalreporter.write_line(name)
