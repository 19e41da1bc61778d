"""Delivery to a program: an argument vector, never a shell; the message on standard input; sysexits.h understood.

One process a recipient, in a process group of its own that is killed when it takes too long. What the program prints is kept, up to a
bound, as the diagnostic.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from typing import Final, cast

import msgspec

from posthouse.mail.outcome import Deferred, Delivered, Failed, Outcome
from posthouse.mail.reason import Reason, Slug
from posthouse.smtp.address import Path as MailPath
from posthouse.transports.api import Attempt, Closed, Feed, Unavailable
from posthouse.transports.final import ContentUnreadable, fill, find_loop, local_pieces, safe_local_part

OUTPUT_OCTETS: Final = 2048
_LAST_WORDS_SECONDS: Final = 1.0

_SYSEXITS: Final[dict[int, tuple[str, str]]] = {
    64: ("5.3.0", "command line usage error"),
    65: ("5.6.0", "data format error"),
    66: ("5.3.0", "cannot open input"),
    67: ("5.1.1", "user unknown"),
    68: ("5.1.2", "host name unknown"),
    69: ("5.3.0", "service unavailable"),
    70: ("5.3.0", "internal software error"),
    71: ("4.3.0", "system resource problem"),
    72: ("5.3.0", "critical system file missing"),
    73: ("5.2.0", "cannot create user output file"),
    74: ("5.3.0", "input/output error"),
    75: ("4.3.0", "temporary failure"),
    76: ("5.5.0", "remote error in protocol"),
    77: ("5.7.0", "permission denied"),
    78: ("5.3.5", "local configuration error"),
}
"""sysexits.h to RFC 3463, as Postfix's pipe(8) does it."""


class PipeSettings(msgspec.Struct, frozen=True):
    """`command` is the argument vector, the COMMAND_FIELDS in it to be filled (`{reverse_path}` is empty for notifications).
    `time_limit_seconds` is for one process, as Postfix has it.
    """

    command: tuple[str, ...]
    time_limit_seconds: float = 1000.0


class PipeTransport:
    """See `transports.api.Transport`."""

    def __init__(self, settings: PipeSettings) -> None:
        self._settings = settings

    async def run(self, feed: Feed) -> Closed | Unavailable:
        """Delivers what `feed` gives, one process after the other."""
        attempts = 0
        while True:
            attempt = feed.take()
            if attempt is None:
                if await feed.wait(0):
                    continue
                return Closed(attempts)
            attempts += 1
            recipients = attempt.envelope.recipients
            feed.report(
                attempt, [await self._deliver(attempt, recipients[index].forward_path) for index in attempt.indices]
            )

    async def _deliver(self, attempt: Attempt, forward_path: MailPath) -> Outcome:
        arguments = arguments_for(self._settings.command, attempt, forward_path)
        if isinstance(arguments, Failed):
            return arguments
        program = _Program(arguments)
        try:
            if loop := find_loop(attempt, forward_path):
                return loop
            async with asyncio.timeout(self._settings.time_limit_seconds):
                await program.start()
                await program.hear(local_pieces(attempt, forward_path))
                status = await program.end()
        except TimeoutError:
            limit = f"{self._settings.time_limit_seconds:g} seconds"
            words = f"{arguments[0]} did not end within {limit} and was killed; it will be tried again"
            return Deferred("4.3.0", Reason(Slug.COMMAND_FAILED, words), "", program.output)
        except ContentUnreadable as error:
            words = f"the content cannot be read from the spool ({error}); look at the disk"
            return Deferred("4.3.0", Reason(Slug.CONTENT_DAMAGED, words))
        except (OSError, ValueError) as error:
            words = f"{arguments[0]} cannot be started: {error}; correct the route's command"
            return Deferred("4.3.5", Reason(Slug.COMMAND_FAILED, words))
        finally:
            await program.kill()
        return outcome_of(status, arguments[0], program.output)


