"""The weekly mail to the postmaster: who used this server's relaying. The owner of an abused relay is typically unaware of it.

A process of its own (`posthouse usage --mail`) makes it, so that reading two weeks of history never slows the server.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable

from posthouse.config import Config
from posthouse.observe import log
from posthouse.serve.data_dir import DataDir

PERIOD_SECONDS = 7 * 86400.0
_RETRY_SECONDS = 3600.0
_LONGEST_SLEEP = 6 * 3600.0


async def send_weekly_usage(data: DataDir, config: Callable[[], Config]) -> None:
    """Sends when a week has passed, for ever; the first week begins when a server with a `postmaster` is first seen."""
    while True:
        if not config().postmaster or config().source is None:
            await asyncio.sleep(_LONGEST_SLEEP)
            continue
        if not data.usage_sent_at:
            _note(data)
        wait = data.usage_sent_at + PERIOD_SECONDS - time.time()
        if wait > 0:
            await asyncio.sleep(min(wait, _LONGEST_SLEEP))
        elif await _send(config()):
            _note(data)
        else:
            await asyncio.sleep(_RETRY_SECONDS)


def _note(data: DataDir) -> None:
    try:
        data.set_usage_sent_at(time.time())
    except OSError as error:
        log.warning("usage-time-not-noted", error=str(error))


async def _send(config: Config) -> bool:
    command = [sys.executable, "-P", "-m", "posthouse", "usage", "--mail", "--config", str(config.source)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        if process.returncode is None:
            process.kill()
        raise
    if process.returncode != 0:
        log.error("usage-mail-failed", status=process.returncode, error=said.decode("utf-8", "replace")[-500:])
        return False
    log.info("usage-mail-sent", to=config.postmaster)
    return True
