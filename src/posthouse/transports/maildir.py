"""Maildir: written in tmp, synced, moved to new, the directory synced; only then is it Delivered.

The path may hold `{local_part}`, filled for safe local parts alone. Missing directories are made. Lines end with LF, as every
Maildir reader expects.
"""

import asyncio
import errno
import itertools
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from posthouse.mail.outcome import Deferred, Delivered, Failed, Outcome
from posthouse.mail.reason import Reason, Slug
from posthouse.smtp.address import Path as MailPath
from posthouse.transports.api import Attempt, Closed, Feed, Unavailable
from posthouse.transports.final import ContentUnreadable, fill, find_loop, local_pieces, safe_local_part

_FULL: Final = {errno.ENOSPC: "4.3.1", errno.EDQUOT: "4.2.2"}
_LAST_WORD_SECONDS: Final = 5.0

_sequence = itertools.count(1)


class MaildirSettings(msgspec.Struct, frozen=True):
    """Where to deliver. `path` may hold `{local_part}`; `host_name` goes into file names."""

    path: str
    host_name: str = "localhost"


class MaildirTransport:
    """See `transports.api.Transport`. Writes and syncs in a thread: the disk never holds up the loop."""

    def __init__(self, settings: MaildirSettings) -> None:
        self._settings = settings

    async def run(self, feed: Feed) -> Closed | Unavailable:
        """Delivers what `feed` gives, one message after the other."""
        loop = asyncio.get_running_loop()
        attempts = 0
        while True:
            attempt = feed.take()
            if attempt is None:
                if await feed.wait(0):
                    continue
                return Closed(attempts)
            attempts += 1
            delivery = loop.run_in_executor(None, deliver, attempt, self._settings)
            try:
                outcomes = await asyncio.shield(delivery)
            except asyncio.CancelledError:
                # The thread can't be stopped, and what it has delivered must be known, or it would come twice.
                done, _ = await asyncio.wait([delivery], timeout=_LAST_WORD_SECONDS)
                if done:
                    feed.report(attempt, delivery.result())
                raise
            feed.report(attempt, outcomes)


def deliver(attempt: Attempt, settings: MaildirSettings) -> list[Outcome]:
    """Writes one file for each recipient. Blocks."""
    return [
        _deliver_to(attempt, attempt.envelope.recipients[index].forward_path, settings) for index in attempt.indices
    ]


def _deliver_to(attempt: Attempt, forward_path: MailPath, settings: MaildirSettings) -> Outcome:
    maildir = _maildir_of(forward_path, settings.path)
    if maildir is None:
        words = f"no mailbox can have the name of {forward_path}"
        return Failed("5.1.1", Reason(Slug.MAILBOX_UNAVAILABLE, words))
    try:
        _make(maildir)
        if loop := find_loop(attempt, forward_path):
            return loop
        name = _write(attempt, forward_path, maildir, settings.host_name)
    except ContentUnreadable as error:
        words = f"the content cannot be read from the spool ({error}); look at the disk"
        return Deferred("4.3.0", Reason(Slug.CONTENT_DAMAGED, words))
    except OSError as error:
        words = f"the Maildir {maildir} cannot be written: {error.strerror}; it will be tried again"
        return Deferred(_FULL.get(error.errno or 0, "4.3.0"), Reason(Slug.MAILBOX_UNAVAILABLE, words))
    return Delivered("2.0.0", Reason(Slug.DELIVERED, f"delivered to {maildir} as {name}"))


def _maildir_of(forward_path: MailPath, template: str) -> Path | None:
    """The recipient's Maildir. Names are in lower case, but for a directory that is there in just this spelling."""
    if "{local_part}" not in template:
        return Path(template)
    local_part = safe_local_part(forward_path)
    if local_part is None:
        return None
    as_given = Path(fill(template, {"local_part": local_part}))
    return as_given if as_given.is_dir() else Path(fill(template, {"local_part": local_part.lower()}))


def _make(maildir: Path) -> None:
    """Makes what is missing of a Maildir, for its owner alone, and syncs the directories that got a new entry."""
    if all((maildir / part).is_dir() for part in ("tmp", "new", "cur")):
        return
    missing = [maildir / part for part in ("tmp", "new", "cur")]
    directory = maildir
    while not directory.is_dir():
        missing.insert(0, directory)
        if directory == directory.parent:
            break
        directory = directory.parent
    for directory in missing:
        directory.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(directory.parent)


def _write(attempt: Attempt, forward_path: MailPath, maildir: Path, host_name: str) -> str:
    name = _unique_name(host_name)
    temporary = maildir / "tmp" / name
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb", buffering=0) as file:
            for piece in local_pieces(attempt, forward_path):
                rest = memoryview(piece)
                while rest:
                    rest = rest[file.write(rest) or 0 :]
            os.fsync(file.fileno())
        temporary.rename(maildir / "new" / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    try:
        _sync_directory(maildir / "new")
    except OSError:
        # It may be gone after a power cut, so it is not delivered; left there, every further attempt would add a copy.
        (maildir / "new" / name).unlink(missing_ok=True)
        raise
    return name


def _unique_name(host_name: str) -> str:
    """Seconds, then microseconds, process and a count (https://cr.yp.to/proto/maildir.html), then the host."""
    now = time.time_ns() // 1000
    host = host_name.replace("/", "\\057").replace(":", "\\072")
    return f"{now // 1_000_000}.M{now % 1_000_000}P{os.getpid()}Q{next(_sequence)}.{host}"


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
