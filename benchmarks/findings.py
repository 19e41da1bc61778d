"""What a benchmark found, one figure each, with the bound that it is held to where there is one."""

import statistics
from collections.abc import Sequence

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One figure: the median of `values`, one a run. `at_most` is None for a figure that nothing is promised of."""

    part: str
    what: str
    unit: str
    values: Sequence[float]
    at_most: float | None = None

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        """Within the bound, or without one."""
        return self.at_most is None or self.value <= self.at_most


def document(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """For programs."""
    return [{**msgspec.structs.asdict(one), "value": one.value, "is_met": one.is_met} for one in findings]


def lines(findings: Sequence[Finding]) -> list[str]:
    """A table for people."""
    out = ["| part | what | measured | at most | |", "|---|---|---|---|---|"]
    for one in findings:
        bound = "" if one.at_most is None else f"{_number(one.at_most)} {one.unit}"
        verdict = "" if one.at_most is None else "met" if one.is_met else "not met"
        out.append(f"| {one.part} | {one.what} | {_number(one.value)} {one.unit} | {bound} | {verdict} |")
    return out


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
