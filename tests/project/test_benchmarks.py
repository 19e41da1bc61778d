"""The benchmarks still start, and what they say does not depend on when they were last run. Their figures are nobody's test."""

import asyncio
import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from posthouse.spool.sqlite import SqliteSpool

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / program), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("program", ["relay", "tls", "queue", "growth"])
def test_a_program_starts_and_the_page_names_it(program: str) -> None:
    script = (BENCHMARKS / program).read_text()
    module = script.split("run_benchmark ")[1].split()[1]
    done = run(module, "--help")
    assert done.returncode == 0, done.stderr
    page = (BENCHMARKS / "README.md").read_text()
    assert f"## {program}\n" in page


def test_the_hot_path_is_held_to_a_budget() -> None:
    few = ("--messages", "50", "--runs", "1", "--budget")
    assert run("hot_path.py", *few, "100000").returncode == 0
    done = run("hot_path.py", *few, "0.001")
    assert done.returncode == 1
    assert "budget" in done.stderr


def test_a_deferred_queue_can_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from filling import fill

    fill(tmp_path / "data", 2, 51, domains=3)

    async def waiting(shard: int) -> int:
        spool = SqliteSpool(tmp_path / "data" / "spool" / str(shard), shard)
        try:
            found = spool.destinations()
            assert all(name.startswith("deferred") for name, _, _ in found)
            assert not spool.due(found[0][0], 0, 1)
            return sum(count for _, _, count in found)
        finally:
            spool.close()

    assert [asyncio.run(waiting(shard)) for shard in range(2)] == [26, 25]


def test_a_table_says_of_each_ratio_whether_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cells

    slow = {"delivered": 100.0, "cpu": 1.0, "pss_mb": 100.0}
    fast = {"delivered": 460.0, "cpu": 0.1, "pss_mb": 90.0}
    rows = cells.judge({cell.name: {"posthouse": fast, "postfix": slow} for cell in cells.LOADS})
    verdicts = [row.verdict for row in rows]
    assert verdicts == [
        "floor met",
        "floor met",
        "floor met",
        "aim met",
        "aim met",
        "aim met",
        "aim met",
        "below the floor",
    ]
    assert len(cells.lines(rows)) == len(rows) + 2


def test_growth_is_drawn_from_its_record(tmp_path: Path) -> None:
    points = [
        {"series": "size", "step": step, "server": server, "delivered": [rate, rate * 2, rate * 3]}
        for step, rate in ((1024, 900), (1 << 20, 7))
        for server in ("posthouse", "postfix")
    ]
    (tmp_path / "growth.json").write_text(json.dumps({"points": points}))
    done = run("growth.py", "--draw", "--into", str(tmp_path))
    assert done.returncode == 0, done.stderr
    picture = xml.etree.ElementTree.parse(tmp_path / "growth.svg")
    words = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"1K", "1M", "Posthouse", "Postfix"} <= words
