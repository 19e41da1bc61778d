"""The watch: what a tester may answer, what is a verdict and what is not, and who is told."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest

from peer_programs import free_port, server_directory
from posthouse.serve.watch import (
    Change,
    Look,
    NoAnswer,
    Record,
    Verdict,
    call,
    compose,
    keep_record,
    look,
    read_record,
    tells_postmaster,
    untold,
)
from posthouse.tester.verdict import HostVerdict
from posthouse_server import ADDRESS, Posthouse, configured, posthouse, route_to
from serve_fake import until

CLOSED = {"state": "done", "verdict": "closed", "address": "192.0.2.1", "words": "relays for no stranger"}
OPEN = {
    "state": "done",
    "verdict": "open",
    "address": "192.0.2.1",
    "words": "it relayed",
    "remedy": {"sentence": "Do."},
}
UNKNOWN = {"state": "done", "verdict": "unknown", "address": "192.0.2.1", "words": "no port answers"}


class Answering:
    """A tester that answers as it is told; what it was asked is in `asked`."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.asked: list[bytes] = []
        self.listening = socket.create_server((ADDRESS, 0))
        self.url = f"http://{ADDRESS}:{self.listening.getsockname()[1]}/"

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                with connection, contextlib.suppress(OSError):
                    self.asked.append(connection.recv(65536))
                    connection.sendall(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

    def says(self, *documents: dict[str, Any]) -> None:
        self.answers = [ok(json.dumps(document).encode()) for document in documents]


def ok(body: bytes, status: str = "200 OK", fields: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\n{fields}\r\n".encode() + body


@pytest.fixture
def tester() -> Iterator[Answering]:
    one = Answering()
    thread = threading.Thread(target=one.serve, daemon=True)
    thread.start()
    yield one
    one.listening.shutdown(socket.SHUT_RDWR)
    one.listening.close()
    thread.join(5)


def test_answer_is_read_and_the_nonce_goes_along(tester: Answering) -> None:
    tester.answers = [ok(b"\n\n\n" + json.dumps(CLOSED).encode())]
    found = look(tester.url, "abc", Record())
    assert found.failures == ()
    assert (found.verdict, found.outcome) == (HostVerdict.CLOSED, "answered")
    (verdict,) = found.record.verdicts
    assert (verdict.family, verdict.address) == ("IPv4", "192.0.2.1")
    assert tester.asked[0].startswith(b"GET /test-me?nonce=abc HTTP/1.1\r\n")
    assert b"Accept: application/json\r\n" in tester.asked[0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ok(b'{"detail":"10 tests an hour\\u0007"}', "429 Too Many Requests"), r"answered 429: 10 tests an hour\?"),
        (ok(b"", "301 Moved", "Location: https://elsewhere.test/\r\n"), "leads to https://elsewhere.test/: name that"),
        (ok(b"<html>"), "an answer that is none"),
        (ok(b'{"state":"done","verdict":"perhaps"}'), "an answer that is none"),
        (ok(b'{"state":"failed","words":"the queue broke"}'), "could not test: the queue broke"),
        (ok(b"", "500 Fault"), "answered 500"),
        (b"SSH-2.0-x\r\n", "broke off"),
        (b"", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}", "broke off|an answer that is none"),
    ],
)
def test_what_is_no_verdict_changes_nothing(tester: Answering, answer: bytes, words: str) -> None:
    tester.says(CLOSED)
    before = look(tester.url, "", Record()).record
    tester.answers = [answer]
    with pytest.raises(NoAnswer, match=words):
        call(tester.url, "IPv4", "")
    found = look(tester.url, "", before)
    assert (found.changes, found.outcome, found.verdict) == ((), "failed", HostVerdict.CLOSED)
    assert len(found.failures) == 1


def test_tester_that_is_not_there_is_no_verdict() -> None:
    found = look(f"http://{ADDRESS}:{free_port()}/", "", Record())
    assert found.verdict is None
    assert "can't be reached" in found.failures[0]


def test_change_is_found_once(tester: Answering) -> None:
    tester.says(CLOSED, OPEN, OPEN, CLOSED)
    record = Record()
    changes = []
    for _ in range(4):
        found = look(tester.url, "", record)
        record = found.record
        changes.append([(change.before, change.now.verdict) for change in found.changes])
    closed, opened = HostVerdict.CLOSED, HostVerdict.OPEN
    assert changes == [[(None, closed)], [(closed, opened)], [], [(opened, closed)]]


def test_tester_that_cannot_tell_changes_the_verdict_only_twice_in_a_row(tester: Answering) -> None:
    tester.says(CLOSED, UNKNOWN, CLOSED, UNKNOWN, UNKNOWN)
    record = Record()
    verdicts = []
    for _ in range(5):
        record = look(tester.url, "", record).record
        verdicts.append(record.verdicts[0].verdict)
    assert verdicts == [*[HostVerdict.CLOSED] * 4, HostVerdict.UNKNOWN]


