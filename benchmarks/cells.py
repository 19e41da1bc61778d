"""The loads that the project promises a ratio for, and how a measured table is judged by them. No figure here is a measurement."""

from collections.abc import Mapping

import msgspec

Medians = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By cell, by server, by what was measured."""


class Cell(msgspec.Struct, frozen=True):
    """One load. `counts` are the messages of a run for Posthouse and for Postfix, some three or four seconds for each."""

    name: str
    floor: float
    aim: float
    sessions: int
    size: int
    kept: bool
    counts: tuple[int, int]
    tls: bool = False


LOADS = (
    Cell("4 KB, 20 sessions, one message each", 3.5, 5, 20, 4096, False, (16_000, 4000)),
    Cell("4 KB, 20 sessions kept", 4.5, 7, 20, 4096, True, (24_000, 5000)),
    Cell("4 KB, 100 sessions, one message each", 4.5, 7, 100, 4096, False, (20_000, 4000)),
    Cell("100 KB, 20 sessions kept", 1.8, 2.5, 20, 102_400, True, (6000, 3000)),
    Cell("4 KB, 1 session kept", 1.5, 2.5, 1, 4096, True, (5000, 2500)),
    Cell("4 KB, 20 sessions kept, STARTTLS on both sides", 2, 4, 20, 4096, True, (16_000, 4000), tls=True),
)

# Of these less is better: Postfix's use divided by ours is to be at least the floor. (name, floor, aim, load, what, unit)
USES = (
    ("CPU s per 1,000 messages, 4 KB, 20 sessions kept", 4, 8, LOADS[1].name, "cpu", "{:.2f} s"),
    ("memory (PSS), 4 KB, 100 sessions", 2, 4, LOADS[2].name, "pss_mb", "{:.0f} MB"),
)


class Row(msgspec.Struct, frozen=True):
    """One line of the table. `ratio` is how many times better Posthouse is."""

    cell: str
    floor: float
    aim: float
    ratio: float
    posthouse: str
    postfix: str
    verdict: str


def counts_of(cell: Cell, quick: bool) -> tuple[int, int]:
    """How many messages a run has; a few, when it is only to be seen that it works."""
    return (max(cell.counts[0] // 40, 100), max(cell.counts[1] // 40, 50)) if quick else cell.counts


def judge(medians: Medians) -> list[Row]:
    """The rows of the table."""
    rows = []
    for cell in LOADS:
        ours, theirs = (medians[cell.name][server]["delivered"] for server in ("posthouse", "postfix"))
        rows.append(_row(cell.name, cell.floor, cell.aim, ours / theirs, f"{ours:,.0f}/s", f"{theirs:,.0f}/s"))
    for name, floor, aim, load, what, form in USES:
        ours, theirs = (medians[load][server][what] for server in ("posthouse", "postfix"))
        rows.append(_row(name, floor, aim, theirs / max(ours, 1e-9), form.format(ours), form.format(theirs)))
    return rows


def _row(name: str, floor: float, aim: float, ratio: float, posthouse: str, postfix: str) -> Row:
    verdict = "aim met" if ratio >= aim else "floor met" if ratio >= floor else "below the floor"
    return Row(name, floor, aim, ratio, posthouse, postfix, verdict)


def lines(rows: list[Row]) -> list[str]:
    """The table as text."""
    out = ["| cell | floor | aim | Posthouse | Postfix | times better | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        figures = f"{row.posthouse} | {row.postfix} | {row.ratio:.1f}"
        out.append(f"| {row.cell} | {row.floor:g} x | {row.aim:g} x | {figures} | {row.verdict} |")
    return out
