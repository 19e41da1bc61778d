"""What a worker is told when it starts and when it reloads: the very configuration that was proved closed, and its sockets.

The configuration travels whole instead of being read again from its file: all workers, and one that is restarted a week
later, run exactly what the supervisor proved.

What a worker answers (serve.channel answers `ping` by itself):

    start     WorkerStart        {"ready": true} when all its listeners accept; a ChannelRefusal ends the start, exit 2
    prepare   Prepare            {} or a ChannelRefusal; nothing has changed yet
    commit                       {}: the prepared configuration is in force
    abandon                      {}: the prepared one is forgotten
    relay     enabled            {}: the relay option, at once
    suspend   listeners          {}: the listeners whose trusted networks don't count, these and no others, at once
    metrics                      {"metrics": a snapshot}
    stop      seconds            {}; then it ends by itself within that time, status 0
    queue-*   ids, ...           lists and numbers, which the supervisor joins over the workers

What a worker asks:

    echo      listener, echo     {"suspended": listeners}: an outside test's echo was heard; what holds now
"""

import os
import socket
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from posthouse.config import Config
from posthouse.serve.channel import Channel, Handler

READY_SECONDS = 60.0
"""How long a worker may take until its listeners accept: recovery of a spool is part of it."""

EXIT_SYNC_FAILED = os.EX_IOERR
"""74: a worker's exit status after a sync error. The supervisor stops the whole server with the same status."""

EXIT_BROKEN = os.EX_SOFTWARE
"""70: a worker could not be brought up, or ended by a fault of the program."""


class ListenerSocket(msgspec.Struct, frozen=True):
    """A listening socket: `listener` is the place in `config.listeners`, `fd` the number under which the worker has it."""

    listener: int
    fd: int


class WorkerStart(msgspec.Struct, frozen=True):
    """The arguments of the verb `start`, the first request down the channel. The worker answers `{"ready": true}` when it accepts.

    `shards` are the spool shards to work on, its own first, then those adopted from a time with more workers.
    `submit_fd` is the listening local socket. `relay_enabled` is False after `posthouse relay off`. `suspended` are the
    listeners whose trusted networks don't count (serve.masking).
    """

    config: Config
    worker: int
    workers: int
    shards: tuple[int, ...]
    listeners: tuple[ListenerSocket, ...]
    submit_fd: int
    relay_enabled: bool = True
    suspended: tuple[str, ...] = ()


class Prepare(msgspec.Struct, frozen=True):
    """The arguments of the verb `prepare`: get ready for `config`, change nothing yet. A ChannelRefusal refuses the reload everywhere.

    `kept` pairs the new place of each listener whose address stays with its old place. `opened` are the places of new
    listeners, in the order in which `Channel.take_sockets(len(opened))` gives their sockets. Old listeners that are not
    in `kept` are closed at `commit`; `abandon` forgets it all.
    """

    config: Config
    kept: tuple[tuple[int, int], ...] = ()
    opened: tuple[int, ...] = ()


class WebStart(msgspec.Struct, frozen=True):
    """The arguments of `start` for the web's process. The descriptors listen; `call_fd` is -1 where there are no bare calls."""

    config: Config
    listen_fd: int
    call_fd: int = -1


class WebConfigure(msgspec.Struct, frozen=True):
    """The arguments of `configure` for the web's process: a configuration with the same addresses."""

    config: Config


_Told = TypeVar("_Told", WebStart, WebConfigure)


def to_arguments(told: msgspec.Struct) -> dict[str, Any]:
    """The struct as JSON-able arguments of a request."""
    arguments: dict[str, Any] = msgspec.to_builtins(told, enc_hook=_encode)
    return arguments


def start_from(arguments: dict[str, Any]) -> WorkerStart:
    """The arguments of `start` as a struct. msgspec.ValidationError."""
    return msgspec.convert(arguments, WorkerStart, dec_hook=_decode)


def prepare_from(arguments: dict[str, Any]) -> Prepare:
    """The arguments of `prepare` as a struct. msgspec.ValidationError."""
    return msgspec.convert(arguments, Prepare, dec_hook=_decode)


def told_from(arguments: dict[str, Any], kind: type[_Told]) -> _Told:
    """What the web's process is told, as a struct. msgspec.ValidationError."""
    return msgspec.convert(arguments, kind, dec_hook=_decode)


async def channel_of_worker(channel_fd: int, sockets_fd: int, handler: Handler) -> Channel:
    """The worker's end of the channel: of its two ways, the one for words and the one for sockets."""
    return await Channel.over(socket.socket(fileno=channel_fd), handler, socket.socket(fileno=sockets_fd))


def _encode(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} can't travel to a worker")


def _decode(wanted: type, value: object) -> object:
    if wanted is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{wanted.__name__} can't come from a supervisor")
