"""Bad input over real sockets, in the clear and under TLS: the right answer arrives, nothing is queued, nobody else is hurt."""

import statistics
import time
from collections.abc import Iterator

import pytest

from posthouse.net.connection import ServerProtocol
from posthouse.net.server import Timeouts
from posthouse.smtp.server import ServerSettings
from siege import BODY, LETTER, TO_ANYWHERE, Siege, Wire, besieged

SETTINGS = ServerSettings(
    "relay.test", size_limit=30_000_000, auth_mechanisms=("PLAIN", "LOGIN"), errors_slow=50, errors_close=100
)

SMUGGLED = (
    b"MAIL FROM:<evil@x.test>\r\nRCPT TO:<victim@far.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\nQUIT\r\n"
)

NOT_THE_END = {
    "LF.LF": b"\n.\n",
    "LF.CRLF": b"\n.\r\n",
    "CRLF.LF": b"\r\n.\n",
    "CR.CR": b"\r.\r",
    "CRLF.CR": b"\r\n.\r",
    "CR.CRLF": b"\r.\r\n",
    "LF.CR": b"\n.\r",
    "CR.LF": b"\r.\n",
    "CRLF.CRCRLF": b"\r\n.\r\r\n",
    "CRCRLF.CRLF": b"\r\r\n.\r\n",
    "LFCR.LFCR": b"\n\r.\n\r",
    "CR": b"a\rb",
    "LF": b"a\nb",
    "CRCRLF": b"a\r\r\nb",
    "NUL-LF.NUL-LF": b"\0\n.\0\n",
}


@pytest.fixture(scope="module", params=[False, True], ids=["clear", "tls"])
def siege(request: pytest.FixtureRequest) -> Iterator[Siege]:
    with besieged(under_tls=request.param, settings=SETTINGS, most_per_client=1000) as siege:
        yield siege


@pytest.mark.parametrize("at_once", [0, 1, 7], ids=["whole", "octet-by-octet", "by-sevens"])
@pytest.mark.parametrize("name", NOT_THE_END)
def test_what_only_looks_like_the_end_of_data_is_refused_and_the_refusal_arrives(
    siege: Siege, name: str, at_once: int
) -> None:
    """Also for a trusted client, which 127.0.0.1 is here."""
    wire = siege.wire()
    wire.ready_for_data()
    wire.send(b"Subject: x\r\n\r\nhello" + NOT_THE_END[name] + SMUGGLED, at_once)
    assert [reply[:9] for reply in wire.rest()] == ["550 5.5.2"]
    assert siege.contents == []


@pytest.mark.parametrize("name", NOT_THE_END)
def test_chunks_get_the_same(siege: Siege, name: str) -> None:
    wire = siege.wire()
    wire.hello()
    octets = b"Subject: x\r\n\r\nhello" + NOT_THE_END[name] + b"more\r\n"
    wire.send(TO_ANYWHERE + b"BDAT %d LAST\r\n" % len(octets) + octets + SMUGGLED)
    replies = wire.rest()
    assert [reply[:9] for reply in replies[2:]] == ["550 5.5.2"], replies
    assert siege.contents == []


def test_the_refusal_reaches_a_client_that_sends_its_whole_message_before_it_listens(siege: Siege) -> None:
    """A broken device: its bare line feed stands in the first line, and it looks at replies 20 MB later."""
    wire = siege.wire()
    wire.ready_for_data()
    wire.send(b"Subject: scan\n\n" + b"x" * 20_000_000 + b"\r\n.\r\n")
    assert [reply[:9] for reply in wire.rest()] == ["550 5.5.2"]
    assert siege.contents == []


@pytest.mark.slow
def test_a_client_that_never_stops_sending_after_the_refusal_is_cut(siege: Siege) -> None:
    wire = siege.wire()
    wire.ready_for_data()
    wire.send(b"Subject: scan\n")
    with pytest.raises(OSError):  # noqa: PT011 - a reset or a broken pipe, as the kernel likes
        wire.send(b"x" * 200_000_000)
    siege.until(lambda: not siege.served.server.connections, "the connection to be gone")


COMMANDS_AT_FAULT = {
    b"NOOP \x00": "50",
    b"MAIL FROM:<a\x00b@c.test>": "500 5.5.2",
    b"MAIL FROM:<\xc3\xa4@c.test>": "5",
    b"MAIL FROM:<\xff@c.test>": "5",
    b"\xff\xfe\xfd": "50",
    b"NOOP " + b"x" * 600: "500 5.5.2",
    b"NOOP " + b"x" * 60_000: "500 5.5.2",
    b"MAIL FROM:<a@b.test> FOO=bar": "555 5.5.4",
    b"MAIL FROM:<a@b.test> SIZE=x": "501 5.5.4",
    b"MAIL FROM:<a@b.test> SIZE=40000000": "552 5.3.4",
    b"MAIL FROM:<a@b.test> SIZE=1 SIZE=1": "501 5.5.4",
    b"MAIL FROM:<a@b.test> BODY=9BIT": "501 5.5.4",
    b"MAIL FROM:<a@b..test>": "501 5.1.7",
    b"MAIL FROM:<a@b.test": "501 5.",
    b"MAIL FROM:a b@c.test": "501 5.",
    b"MAIL FROM:<a@[300.1.1.1]>": "501 5.1.7",
    b"MAIL": "501",
    b"RCPT TO:<a@b.test>": "503 5.5.1",
    b"DATA": "503 5.5.1",
    b"DATA now": "501 5.5.4",
    b"BDAT": "501",
    b"BDAT x": "501",
    b"BDAT 1 FIRST": "501",
    b"BDAT 99999999999999999999999": "501",
    b"AUTH": "501",
    b"AUTH CRAM-MD5": "504 5.5.4",
    b"BOGUS": "500 5.5.",
    b"": "500 5.5.",
}


