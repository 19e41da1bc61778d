"""A sign of life while a person waits: one line on the terminal, which goes away again. Programs never see it."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

_PATIENCE = 1.0
"""Seconds without a word, and between two."""


@contextlib.contextmanager
def sign_of_life(doing: str, patience: float = _PATIENCE) -> Iterator[None]:
    """Where standard error is a terminal and the block takes longer than a second: says what is being done, and for how long.

    From a thread of its own, so that what takes long (a proof, a sum over a history) needs to know nothing of terminals.
    """
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    telling = threading.Thread(target=_tell, args=(doing, patience, done), daemon=True)
    telling.start()
    try:
        yield
    finally:
        done.set()
        telling.join()


def _tell(doing: str, patience: float, done: threading.Event) -> None:
    begin, width = time.monotonic(), 0
    while not done.wait(patience):
        line = f"{doing} … {time.monotonic() - begin:.0f} s"
        width = max(width, len(line))
        _write(f"\r{line:<{width}}")
    if width:
        _write(f"\r{'':<{width}}\r")


def _write(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone
        sys.stderr.write(text)
        sys.stderr.flush()