def test_another_tester_begins_anew(tester: Answering) -> None:
    tester.says(CLOSED)
    record = look(tester.url, "", Record()).record
    found = look(tester.url.replace("http://", "http://u@"), "", record)
    assert [change.before for change in found.changes] == [None]


def verdict_of(verdict: HostVerdict) -> Verdict:
    return Verdict("IPv4", "192.0.2.1", verdict, "it relayed\x00", 1.0, 1.0, "Mend it.", ("a doubt",))


def test_first_verdict_is_told_only_where_it_is_bad() -> None:
    assert not tells_postmaster(Change(None, verdict_of(HostVerdict.CLOSED)))
    assert tells_postmaster(Change(None, verdict_of(HostVerdict.OPEN)))
    assert tells_postmaster(Change(HostVerdict.OPEN, verdict_of(HostVerdict.CLOSED)))


def test_mail_says_what_was_found_and_what_to_do() -> None:
    change = Change(HostVerdict.CLOSED, verdict_of(HostVerdict.OPEN))
    mail = compose([change], "https://tester.example/", "mx.example.org", "postmaster@example.org")
    assert mail["Subject"] == "mx.example.org relays for strangers"
    assert mail["Auto-Submitted"] == "auto-generated"
    text = mail.get_content()
    for words in ("192.0.2.1 is OPEN", "and was closed before", "Mend it.", "a doubt", "posthouse relay off"):
        assert words in text


def test_change_that_could_not_be_mailed_is_found_again(tmp_path: Path) -> None:
    before = Record("t", 1.0, (verdict_of(HostVerdict.CLOSED),))
    now = verdict_of(HostVerdict.OPEN)
    found = Look(Record("t", 2.0, (now,)), (Change(HostVerdict.CLOSED, now),))
    kept = untold(before, found)
    assert (kept.asked_at, kept.verdicts) == (2.0, before.verdicts)
    keep_record(tmp_path, kept)
    assert read_record(tmp_path) == kept
    (tmp_path / "watch.json").write_text("{")
    assert read_record(tmp_path) == Record()


def test_watch_without_a_tester_is_wrong_use() -> None:
    with configured() as server:
        done = server.command("watch", check=False)
        assert done.returncode == 2
        assert "[watch]" in done.stderr


@contextlib.contextmanager
def real_tester(*ports: int) -> Iterator[str]:
    """The relay test as a service, by Posthouse itself."""
    port = free_port(ADDRESS)
    settings = f'[web]\nlisten = "{ADDRESS}:{port}"\nports = {list(ports)}\n'
    with posthouse(settings):
        yield f"http://{ADDRESS}:{port}/"


def mails(directory: Path) -> list[str]:
    """What the watch has sent; the tester's own mail to the postmaster is left out."""
    found = [message_from_bytes(one.read_bytes(), policy=policy.default) for one in directory.glob("new/*")]
    return sorted(subject for one in found if (subject := str(one["Subject"])).startswith("relay.test"))


def watched(server: Posthouse) -> list[str]:
    lines = (json.loads(line) for line in server.output().splitlines() if line.startswith("{"))
    return [one["verdict"] for one in lines if one["event"] == "watched"]


@pytest.mark.slow
def test_server_that_opens_is_told_to_its_postmaster_by_a_real_tester() -> None:
    with server_directory("box") as box, configured(head='postmaster = "boss@here.test"') as server:
        trust = '[relay]\nlocal_domains = ["here.test"]\ntrusted_networks = ["{}"]\n'
        text = server.configuration.read_text()
        with real_tester(server.port) as url:
            more = route_to(f"maildir:{box}/mail", domain="here.test") + f'[watch]\ntester = "{url}"\n'
            server.configuration.write_text(text + more + trust.format("127.9.9.9"))
            with server.serving():
                until(lambda: watched(server) == ["closed"], 60)
                assert mails(box / "mail") == []
                assert server.json("relay", "status")["echoes"][0]["address"] == ADDRESS
                server.configuration.write_text(text + more + trust.format(ADDRESS))
                server.command("reload")
                until(lambda: watched(server) == ["closed", "open"], 60)
                until(lambda: mails(box / "mail") == ["relay.test relays for strangers"])
                assert server.command("watch", "--last", check=False).returncode == 1
        with server.serving():
            done = server.command("watch", check=False)  # the tester is gone
            assert done.returncode == 3
            assert "no verdict" in done.stdout
            assert json.loads(server.command("watch", "--last", "--json", check=False).stdout)["verdict"] == "open"