@pytest.mark.parametrize("line", COMMANDS_AT_FAULT, ids=lambda line: repr(line[:30]))
def test_a_command_at_fault_gets_its_answer_and_the_session_goes_on(siege: Siege, line: bytes) -> None:
    wire = siege.wire()
    wire.hello()
    answer = wire.say(line + b"\r\n")
    assert answer.startswith(COMMANDS_AT_FAULT[line]), answer
    assert answer[4:6] == "5.", "an enhanced code belongs to it"
    assert wire.is_open()
    wire.send(LETTER)
    assert [wire.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
    wire.close()


@pytest.mark.parametrize("line", [b"BDAT -1\r\n", b"BDAT 0x10\r\n", b"BDAT 5 LAST LAST\r\n"])
def test_a_bad_chunk_size_ends_its_message(siege: Siege, line: bytes) -> None:
    wire = siege.wire()
    wire.hello()
    wire.send(TO_ANYWHERE + b"BDAT 3\r\nabc" + line + b"BDAT 5 LAST\r\nabcd\n")
    replies = [wire.reply() for _ in range(5)]
    assert [reply[:3] for reply in replies[:3]] == ["250", "250", "250"]
    assert replies[3].startswith("501")
    assert replies[4].startswith("503"), "the rest of it is no message"
    assert wire.is_open()
    wire.close()


def test_a_bare_line_feed_ends_no_command(siege: Siege) -> None:
    wire = siege.wire()
    wire.hello()
    assert wire.say(b"NOOP\nMAIL FROM:<a@b.test>\r\n").startswith("500 5.5.2")
    assert wire.reply().startswith("500 5.5.2")
    assert wire.is_open()
    wire.close()


def test_a_line_without_end_is_not_kept(siege: Siege) -> None:
    wire = siege.wire()
    wire.hello()
    wire.send(b"x" * 1_000_000)
    assert [reply[:3] for reply in wire.rest()] == ["421"]


def test_a_header_over_its_limit_is_refused_and_the_session_goes_on(siege: Siege) -> None:
    wire = siege.wire()
    wire.ready_for_data()
    assert wire.say(b"X-Long: " + b"y" * 300_000 + b"\r\n\r\nbody\r\n.\r\n").startswith("552 5.3.4")
    assert wire.is_open()
    assert siege.contents == []
    wire.close()


def test_content_over_the_size_limit_is_swallowed_and_refused(siege: Siege) -> None:
    wire = siege.wire()
    wire.ready_for_data()
    wire.send(b"Subject: x\r\n\r\n" + b"0123456789abcde\r\n" * 2_000_000 + b".\r\n")
    assert wire.reply().startswith("552 5.3.4")
    assert wire.is_open()
    assert siege.contents == []
    wire.close()


def test_a_stranger_may_not_send_to_more_than_a_hundred(siege: Siege) -> None:
    wire = siege.wire("127.0.0.2")
    wire.hello()
    wire.send(b"MAIL FROM:<a@b.test>\r\n" + b"".join(b"RCPT TO:<b%d@here.test>\r\n" % n for n in range(105)))
    replies = [wire.reply()[:9] for _ in range(106)]
    assert replies == ["250 2.1.0"] + ["250 2.1.5"] * 100 + ["452 4.5.3"] * 5
    wire.close()


def test_long_lines_nul_and_eight_bits_of_content_pass_unchanged() -> None:
    with besieged(settings=SETTINGS) as siege:
        wire = siege.wire()
        wire.ready_for_data()
        body = b"Subject: x\r\n\r\n" + b"y" * 100_000 + b"\r\n\0\x80\xff\r\n"
        assert wire.say(body + b".\r\n").startswith("250")
        assert siege.contents == [body]


@pytest.mark.parametrize("at_once", [0, 1], ids=["whole", "octet-by-octet"])
@pytest.mark.parametrize("name", sorted(set(NOT_THE_END) - {"CRCRLF.CRLF"}))  # which does end with the one true end
def test_a_normalizing_listener_lets_no_bare_line_end_out(name: str, at_once: int) -> None:
    with besieged(settings=ServerSettings("relay.test", normalize=True)) as siege:
        wire = siege.wire()
        wire.ready_for_data()
        wire.send(b"Subject: x\r\n\r\nhello" + NOT_THE_END[name] + b"MAIL FROM:<evil@x.test>\r\nlast\r\n.\r\n", at_once)
        assert wire.reply().startswith("250"), "one message, to the one true end"
        assert wire.is_open()
        (content,) = siege.contents
        alone = content.replace(b"\r\n", b"")
        assert b"\r" not in alone
        assert b"\n" not in alone
        assert b"\r\n.\r\n" not in content
        assert content.endswith(b"last\r\n")


def test_errors_are_slowed_and_then_cut_under_tls_too() -> None:
    with besieged(under_tls=True, settings=ServerSettings("relay.test", errors_slow=2, errors_close=4)) as siege:
        wire = siege.wire()
        wire.hello()
        began = time.monotonic()
        replies = [wire.say("BOGUS")[:3] for _ in range(4)]
        assert replies == ["500", "500", "500", "421"]
        assert time.monotonic() - began > 0.9
        assert wire.rest() == []


def test_pipelined_errors_are_slowed_too_and_what_follows_the_last_is_not_done() -> None:
    with besieged(settings=ServerSettings("relay.test", errors_slow=2, errors_close=4)) as siege:
        wire = siege.wire()
        wire.hello()
        other = siege.wire()
        began = time.monotonic()
        wire.send(b"BOGUS\r\n" * 10 + LETTER + BODY + b".\r\n")
        other.hello()
        waited = time.monotonic() - began
        assert [reply[:3] for reply in wire.rest()] == ["500", "500", "500", "421"]
        assert time.monotonic() - began > max(0.9, waited), "only who errs is slowed"
        assert siege.contents == []


QUICK = Timeouts(command=1.0, content=1.2)

STALLS: dict[str, bytes] = {
    "before-ehlo": b"",
    "after-ehlo": b"EHLO c.test\r\n",
    "within-a-line": b"EHLO c.te",
    "after-mail": b"EHLO c.test\r\nMAIL FROM:<a@b.test>\r\n",
    "within-auth": b"EHLO c.test\r\nAUTH LOGIN\r\n",
    "in-content": b"EHLO c.test\r\n" + LETTER + b"Subject: x\r\n",
    "before-the-last-crlf": b"EHLO c.test\r\n" + LETTER + BODY + b".\r",
    "within-a-chunk": b"EHLO c.test\r\n" + TO_ANYWHERE + b"BDAT 100 LAST\r\nabc",
    "between-chunks": b"EHLO c.test\r\n" + TO_ANYWHERE + b"BDAT 3\r\nabc",
    "in-a-refused-chunk": b"EHLO c.test\r\nBDAT 1000000\r\nabc",
}


@pytest.mark.slow
def test_each_stall_and_each_drip_has_its_own_deadline_and_slows_nobody() -> None:
    stall_and_drip(QUICK)


@pytest.mark.slow
def test_control_a_server_whose_deadlines_begin_anew_with_each_octet_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = ServerProtocol.data_received

    def renewed(self: ServerProtocol, data: bytes) -> None:
        real(self, data)
        self._deadline = self._loop.time() + 3600

    monkeypatch.setattr(ServerProtocol, "data_received", renewed)
    with pytest.raises((AssertionError, TimeoutError)):
        stall_and_drip(QUICK)


def stall_and_drip(timeouts: Timeouts) -> None:
    """Clients that stop at every stage, or send an octet at a time: each is told that its time is over, others never wait."""
    with besieged(settings=SETTINGS, timeouts=timeouts) as siege:
        wires = {name: siege.wire() for name in STALLS}
        dripping = {f"dripping-{name}": siege.wire() for name in set(STALLS) - {"before-the-last-crlf"}}
        for name, start in STALLS.items():
            wires[name].send(start)
            if f"dripping-{name}" in dripping:
                dripping[f"dripping-{name}"].send(start)
        end = time.monotonic() + 3.5
        waits: list[float] = []
        quick = siege.wire("127.0.0.1")
        quick.hello()
        while time.monotonic() < end:
            for drip in dripping.values():
                try:
                    drip.send(b"x")
                except OSError:
                    continue
            began = time.monotonic()
            assert quick.is_open()
            waits.append(time.monotonic() - began)
            time.sleep(0.2)
        assert statistics.median(waits) < 1.0, waits  # the shortest deadline of a stall
        for name, wire in (wires | dripping).items():
            last = [reply[:9] for reply in wire.rest()][-1]
            assert last == "421 4.4.2", name
        quick.send(LETTER + BODY + b".\r\nQUIT\r\n")
        assert [reply[:3] for reply in quick.rest()] == ["250", "250", "354", "250", "221"]


def test_a_silent_tls_client_is_cut_before_and_after_its_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posthouse.net.connection.HANDSHAKE_SECONDS", 0.5)
    with besieged(under_tls=True, timeouts=QUICK) as siege:
        talking = siege.wire()
        silent = Wire(siege.port)
        half = Wire(siege.port)
        half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
        assert not silent.sock.recv(1)
        assert not half.sock.recv(1)
        assert talking.rest()[-1].startswith("421 4.4.2")
