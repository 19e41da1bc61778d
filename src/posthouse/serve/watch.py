"""This server's own outside test: it calls the tester that [watch] names, which tests the address that calls.

Who calls has shown control of its address, so nothing else is needed. The call carries a nonce of ours (tester.echo), so
that the test also shows whether we see our clients' addresses. IPv4 and IPv6 are called apart: they are two ways in.

A verdict is what the tester says about us; that it can't be reached, is busy or says what we can't read is none, and
changes nothing. That it could not tell, once, changes nothing either; twice in a row is a change. The last verdict is kept
in the data directory. When it changes the postmaster gets a mail; when it first is anything but closed, too.
"""

import contextlib
import enum
import http.client
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import msgspec

from posthouse.tester.verdict import HostVerdict

FILE_NAME = "watch.json"
ANSWER_SECONDS = 1800.0
"""A test that waits for greylisting, in a queue of tests, is over by then."""

_SILENCE_SECONDS = 120.0
"""Between two octets; the tester sends white space while it works."""

_MOST_OCTETS = 32 * 1024 * 1024
_FAMILIES = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}


class NoAnswer(Exception):
    """The tester gave no verdict; one sentence says why."""


class NoWay(NoAnswer):
    """By this family the tester has no address, or this machine has no way to it."""


class _Remedy(msgspec.Struct, frozen=True):
    sentence: str = ""


class _Answer(msgspec.Struct, frozen=True):
    """What is read of a tester's document (web.document.RelayTest)."""

    state: str
    address: str = ""
    verdict: HostVerdict | None = None
    words: str = ""
    remedy: _Remedy | None = None
    doubts: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True):
    """What a tester said about one address of ours. Times in seconds since 1970; `since` when this verdict was first said."""

    family: str
    address: str
    verdict: HostVerdict
    words: str
    asked_at: float
    since: float
    remedy: str = ""
    doubts: tuple[str, ...] = ()
    unsure: int = 0
    """How often in a row the tester could not tell, while this verdict stood."""


class Record(msgspec.Struct, frozen=True):
    """What is kept: the last verdict by each family, of which tester, and when it was last asked, in vain or not."""

    tester: str = ""
    asked_at: float = 0.0
    verdicts: tuple[Verdict, ...] = ()


class Change(msgspec.Struct, frozen=True):
    """A verdict that is not what it was; `before` is None for the first one."""

    before: HostVerdict | None
    now: Verdict

    @property
    def sentence(self) -> str:
        """For people."""
        was = "" if self.before is None else f", and was {_word(self.before)} before"
        return f"{self.now.address} is {_word(self.now.verdict)} for {_tester_words(self.now)}{was}"


class Outcome(enum.StrEnum):
    """What asking came to, for the metric."""

    ANSWERED = "answered"
    FAILED = "failed"


