"""[watch]: the tester that this server asks, again and again, to test it from outside."""

from urllib.parse import urlsplit

from posthouse.config import values
from posthouse.config.settings import WatchSettings
from posthouse.config.table import Table

SHORTEST_SECONDS = 600.0
"""Between two tests; a tester has other hosts to test, and limits for each."""


def read_watch(table: Table | None) -> WatchSettings:
    """[watch]; without it nothing is asked."""
    default = WatchSettings()
    if table is None:
        return default
    return WatchSettings(
        tester=table.need("tester", _tester),
        every=table.take("every", _every, default.every),
    )


def _tester(value: object) -> str:
    written = values.text(value)
    try:
        parts = urlsplit(written)
        port = parts.port
    except ValueError:
        port = 0
    is_usable = parts.scheme in ("http", "https") and parts.hostname and port != 0 and written.isascii()
    if not is_usable or parts.query or parts.fragment or parts.username is not None or " " in written:
        raise ValueError(f'is {written!r}, not the address of a tester: write "https://relaytest.example.net/"')
    return written.rstrip("/") + "/"


def _every(value: object) -> float:
    seconds = values.duration(value)
    if seconds < SHORTEST_SECONDS:
        raise ValueError(f"is shorter than {SHORTEST_SECONDS / 60:.0f}m, the most that a tester can be asked to bear")
    return seconds
