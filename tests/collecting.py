"""A Posthouse with a collector for the tests, and probes sent by hand."""

import contextlib
import smtplib
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from peer_programs import free_port
from posthouse.tester.collector import Receipt
from posthouse.tester.receipts import RECEIPTS_FILE, read_receipts
from posthouse.tester.token import Purpose, Token, TokenKey, load_key, mint, new_test_id
from posthouse_server import ADDRESS, Posthouse, posthouse

DOMAIN = "collector.test"


def lab_line(*, days: float = 1, seconds: float = 0, more: str = "", destinations: str = f'["{DOMAIN}"]') -> str:
    """`role` and `lab` of a listener that closes in so many days and seconds."""
    until = datetime.now(UTC) + timedelta(days=days, seconds=seconds)
    ends = until.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return f'role = "lab"\nlab = {{ destinations = {destinations}, until = {ends}{more} }}\n'


class Collecting:
    """A running collector: `port` is its SMTP port."""

    def __init__(self, server: Posthouse, port: int) -> None:
        self.server, self.port = server, port

    @property
    def key(self) -> TokenKey:
        return load_key(self.server.data_dir / "tester" / "key")

    @property
    def file(self) -> Path:
        return self.server.data_dir / RECEIPTS_FILE

    def token(
        self,
        test_id: int,
        case: int = 1,
        purpose: Purpose = Purpose.PROBE,
        seconds: float = 3600.0,
        key: TokenKey | None = None,
    ) -> str:
        return mint(key or self.key, Token(purpose, test_id, case, time.time() + seconds))

    def receipts(self, test_id: int) -> tuple[Receipt, ...]:
        return read_receipts(self.file, test_id)


@contextlib.contextmanager
def collecting(listener: str = "", settings: str = "", workers: int = 1, rates: str = "") -> Iterator[Collecting]:
    """A Posthouse whose second listener is a collector for DOMAIN; the first one's lines are `listener`.

    `rates` are further lines of [collector].
    """
    port = free_port(ADDRESS)
    text = f"""\
[[listener]]
address = "{ADDRESS}:{port}"
role = "collector"
[collector]
domains = ["{DOMAIN}"]
{rates}
[[route]]
domain = "{DOMAIN}"
to = "smtp://{ADDRESS}:{port}"
[limits]
free_space = "1MB"
{settings}
"""
    with posthouse(text, listener=listener, workers=workers) as server:
        yield Collecting(server, port)


def send(
    port: int,
    forward_path: str,
    *,
    reverse_path: str = "tester@tester.test",
    host: str = ADDRESS,
    source: str = ADDRESS,
    header: str = "",
) -> tuple[int, str]:
    """Sends one mail; the last reply: of RCPT when that was refused, else of the content."""
    with smtplib.SMTP(host, port, local_hostname="client.test", timeout=30, source_address=(source, 0)) as client:
        client.ehlo()
        client.mail(reverse_path)
        code, words = client.rcpt(forward_path)
        if code < 300:
            code, words = client.data(f"{header}Subject: a probe\r\n\r\nHello\r\n")
        return code, words.decode()


def fresh_test() -> int:
    return new_test_id()