class Look(msgspec.Struct, frozen=True):
    """One round of asking: what is recorded now, what changed, and why a family gave no verdict."""

    record: Record
    changes: tuple[Change, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """Answered by one family at least."""
        now = any(verdict.asked_at >= self.record.asked_at for verdict in self.record.verdicts)
        return Outcome.ANSWERED if now else Outcome.FAILED

    @property
    def verdict(self) -> HostVerdict | None:
        """The worst that is known; None when nothing is."""
        return worst(self.record.verdicts)


def worst(verdicts: Sequence[Verdict]) -> HostVerdict | None:
    """Open if one is open, closed only if all are; None when there is none."""
    found = {one.verdict for one in verdicts}
    for candidate in (HostVerdict.OPEN, HostVerdict.UNKNOWN, HostVerdict.CLOSED):
        if candidate in found:
            return candidate
    return None


def look(tester: str, nonce: str, before: Record) -> Look:
    """Calls the tester by IPv4 and by IPv6 and compares. Takes as long as the tests do."""
    asked_at = time.time()
    known = {one.family: one for one in before.verdicts} if before.tester == tester else {}
    changes: list[Change] = []
    failures: list[str] = []
    impossible: list[str] = []
    for family in _FAMILIES:
        try:
            answer = call(tester, family, nonce)
        except NoWay as error:
            impossible.append(f"by {family}: {error}")
            continue
        except NoAnswer as error:
            failures.append(f"by {family}: {error}")
            continue
        was = known.get(family)
        now = _verdict(family, answer, asked_at, was)
        known[family] = now
        if was is None or was.verdict is not now.verdict:
            changes.append(Change(was.verdict if was is not None else None, now))
    if len(impossible) == len(_FAMILIES):
        failures = impossible
    verdicts = tuple(known[family] for family in _FAMILIES if family in known)
    return Look(Record(tester, asked_at, verdicts), tuple(changes), tuple(failures))


def _verdict(family: str, answer: _Answer, asked_at: float, was: Verdict | None) -> Verdict:
    verdict = answer.verdict or HostVerdict.UNKNOWN
    if verdict is HostVerdict.UNKNOWN and was is not None and was.verdict is not verdict and not was.unsure:
        return msgspec.structs.replace(was, asked_at=asked_at, unsure=1)
    return Verdict(
        family,
        answer.address,
        verdict,
        answer.words,
        asked_at,
        was.since if was is not None and was.verdict is verdict else asked_at,
        answer.remedy.sentence if answer.remedy is not None else "",
        answer.doubts,
    )


# The call.


def call(tester: str, family: str, nonce: str) -> _Answer:
    """One test of the address that this machine has towards the tester. NoAnswer, NoWay."""
    parts = urlsplit(tester)
    query = f"?{urlencode({'nonce': nonce})}" if nonce else ""
    deadline = time.monotonic() + ANSWER_SECONDS
    with _connection(tester, family) as connection:
        try:
            connection.request(
                "GET",
                f"{parts.path.rstrip('/')}/test-me{query}",
                headers={"Accept": "application/json", "User-Agent": "Posthouse-watch"},
            )
            response = connection.getresponse()
            octets = _read(response, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"the tester {tester} broke off: {str(error) or type(error).__name__}") from error
    if response.status != 200:
        raise NoAnswer(f"the tester {tester} answered {response.status}{_problem(response, octets)}")
    return _parse(tester, octets)


@contextlib.contextmanager
def _connection(tester: str, family: str) -> Iterator[http.client.HTTPConnection]:
    """An HTTP connection by that family and no other, without any proxy: its own address is what gets tested."""
    parts = urlsplit(tester)
    host, is_tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    sock = _connect(tester, host, port, family)
    try:
        if is_tls:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    except OSError as error:
        sock.close()
        raise NoAnswer(f"no TLS with the tester {tester}: {error}") from error
    connection = http.client.HTTPConnection(host, port)
    connection.sock = sock
    try:
        yield connection
    finally:
        connection.close()


def _connect(tester: str, host: str, port: int, family: str) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, _FAMILIES[family], socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY):
            raise NoWay(f"the tester {tester} has no {family} address") from error
        raise NoAnswer(f"the tester {tester} can't be found: {error.strerror}") from error
    last: OSError | None = None
    for *_, address in found[:4]:
        sock = socket.socket(_FAMILIES[family], socket.SOCK_STREAM)
        sock.settimeout(_SILENCE_SECONDS)
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    raise NoAnswer(f"the tester {tester} can't be reached: {last.strerror or last if last else 'no address'}") from last


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := response.read1(65536):
        pieces.append(piece)
        size += len(piece)
        if size > _MOST_OCTETS or time.monotonic() > deadline:
            raise http.client.HTTPException("its answer has no end")
    return b"".join(pieces)


def _problem(response: http.client.HTTPResponse, octets: bytes) -> str:
    """What a problem document (RFC 9457) says, or where a redirect leads; for a log, so without control characters."""
    where = response.getheader("location")
    if where:
        return f", which leads to {_plain(where)}: name that address in [watch]"
    try:
        detail = msgspec.json.decode(octets[:65536], type=dict[str, object]).get("detail", "")
    except msgspec.MsgspecError:
        return ""
    return f": {_plain(str(detail))}" if detail else ""


