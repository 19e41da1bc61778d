"""What consent must remember, kept durably: proofs, challenges, and how often was tested. One SQLite file in the data directory.

A proof is signed with the testers' key, so that nobody who merely writes to the file makes one. A test is counted before it
begins and in the transaction that allowed it, so that any number of testers at once keep within the limits.
"""

import contextlib
import hashlib
import hmac
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from posthouse.policy.networks import Address, normalise_address
from posthouse.tester.consent import (
    DAY_SECONDS,
    PROOF_SECONDS,
    Consent,
    ConsentRules,
    Denial,
    Method,
    Obstacle,
    Proof,
    Remembered,
    decide_consent,
    needs_memory,
)
from posthouse.tester.keeping import hand_over, make_corner
from posthouse.tester.token import Purpose, Token, TokenKey, mint, new_test_id

CONSENT_FILE = Path("tester") / "consent.db"
"""Where it is, below the data directory."""

CHALLENGE_SECONDS = 14 * 86400.0
"""How long a challenge may be answered: a zone takes its time."""

_RENEW_SECONDS = 86400.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS proof (
    address TEXT NOT NULL, host TEXT NOT NULL, method TEXT NOT NULL, proven_at REAL NOT NULL, expires_at REAL NOT NULL,
    signature TEXT NOT NULL, PRIMARY KEY (address, method)
) STRICT;
CREATE TABLE IF NOT EXISTS challenge (about TEXT PRIMARY KEY, token TEXT NOT NULL, expires_at REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS test (at REAL NOT NULL, address TEXT NOT NULL, kind TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS test_by_time ON test (at);
"""


class OfficeFault(Exception):
    """What must be remembered can't be; the text is one sentence."""


class Office:
    """Consent with its memory. Methods block for a moment, for the disk.

    `rules` is asked at each decision, so that a list of what is never tested counts as soon as it is written; `key` is asked
    when it is needed. Either may raise OfficeFault: then nothing is allowed.
    """

    def __init__(
        self,
        path: Path,
        rules: Callable[[], ConsentRules],
        key: Callable[[], TokenKey],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens nothing yet: what is ours needs no memory."""
        self._rules = rules
        self._path = path
        self._key = key
        self._clock = clock

    def look(self, host: str, address: Address, *, is_caller: bool = False) -> Consent | Denial:
        """May it be tested now? Counts nothing: for a preview."""
        return self._decide(host, address, is_caller=is_caller, counts=False)

    def admit(self, host: str, address: Address, *, is_caller: bool = False) -> Consent | Denial:
        """May it be tested now? A yes is counted as one test, durably, before it is given."""
        return self._decide(host, address, is_caller=is_caller, counts=True)

    def _decide(self, host: str, address: Address, *, is_caller: bool, counts: bool) -> Consent | Denial:
        address, now = normalise_address(address), self._clock()
        try:
            rules = self._rules()
            if not needs_memory(address, rules):
                return decide_consent(host, address, rules, Remembered(), now, is_caller=is_caller)
            with self._open() as database:
                remembered = self._remember(database, address, now)
                answer = decide_consent(host, address, rules, remembered, now, is_caller=is_caller)
                if counts and isinstance(answer, Consent):
                    database.execute("INSERT INTO test VALUES (?, ?, 'test')", (now, str(address)))
                return answer
        except OfficeFault as fault:
            return Denial(Obstacle.NOT_KEPT, f"{host} is not tested: {fault}")

    def _remember(self, database: sqlite3.Connection, address: Address, now: float) -> Remembered:
        since = now - DAY_SECONDS
        database.execute("DELETE FROM test WHERE at < ?", (since - DAY_SECONDS,))
        counts = database.execute(
            "SELECT coalesce(sum(address = ?), 0), count(*) FROM test WHERE at > ? AND kind = 'test'",
            (str(address), since),
        ).fetchone()
        rows = database.execute(
            "SELECT host, address, method, proven_at, expires_at, signature FROM proof WHERE address = ?",
            (str(address),),
        ).fetchall()
        return Remembered(tuple(self._genuine(rows)), *counts)

    def _genuine(self, rows: list[tuple[str, str, str, float, float, str]]) -> Iterator[Proof]:
        for host, address, method, proven_at, expires_at, signature in rows:
            try:
                proof = Proof(host, address, Method(method), proven_at, expires_at)
            except ValueError:
                continue
            if hmac.compare_digest(signature, self._sign(proof)):
                yield proof

    def _sign(self, proof: Proof) -> str:
        said = "\0".join(
            (
                "posthouse proof 1",
                proof.host,
                proof.address,
                proof.method,
                repr(proof.proven_at),
                repr(proof.expires_at),
            )
        )
        return hmac.new(self._key().secret, said.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def record_proof(self, host: str, address: Address, method: Method) -> Proof:
        """Control was shown: durable when it returns. OfficeFault."""
        now = self._clock()
        proof = Proof(host, str(normalise_address(address)), method, now, now + PROOF_SECONDS)
        with self._open() as database:
            database.execute(
                "INSERT OR REPLACE INTO proof VALUES (?, ?, ?, ?, ?, ?)",
                (proof.address, host, method, proof.proven_at, proof.expires_at, self._sign(proof)),
            )
        return proof

    def challenge(self, about: str) -> str:
        """The token to be shown as proof, the same one for as long as it is valid. OfficeFault."""
        now = self._clock()
        with self._open() as database:
            row = database.execute("SELECT token, expires_at FROM challenge WHERE about = ?", (about,)).fetchone()
            if row is not None and row[1] > now + _RENEW_SECONDS:
                return str(row[0])
            expires_at = now + CHALLENGE_SECONDS
            text = mint(self._key(), Token(Purpose.CONSENT, new_test_id(), 0, expires_at), about)
            database.execute("DELETE FROM challenge WHERE expires_at < ?", (now,))
            database.execute("INSERT OR REPLACE INTO challenge VALUES (?, ?, ?)", (about, text, expires_at))
            return text

    def may_write_to(self, address: Address, most_per_day: int) -> bool:
        """Counts one letter to the postmaster of a host, if there were fewer than `most_per_day` today. OfficeFault."""
        text, now = str(normalise_address(address)), self._clock()
        with self._open() as database:
            (sent,) = database.execute(
                "SELECT count(*) FROM test WHERE address = ? AND at > ? AND kind = 'letter'", (text, now - DAY_SECONDS)
            ).fetchone()
            if sent >= most_per_day:
                return False
            database.execute("INSERT INTO test VALUES (?, ?, 'letter')", (now, text))
            return True

    @property
    def key(self) -> TokenKey:
        """The testers' key."""
        return self._key()

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock()

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction. OfficeFault."""
        try:
            make_corner(self._path.parent)
            with contextlib.closing(sqlite3.connect(self._path, timeout=10.0, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous=FULL")
                database.executescript(_SCHEMA)
                hand_over(self._path)
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except BaseException:
                    database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise OfficeFault(
                f"what was proved and how often was tested can't be kept in {self._path} ({error}): "
                f"run this as the user who owns it, or set another data_dir"
            ) from error
