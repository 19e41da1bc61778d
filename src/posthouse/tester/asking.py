"""Asking the collector of another Posthouse for receipts, over HTTP.

    POST /receipts   {"test_id": ..., "at": seconds since 1970, "nonce": "..."}       signed by the asker
                     {"domain": ..., "receipts": [...]}                               signed by the collector, with the nonce

The signature is HMAC-SHA256 with the testers' key over a word, the nonce and the body (RFC 2104), in a header field. So only
those who share the key learn anything, an answer can't be forged or be an old one, and the way between may be plain HTTP;
what is on it is no secret of mail, but the header of our own probes. Over https:// it is encrypted too.
"""

import asyncio
import hashlib
import hmac
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from posthouse.observe import log
from posthouse.observe.http import HEAD_OCTETS, field, response, serve_http
from posthouse.tester.collector import CollectorFault, Receipt
from posthouse.tester.receipts import read_receipts
from posthouse.tester.token import TokenKey

SIGNATURE = "X-Posthouse-Signature"
SECONDS = 10.0
"""How long either side waits for the other."""

SKEW_SECONDS = 600.0
"""How far the clocks of asker and collector may be apart; an overheard question is worth nothing afterwards."""

_QUESTION_OCTETS = 4096
_ANSWER_OCTETS = 64 * 1024 * 1024


class Question(msgspec.Struct, frozen=True):
    """What is asked: the receipts of a test. `at` in seconds since 1970."""

    test_id: int
    at: float
    nonce: str


class Answer(msgspec.Struct, frozen=True):
    """What the collector has of it."""

    domain: str
    receipts: tuple[Receipt, ...]


class AskServer:
    """The collector's side. `file` holds the receipts."""

    def __init__(self, domain: str, file: Path, key: TokenKey, clock: Callable[[], float] = time.time) -> None:
        self.domain, self.key = domain, key
        self._file = file
        self._clock = clock
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        """Accepts on a listening socket from now on."""
        self._server = await serve_http(listening, self._answer, "asker-lost", SECONDS, _QUESTION_OCTETS)

    def close(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, head: bytes, body: bytes) -> bytes:
        if not head.startswith(b"POST /receipts "):
            return response("404 Not Found", b"POST /receipts\n")
        try:
            question = msgspec.json.decode(body, type=Question)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return response("400 Bad Request", b"the question can't be read\n")
        if not hmac.compare_digest(field(head, SIGNATURE), _sign(self.key, "ask", question.nonce, body)):
            return response("403 Forbidden", b"the question is not signed with the key of this collector\n")
        if abs(self._clock() - question.at) > SKEW_SECONDS:
            return response("403 Forbidden", b"the clocks of asker and collector differ by more than ten minutes\n")
        try:
            found = await asyncio.to_thread(read_receipts, self._file, question.test_id)
        except CollectorFault as fault:
            log.error("receipts-unread", words=str(fault))
            return response("503 Service Unavailable", b"the receipts can't be read now\n")
        answer = msgspec.json.encode(Answer(self.domain, found))
        signature = _sign(self.key, "answer", question.nonce, answer)
        return response("200 OK", answer, "application/json", f"{SIGNATURE}: {signature}\r\n")


class RemoteCollector:
    """The collector of another Posthouse, at the URL of its AskServer (a CollectorClient)."""

    def __init__(self, domain: str, url: str, key: TokenKey, clock: Callable[[], float] = time.time) -> None:
        self._domain = domain
        self._url = url
        self._key = key
        self._clock = clock

    @property
    def domain(self) -> str:
        """The domain whose mail the collector takes."""
        return self._domain

    async def receipts(self, test_id: int) -> tuple[Receipt, ...]:
        """All arrivals of that test so far. CollectorFault."""
        question = Question(test_id, self._clock(), secrets.token_hex(16))
        body = msgspec.json.encode(question)
        try:
            async with asyncio.timeout(SECONDS):
                head, answer = await self._exchange(body, _sign(self._key, "ask", question.nonce, body))
        except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            words = str(error) or type(error).__name__
            raise CollectorFault(f"the collector at {self._url} did not answer: {words}") from error
        status = head.partition(b"\r\n")[0].partition(b" ")[2].decode("latin-1")
        if not status.startswith("200"):
            words = answer[:200].decode("utf-8", "replace").strip()
            raise CollectorFault(f"the collector at {self._url} does not answer: {status}: {words}")
        if not hmac.compare_digest(field(head, SIGNATURE), _sign(self._key, "answer", question.nonce, answer)):
            raise CollectorFault(f"what answered at {self._url} does not have our key, so it is not our collector")
        try:
            found = msgspec.json.decode(answer, type=Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CollectorFault(f"the collector at {self._url} answered what can't be read: {error}") from error
        return found.receipts

    async def _exchange(self, body: bytes, signature: str) -> tuple[bytes, bytes]:
        parts = urlsplit(self._url)
        secure = parts.scheme == "https"
        context = ssl.create_default_context() if secure else None
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        reader, writer = await asyncio.open_connection(host, port, ssl=context, limit=HEAD_OCTETS)
        try:
            path = parts.path.rstrip("/") + "/receipts"
            writer.write(
                f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
                f"{SIGNATURE}: {signature}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(field(head, "Content-Length") or 0)
            if not 0 <= length <= _ANSWER_OCTETS:
                raise ValueError("its answer is too long")
            return head, await reader.readexactly(length)
        finally:
            writer.close()

    async def close(self) -> None:
        """Nothing is held open."""


def _sign(key: TokenKey, word: str, nonce: str, body: bytes) -> str:
    said = f"posthouse {word} 1\0{nonce}\0".encode("utf-8", "surrogatepass") + body
    return hmac.new(key.secret, said, hashlib.sha256).hexdigest()
