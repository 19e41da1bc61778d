"""Is this login who it says? Asked by sessions; answered off the event loop, without telling a guesser anything.

Failures are counted (policy.logins) before a password is hashed, so that guessing costs us nothing; a login
that does not exist takes as long as one that does; a login that was right a moment ago is not hashed again.
"""

import asyncio
import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import argon2

from posthouse.observe import log
from posthouse.policy.limits import limit_key
from posthouse.policy.logins import LoginTry, Verdict
from posthouse.relay.session import Verified
from posthouse.serve.account_file import HASHER, LONGEST_PASSWORD, AccountError, AccountFile
from posthouse.serve.logins import CannotAsk, LoginDoor, OwnDoor

HASHING_AT_ONCE = 2
"""Passwords hashed at a time by one worker (there is one a core): 19 MiB of memory each."""

_WAITING_MOST = 64  # logins that wait for a thread; more are asked to come back
_COUNTED_LETTERS = 200  # of an account's name: what guessers make up must not fill memory
_REMEMBERED_SECONDS = 30.0
_REMEMBERED_MOST = 10_000
_TOO_MANY = Verified(is_right=False, unavailable="Too many logins are being checked; try again in a minute")
_UNREADABLE = Verified(is_right=False, unavailable="Logins can't be checked now; try again later")
_WRONG = Verified(is_right=False)
_RIGHT = Verified(is_right=True)


class AccountStore:
    """The accounts of a file, verified. A change of the file counts from the next login on; no reload is needed.

    `clock` is in seconds and does not go back. `door` counts the failures, of this worker alone unless one is given.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic, door: LoginDoor | None = None) -> None:
        self._file = AccountFile(path)
        self._clock = clock
        self._door = door or OwnDoor(clock)
        self._threads = ThreadPoolExecutor(HASHING_AT_ONCE, thread_name_prefix="login")
        self._reading = threading.Lock()
        self._accounts: dict[str, str] = {}
        self._version: tuple[int, ...] = ()
        self._nobody = HASHER.hash(secrets.token_hex(16))  # what logins that do not exist are compared with
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, float] = {}
        self._waiting = 0

    async def verify(self, login: str, password: str, client: str) -> Verified:
        """Whether `password` is `login`'s; `client` is the address that asks, "" on the local socket. Never raises for an answer."""
        if self._waiting >= _WAITING_MOST:
            return _TOO_MANY
        account = login.lower()
        one = LoginTry(limit_key(ip_address(client)) if client else "local", account[:_COUNTED_LETTERS])
        self._waiting += 1
        try:
            number, wait = await self._door.begin(one)
            if wait > 0:
                return Verified(is_right=False, retry_after=wait)
            return await self._look(number, account, password)
        except CannotAsk as error:
            log.error("logins-uncounted", words=str(error))
            return _UNREADABLE
        finally:
            self._waiting -= 1

    async def _look(self, number: int, account: str, password: str) -> Verified:
        """Looks at a password that may be looked at, and tells the door what came of it."""
        verdict = Verdict.WRONG  # for whoever does not wait for the answer, too
        try:
            loop = asyncio.get_running_loop()
            if await loop.run_in_executor(self._threads, self._is_right, account, password):
                verdict = Verdict.RIGHT
        except AccountError as error:
            log.error("accounts-unreadable", words=str(error))
            verdict = Verdict.VOID
            return _UNREADABLE
        finally:
            self._door.end(number, verdict)
        return _RIGHT if verdict is Verdict.RIGHT else _WRONG

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _is_right(self, login: str, password: str) -> bool:
        """In a thread. AccountError when the file can't be read."""
        known = self._current().get(login)
        password_hash = known or self._nobody
        if len(password) > LONGEST_PASSWORD:
            return False
        mark = hmac.digest(
            self._key, f"{login}\0{password_hash}\0{password}".encode("utf-8", "replace"), hashlib.sha256
        )
        now = self._clock()
        if self._remembered.get(mark, -1.0) > now:
            return True
        try:
            HASHER.verify(password_hash, password.encode("utf-8", "replace"))
        except argon2.exceptions.VerificationError:
            return False
        except argon2.exceptions.InvalidHashError as error:
            raise AccountError(f"the hash of {login} is damaged; set its password again") from error
        if known is None:
            return False
        self._remember(mark, now + _REMEMBERED_SECONDS)
        return True

    def _remember(self, mark: bytes, until: float) -> None:
        with self._reading:
            while len(self._remembered) >= _REMEMBERED_MOST:
                del self._remembered[next(iter(self._remembered))]
            self._remembered.pop(mark, None)
            self._remembered[mark] = until

    def _current(self) -> dict[str, str]:
        """The accounts as the file has them now."""
        try:
            found = os.stat(self._file.path)  # noqa: PTH116 - at every login
            version: tuple[int, ...] = (found.st_ino, found.st_mtime_ns, found.st_size)
        except FileNotFoundError:
            version = ()
        except OSError as error:
            raise AccountError(f"the accounts in {self._file.path} can't be read: {error.strerror}") from error
        if version != self._version or not version:
            with self._reading:
                self._accounts = self._file.read() if version else {}
                self._version = version
        return self._accounts
