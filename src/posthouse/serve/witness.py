"""A worker's part in the echo: hears it in EHLO, suspends the listener's networks at once, and tells the supervisor.

What holds is the supervisor's to say (serve.masking): its answer, or its verb `suspend`, replaces what was done here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from posthouse.observe import log, metrics
from posthouse.policy.facts import ClientAddress, Unknown
from posthouse.policy.rules import Rules, with_networks
from posthouse.serve.channel import ChannelClosed, ChannelRefusal
from posthouse.tester.echo import Heard, judge_echo, own_key
from posthouse.tester.token import KeyFault, TokenKey, load_key

Tell = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Carries `{"listener": ..., "echo": ...}` to the supervisor; its answer is `{"suspended": listeners}`."""

_MOST_TOLD = 1000


class Witness:
    """`suspended` are the listeners whose networks don't count; `changed` is called when that is different from before."""

    def __init__(self, suspended: tuple[str, ...], key_file: Path, tell: Tell, changed: Callable[[], None]) -> None:
        self.suspended = frozenset(suspended)
        self._key = _key_of(key_file)
        self._tell = tell
        self._changed = changed
        self._told: dict[tuple[str, str], None] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def rules_for(self, listener: str, rules: Rules) -> Rules:
        """The rules as they are in force at that listener."""
        return with_networks(rules, suspended=True) if listener in self.suspended else rules

    def suspend(self, listeners: tuple[str, ...]) -> None:
        """These listeners and no others are suspended."""
        if frozenset(listeners) != self.suspended:
            self.suspended = frozenset(listeners)
            self._changed()

    def hear(self, listener: str, hello_name: str, client: ClientAddress) -> bool:
        """An EHLO name that may carry an echo; whether it is that of the server's own self-test.

        A client without an address gets no network grant, so there is nothing to learn.
        """
        if self._key is None or isinstance(client, Unknown):
            return False
        if judge_echo(own_key(self._key), hello_name, client, time.time()).heard is Heard.AGREES:
            return True
        echo = judge_echo(self._key, hello_name, client, time.time())
        metrics.echoes.inc(echo.heard)
        if echo.heard not in (Heard.AGREES, Heard.DIFFERS) or (listener, echo.nonce_id) in self._told:
            return False
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told[listener, echo.nonce_id] = None
        if echo.heard is Heard.DIFFERS:
            self.suspend((*self.suspended, listener))
        task = asyncio.get_running_loop().create_task(self._report(listener, msgspec.to_builtins(echo)))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        return False

    async def _report(self, listener: str, echo: dict[str, Any]) -> None:
        try:
            answer = await self._tell({"listener": listener, "echo": echo})
        except (ChannelClosed, ChannelRefusal, TimeoutError) as error:
            log.error(
                "echo-not-told", listener=listener, error=str(error)
            )  # here it stays suspended: closed when in doubt
        else:
            self.suspend(tuple(answer["suspended"]))


def _key_of(path: Path) -> TokenKey | None:
    try:
        return load_key(path)
    except KeyFault as error:
        log.error("echo-key-unusable", words=f"{error}; tests from outside can't tell whether clients are masked")
        return None