def arguments_for(command: Sequence[str], attempt: Attempt, forward_path: MailPath) -> list[str] | Failed:
    """The argument vector for one recipient; Failed when an address would be taken for something else than an address."""
    reverse_path = attempt.reverse_path.encode().decode("utf-8", "surrogateescape")
    local_part = safe_local_part(forward_path)
    if local_part is None and any("{local_part}" in part or "{forward_path}" in part for part in command):
        words = f"the name of {forward_path} cannot be given to a program"
        return Failed("5.1.1", Reason(Slug.MAILBOX_UNAVAILABLE, words))
    values = {
        "local_part": local_part or "",
        "domain": forward_path.domain,
        "forward_path": f"{local_part}@{forward_path.domain}" if forward_path.domain else local_part or "",
        "reverse_path": reverse_path,
        "queue_id": attempt.envelope.id_text,
    }
    arguments = [fill(part, values) for part in command]
    for template, argument in zip(command, arguments, strict=True):
        if argument.startswith("-") and not template.startswith("-"):
            words = f"the address {argument} would be taken for an option of {command[0]}"
            return Failed("5.1.7", Reason(Slug.ADDRESS_UNUSABLE, words))
    return arguments


def outcome_of(status: int, program: str, output: str) -> Outcome:
    """What an exit status means (sysexits.h); negative: the signal that ended the program."""
    said = f": {output}" if output else ""
    if status == 0:
        return Delivered("2.0.0", Reason(Slug.DELIVERED, f"{program} took the message"), "", output)
    if status < 0:
        words = f"{program} was killed by signal {-status}{said}; it will be tried again"
        return Deferred("4.3.0", Reason(Slug.COMMAND_FAILED, words), "", output)
    code, meaning = _SYSEXITS.get(status, ("5.3.0", "unknown"))
    words = f"{program} ended with status {status} ({meaning}){said}"
    if code.startswith("4"):
        return Deferred(code, Reason(Slug.COMMAND_FAILED, f"{words}; it will be tried again"), "", output)
    return Failed(code, Reason(Slug.COMMAND_FAILED, words), "", output)


class _Program(asyncio.SubprocessProtocol):
    """One run of a program in a process group of its own.

    Its end is the end of the process, not of its output: a child that it leaves behind may hold that open.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._output = bytearray()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._is_silent = asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None

    @property
    def output(self) -> str:
        """The beginning of what it printed, as one printable line."""
        text = " ".join(self._output.decode("utf-8", "replace").split())
        return "".join(character if character.isprintable() else "?" for character in text)

    async def start(self) -> None:
        """Starts it, without anything of our environment but the PATH. OSError or ValueError when it can't be started."""
        self._transport, _ = await self._loop.subprocess_exec(
            lambda: self,
            *self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
        )

    async def hear(self, pieces: Iterable[bytes]) -> None:
        """The message on its standard input, no faster than it reads. A program may end without having read it all."""
        stdin = cast(
            "asyncio.WriteTransport", cast("asyncio.SubprocessTransport", self._transport).get_pipe_transport(0)
        )
        for piece in pieces:
            await self._may_write.wait()
            if stdin.is_closing():
                return
            stdin.write(piece)
        stdin.close()

    async def end(self) -> int:
        """Waits for its end; the exit status, negative for a signal."""
        await self._ended.wait()
        with contextlib.suppress(TimeoutError):  # what it printed last may still be in the pipe
            await asyncio.wait_for(self._is_silent.wait(), _LAST_WORDS_SECONDS)
        status = cast("asyncio.SubprocessTransport", self._transport).get_returncode()
        return -signal.SIGKILL if status is None else status

    async def kill(self) -> None:
        """Ends its process group, if it has not ended itself: afterwards its number may be another's."""
        if self._transport is None:
            return
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._transport.get_pid(), signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _LAST_WORDS_SECONDS)
        self._transport.close()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Keeps the beginning of what it prints, and drops the rest, so that it never waits for us."""
        self._output += data[: max(0, OUTPUT_OCTETS - len(self._output))]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """It closed its standard input or output."""
        if fd == 0:
            self._may_write.set()
        else:
            self._is_silent.set()

    def pause_writing(self) -> None:
        """It reads slower than we write."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """It has read on."""
        self._may_write.set()

    def process_exited(self) -> None:
        """It has ended."""
        self._may_write.set()
        self._ended.set()
