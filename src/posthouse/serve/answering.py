"""The server's side of data_dir/control.sock: reads a line, has the supervisor act, writes a line."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from posthouse.observe import log

Act = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Carries out a verb. ControlRefusal says no in one sentence."""

_LONGEST_REQUEST = 16 * 1024 * 1024
"""Octets; `queue delete` may name very many ids."""


class ControlRefusal(Exception):
    """The answer is no; one sentence says why."""


class Undecided(ControlRefusal):
    """No answer can be given: what was asked for may or may not have happened; one sentence says why."""


class ControlServer:
    """Answers on a listening local socket. Who can open it (0600) is allowed everything."""

    def __init__(self, act: Act) -> None:
        self._act = act
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        """Answers from now on."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=_LONGEST_REQUEST)

    def close(self) -> None:
        """No new questions; those under way are still answered."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(msgspec.json.encode(await self._answer(line), enc_hook=str) + b"\n")
                await writer.drain()
        except (OSError, ValueError) as error:
            log.debug("control-client-lost", error=str(error))
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            document = json.loads(line)
            verb, arguments = document["verb"], document.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"error": "not a request: one JSON object with verb and arguments a line"}
        try:
            return {"result": await self._act(verb, arguments)}
        except ControlRefusal as refusal:
            return {"error": str(refusal), "is_refusal": not isinstance(refusal, Undecided)}
        except Exception as error:  # noqa: BLE001, RUF100 - the rim: one command's fault must not end the server, and is told
            log.exception("control-verb-failed", error, verb=verb)
            return {"error": f"{verb} failed: {type(error).__name__}: {error}", "is_refusal": False}