def _parse(tester: str, octets: bytes) -> _Answer:
    try:
        answer = msgspec.json.decode(octets.strip(), type=_Answer)
    except msgspec.MsgspecError as error:
        raise NoAnswer(f"the tester {tester} gave an answer that is none ({error})") from error
    if answer.state != "done":
        raise NoAnswer(f"the tester {tester} could not test: {_plain(answer.words) or answer.state}")
    plain = [_plain(one) for one in answer.doubts[:10]]
    remedy = _Remedy(_plain(answer.remedy.sentence)) if answer.remedy is not None else None
    return msgspec.structs.replace(
        answer, address=_plain(answer.address), words=_plain(answer.words), remedy=remedy, doubts=tuple(plain)
    )


def _plain(text: str) -> str:
    """What somebody else wrote, fit for a log, a terminal and a mail."""
    return "".join(character if character.isprintable() else "?" for character in text[:500])


# What is kept.


def read_record(data_dir: Path) -> Record:
    """The last verdicts; an empty record when there are none, or what is there can't be read: then they are learnt anew."""
    try:
        return msgspec.json.decode((data_dir / FILE_NAME).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return Record()


def keep_record(data_dir: Path, record: Record) -> None:
    """Replaces what was kept. OSError."""
    new = data_dir / f"{FILE_NAME}.new"
    new.write_bytes(msgspec.json.encode(record))
    new.chmod(0o600)
    new.rename(data_dir / FILE_NAME)


def untold(before: Record, found: Look) -> Record:
    """What to keep when the postmaster could not be told: as if the changed verdicts had not been asked for, so that the next
    look finds them again."""
    changed = {change.now.family for change in found.changes}
    kept = (*(one for one in found.record.verdicts if one.family not in changed),)
    old = (*(one for one in before.verdicts if one.family in changed and before.tester == found.record.tester),)
    return msgspec.structs.replace(found.record, verdicts=(*kept, *old))


# What the postmaster is told.


def tells_postmaster(change: Change) -> bool:
    """The first verdict only where it is bad news."""
    return change.before is not None or change.now.verdict is not HostVerdict.CLOSED


def compose(changes: Sequence[Change], tester: str, hostname: str, postmaster: str) -> EmailMessage:
    """The mail about changed verdicts."""
    mail = EmailMessage()
    verdict = worst([change.now for change in changes]) or HostVerdict.UNKNOWN
    mail["From"] = f"Posthouse on {hostname} <{postmaster}>"
    mail["To"] = postmaster
    mail["Subject"] = {
        HostVerdict.OPEN: f"{hostname} relays for strangers",
        HostVerdict.CLOSED: f"{hostname} is closed to strangers again",
        HostVerdict.UNKNOWN: f"{hostname}: no verdict from outside any more",
    }[verdict]
    mail["Date"] = format_datetime(datetime.now(UTC))
    mail["Message-ID"] = make_msgid(domain=hostname)
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834 5: nobody's vacation program shall answer
    mail.set_content("\n".join(_body(changes, tester)) + "\n")
    return mail


def _body(changes: Sequence[Change], tester: str) -> Iterator[str]:
    yield f"The tester {tester} has tested this server from outside."
    for change in changes:
        yield ""
        yield f"{change.sentence}."
        yield f"  {change.now.words}"
        for doubt in change.now.doubts:
            yield f"  mind: {doubt}"
        if change.now.remedy:
            yield f"  What to do first: {change.now.remedy}"
    if any(change.now.verdict is HostVerdict.OPEN for change in changes):
        yield ""
        yield "Until that is mended: `posthouse relay off` leaves only delivery to local domains, at once."
    yield ""
    yield "More: posthouse watch, posthouse check, posthouse relay status"


def _tester_words(verdict: Verdict) -> str:
    return f"a stranger by {verdict.family}"


def _word(verdict: HostVerdict) -> str:
    return {
        HostVerdict.OPEN: "OPEN",
        HostVerdict.CLOSED: "closed",
        HostVerdict.UNKNOWN: "not to be judged",
    }[verdict]
