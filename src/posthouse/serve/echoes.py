"""The supervisor's part in the echo: gives nonces, judges what the workers heard, keeps it on disk, has the workers follow."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from posthouse.config import Config
from posthouse.observe import log
from posthouse.serve.answering import ControlRefusal
from posthouse.serve.data_dir import ECHO_KEY, DataDir
from posthouse.serve.masking import (
    EchoJudge,
    Findings,
    findings_at_start,
    findings_text,
    lifted,
    note_metrics,
    status_of,
    still_true,
)
from posthouse.tester.echo import NONCE_SECONDS, Echo, hello_name, new_nonce, own_key
from posthouse.tester.token import KeyFault, TokenKey, make_key


class Echoes:
    """`spread` has every worker suspend what is suspended, and nothing else."""

    def __init__(self, data: DataDir, config: Callable[[], Config], spread: Callable[[], Awaitable[None]]) -> None:
        self._data = data
        self._config = config
        self._spread = spread
        self._judge = EchoJudge(findings_at_start(config(), data.path))
        try:
            self._key: TokenKey | None = make_key(data.path / ECHO_KEY)
        except KeyFault as error:
            log.error("echo-key-unusable", words=str(error))
            self._key = None
        self._keep()

    @property
    def suspended(self) -> tuple[str, ...]:
        """The listeners whose trusted networks don't count."""
        return self._judge.findings.suspended

    @property
    def sentences(self) -> tuple[str, ...]:
        """Why, one for each of them."""
        return tuple(mask.sentence for mask in self._judge.findings.masks)

    def status(self) -> dict[str, Any]:
        """For `relay status`."""
        return status_of(self._judge.findings)

    def new_nonce(self) -> dict[str, Any]:
        """For a test from outside. ControlRefusal."""
        if self._key is None:
            raise ControlRefusal(f"{self._data.path / ECHO_KEY} can't be used; the log of the start says why")
        now = time.time()
        return {"nonce": new_nonce(self._key, now), "expires_at": now + NONCE_SECONDS}

    def self_test_name(self, seen_as: str) -> str:
        """The EHLO name of a self-test that will be seen with that address."""
        name = f"self-test.{self._config().hostname}"
        if self._key is None:
            return name
        return hello_name(new_nonce(own_key(self._key), time.time()), seen_as, name)

    async def hear(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What a worker heard; the answer says what holds."""
        listener, echo = str(arguments["listener"]), msgspec.convert(arguments["echo"], Echo)
        before = self.suspended
        if self._judge.hear(self._config(), listener, echo):
            self._keep()
        if self.suspended != before:
            await self._spread()
        return {"suspended": list(self.suspended)}

    async def trust(self, listener: str) -> dict[str, Any]:
        """Lifts a suspension on purpose. ControlRefusal."""
        if listener not in self.suspended:
            known = ", ".join(self.suspended) or "none is"
            raise ControlRefusal(f"the networks of {listener or 'no listener'} are not suspended (suspended: {known})")
        self._change(lifted(self._judge.findings, listener))
        log.warning("networks-resumed", listener=listener, words="on purpose, by `posthouse relay trust`")
        await self._spread()
        return self.status()

    def configuration_changed(self) -> bool:
        """A reload is in force: suspensions that the old configuration had earned are lifted. Whether there were some."""
        before = set(self.suspended)
        self._change(still_true(self._judge.findings, self._config()))
        for listener in before - set(self.suspended):
            log.warning(
                "networks-resumed", listener=listener, words="its configuration is changed; have it tested again"
            )
        return before != set(self.suspended)

    def _change(self, findings: Findings) -> None:
        if findings != self._judge.findings:
            self._judge.findings = findings
            self._keep()
        else:
            note_metrics(findings, self._config())

    def _keep(self) -> None:
        findings = self._judge.findings
        note_metrics(findings, self._config())
        try:
            self._data.set_findings(findings_text(findings))
        except OSError as error:
            log.error(
                "echoes-not-kept", words=f"can't note what echoes have shown in {self._data.path}: {error.strerror}"
            )
