"""When the watch looks: when the last look is as old as [watch] says, and after each reload.

A process of its own (`posthouse watch --mail`) does it: a test takes minutes, and waiting for one must not hold the
supervisor, or its end.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from posthouse.config import Config
from posthouse.observe import log, metrics
from posthouse.serve.watch import read_record, worst
from posthouse.tester.verdict import HostVerdict

SETTLE_SECONDS = 1.0
"""After the start, or a reload, until the tester is called; several reloads make one call."""

RETRY_SECONDS = 3600.0
"""After a look to which the tester gave no answer."""

_LONGEST_SLEEP = 6 * 3600.0


class Watching:
    """The supervisor's part: runs for ever; `look_soon` when a reload is in force."""

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self._wanted = asyncio.Event()
        self._failed_at = 0.0

    def look_soon(self) -> None:
        """The rules are new: they are to be tested."""
        self._wanted.set()

    async def run(self) -> None:
        """Looks when it is due, for ever."""
        note_metrics(worst(read_record(self._config().data_dir).verdicts))
        while True:
            wait = self._seconds_until_due()
            try:
                async with asyncio.timeout(min(max(wait, SETTLE_SECONDS), _LONGEST_SLEEP)):
                    await self._wanted.wait()
            except TimeoutError:
                if wait > _LONGEST_SLEEP or not self._is_on:
                    continue
            else:
                await asyncio.sleep(SETTLE_SECONDS)
            self._wanted.clear()
            if self._is_on:
                await self._look(self._config())

    @property
    def _is_on(self) -> bool:
        config = self._config()
        return bool(config.watch.tester) and config.source is not None

    def _seconds_until_due(self) -> float:
        if not self._is_on:
            return _LONGEST_SLEEP * 2
        config = self._config()
        now, record = time.time(), read_record(config.data_dir)
        asked_at = record.asked_at if record.tester == config.watch.tester else 0.0
        due_at = max(asked_at + config.watch.every, self._failed_at + RETRY_SECONDS)
        return min(due_at - now, config.watch.every)  # the wall clock may have been set

    async def _look(self, config: Config) -> None:
        command = [sys.executable, "-P", "-m", "posthouse", "watch", "--mail", "--json", "--config", str(config.source)]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            told, said = await process.communicate()
        except asyncio.CancelledError:
            if process.returncode is None:
                process.kill()
            raise
        for line in said.decode("utf-8", "replace").splitlines()[:5]:
            log.warning("watch-says", words=line[:500])
        try:
            document: dict[str, Any] = msgspec.json.decode(told)
        except msgspec.DecodeError:
            self._note_failure(f"it ended with status {process.returncode}")
            return
        for failure in document["failures"]:
            self._note_failure(failure)
        self._failed_at = time.time() if document["outcome"] == "failed" else 0.0
        if document["outcome"] == "answered":
            self._note_answer(document)

    def _note_failure(self, words: str) -> None:
        """No verdict: the one that stands goes on standing."""
        self._failed_at = time.time()
        metrics.watch_looks.inc("failed")
        log.warning("watch-no-verdict", words=words)

    def _note_answer(self, document: dict[str, Any]) -> None:
        metrics.watch_looks.inc("answered")
        verdict = document["verdict"]
        note_metrics(HostVerdict(verdict) if verdict else None)
        log.info("watched", tester=document["tester"], verdict=verdict)
        for change in document["changes"]:
            now = change["now"]
            log.warning(
                "watch-verdict-changed",
                address=now["address"],
                before=change["before"],
                verdict=now["verdict"],
                words=now["words"],
            )


def note_metrics(verdict: HostVerdict | None) -> None:
    """One of three gauges is 1; none while nothing is known."""
    metrics.watch_verdict.clear()
    if verdict is not None:
        for one in HostVerdict:
            metrics.watch_verdict.set(1 if one is verdict else 0, one)
