"""What the server engine tells its driver: when to wait, how long, how to end; and what it keeps to itself."""

import pytest

from posthouse.smtp.event import (
    CommandRefused,
    ContentBroken,
    ContentComplete,
    ContentPiece,
    ContentWanted,
    Credentials,
    Event,
    MailFrom,
    QuitReceived,
    RcptTo,
)
from posthouse.smtp.reply import CONTENT_WELCOME, Reply, reply
from posthouse.smtp.server import (
    CLOSED,
    NEED_DATA,
    PAUSED,
    Dialect,
    Ending,
    LocalProtocolError,
    ServerConnection,
    ServerSettings,
    Timeout,
)
from smtp_talk import SETTINGS, Talk, agree, lines

OK = reply(250, "2.0.0", "OK")
MAIL_AND_RCPT = lines("EHLO a", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")


def engine_with(octets: bytes, settings: ServerSettings = SETTINGS) -> ServerConnection:
    engine = ServerConnection(settings)
    engine.greet()
    engine.data_to_send()
    engine.receive_data(octets)
    return engine


def next_of(engine: ServerConnection, kind: type[Event]) -> Event:
    """The next event of a kind, all before it agreed to."""
    while True:
        event = engine.next_event()
        assert isinstance(event, Event), event
        if type(event) is kind:
            return event
        if event.needs_reply:
            engine.reply(agree(event))


def test_nothing_is_parsed_while_a_reply_is_owed() -> None:
    engine = engine_with(MAIL_AND_RCPT)
    next_of(engine, MailFrom)
    waiting = engine.buffered_bytes
    assert waiting == len(b"RCPT TO:<c@d.example>\r\n")
    assert engine.next_event() is PAUSED
    assert engine.next_event() is PAUSED
    assert engine.buffered_bytes == waiting
    engine.reply(OK)
    assert isinstance(engine.next_event(), RcptTo)


def test_replies_of_a_flight_are_gathered_until_data_is_needed() -> None:
    engine = engine_with(MAIL_AND_RCPT + lines("NOOP", "VRFY x"))
    while (event := engine.next_event()) is not NEED_DATA:
        if event.needs_reply:
            engine.reply(OK)
    assert engine.data_to_send().count(b"\r\n250 ") + 1 == 5
    assert engine.data_to_send() == b""


def test_a_reply_that_nobody_asked_for_is_a_bug() -> None:
    engine = engine_with(b"")
    with pytest.raises(LocalProtocolError):
        engine.reply(OK)
    with pytest.raises(LocalProtocolError):
        engine.reply_each([OK])


def test_lmtp_wants_a_reply_for_each_recipient() -> None:
    settings = ServerSettings(hostname="h", dialect=Dialect.LMTP)
    engine = engine_with(
        lines("LHLO a", "MAIL FROM:<>", "RCPT TO:<a@b>", "RCPT TO:<c@d>", "DATA", "text", "."), settings
    )
    next_of(engine, ContentComplete)
    with pytest.raises(LocalProtocolError):
        engine.reply_each([OK])
    engine.data_to_send()
    engine.reply_each([OK, reply(452, "4.2.2", "Mailbox full")])
    assert engine.data_to_send() == b"250 2.0.0 OK\r\n452 4.2.2 Mailbox full\r\n"


def test_the_timeout_says_what_is_awaited_and_its_mark_moves_only_with_progress() -> None:
    talk = Talk()
    engine = talk.engine
    assert engine.timeout is Timeout.COMMAND
    mark = engine.timer_mark
    for octet in b"EHLO a.example\r":
        talk.say(bytes([octet]))
        assert engine.timer_mark == mark
    talk.say(b"\n")
    assert engine.timer_mark != mark
    talk.say(MAIL_AND_RCPT[8:], b"DATA\r\n")
    assert engine.timeout is Timeout.CONTENT
    mark = engine.timer_mark
    for _ in range(1000):
        talk.say(b"x")
    assert engine.timer_mark == mark
    talk.say(b"x" * 4096)
    assert engine.timer_mark != mark
    talk.say(b"\r\n.\r\n")
    assert engine.timeout is Timeout.COMMAND


def test_no_timeout_runs_while_we_owe_the_reply() -> None:
    engine = engine_with(MAIL_AND_RCPT)
    next_of(engine, MailFrom)
    assert engine.timeout is Timeout.NONE


def test_a_handshake_has_its_own_timeout_and_pauses_the_engine() -> None:
    talk = Talk(ServerSettings(hostname="h", starttls=True))
    talk.say(lines("EHLO a", "STARTTLS", "NOOP"))
    assert talk.engine.timeout is Timeout.HANDSHAKE
    assert talk.engine.next_event() is PAUSED
    talk.engine.receive_data(b"NOOP\r\n")
    assert talk.engine.buffered_bytes == 0
    talk.engine.tls_started()
    assert talk.engine.next_event() is NEED_DATA


def test_tls_from_the_first_octet_comes_before_the_greeting() -> None:
    engine = ServerConnection(ServerSettings(hostname="h", starttls=True, auth_mechanisms=("PLAIN",)))
    assert engine.next_event() is PAUSED
    engine.tls_started()
    engine.greet()
    engine.receive_data(b"EHLO a\r\n")
    engine.next_event()
    answer = engine.data_to_send()
    assert b"AUTH PLAIN" in answer
    assert b"STARTTLS" not in answer


def test_a_login_is_forgotten_when_tls_starts() -> None:
    talk = Talk(ServerSettings(hostname="h", starttls=True, auth_mechanisms=("PLAIN",), auth_in_clear_allowed=True))
    talk.say(lines("EHLO a", "AUTH PLAIN AGEAYg==", "STARTTLS"))
    talk.engine.tls_started()
    assert talk.codes(lines("EHLO a", "AUTH PLAIN AGEAYg==")) == [250, 235]


def test_loopback_may_log_in_in_the_clear() -> None:
    talk = Talk(ServerSettings(hostname="h", auth_mechanisms=("PLAIN",)))
    assert talk.codes(lines("EHLO a", "AUTH PLAIN AGEAYg==")) == [250, 538]
    talk.engine.allow_auth_in_clear(allowed=True)
    assert talk.codes(lines("EHLO a", "AUTH PLAIN AGEAYg==")) == [250, 235]


def test_a_refused_greeting_leaves_only_quit() -> None:
    talk = Talk(greet=False)
    talk.engine.greet(reply(554, "5.7.1", "Not you"))
    assert talk.engine.data_to_send() == b"554 5.7.1 Not you\r\n"
    assert talk.codes(lines("EHLO a", "MAIL FROM:<>", "BDAT x", "BDAT 6", "QUIT") + lines("RSET", "BOGUS", "QUIT")) == [
        503, 503, 503, 503, 503, 503, 221,
    ]  # fmt: skip


def test_a_greeting_of_421_closes() -> None:
    talk = Talk(greet=False)
    talk.engine.greet(reply(421, "4.3.2", "Too many connections"))
    assert talk.engine.next_event() is CLOSED
    assert talk.engine.ending is Ending.DRAIN


def test_what_came_before_the_end_of_the_stream_is_still_answered() -> None:
    talk = Talk()
    talk.engine.receive_data(lines("EHLO a", "NOOP") + b"NOO")
    answer = talk.end_of_file()
    assert answer.count("\r\n250 ") == 2
    assert talk.is_closed
    assert talk.engine.ending is Ending.CLOSE


def test_nothing_is_believed_that_comes_behind_the_end_of_the_stream() -> None:
    """TLS's close_notify within a chunk, then octets in the clear (CVE-2026-45185): the chunk stays unfinished."""
    talk = Talk()
    talk.say(MAIL_AND_RCPT, b"BDAT 10 LAST\r\n12345")
    talk.end_of_file()
    assert talk.say(b"67890", lines("NOOP")) == ""
    assert talk.is_closed
    assert not talk.of(ContentComplete)


def test_a_reply_may_come_after_the_end_of_the_stream() -> None:
    engine = engine_with(MAIL_AND_RCPT + lines("DATA", "text", "."))
    next_of(engine, ContentComplete)
    engine.receive_eof()
    assert engine.next_event() is PAUSED
    engine.reply(OK)
    assert engine.next_event() is CLOSED
    assert engine.data_to_send().endswith(b"250 2.0.0 OK\r\n")


def test_content_without_an_end_is_never_complete() -> None:
    talk = Talk()
    talk.say(MAIL_AND_RCPT, lines("DATA", "text"))
    talk.end_of_file()
    assert not talk.of(ContentComplete)
    assert talk.is_closed


def test_the_driver_may_cut_at_any_time() -> None:
    engine = engine_with(MAIL_AND_RCPT)
    next_of(engine, MailFrom)
    engine.cut(reply(421, "4.4.2", "You were silent for too long"))
    assert engine.next_event() is CLOSED
    assert engine.ending is Ending.DRAIN
    assert engine.data_to_send().endswith(b"421 4.4.2 You were silent for too long\r\n")
    engine.cut(reply(421, "4.4.2", "Again"))
    assert engine.data_to_send() == b""


def test_idle_means_that_a_421_costs_nobody_anything() -> None:
    talk = Talk()
    assert talk.engine.is_idle
    talk.say(lines("EHLO a"))
    assert talk.engine.is_idle
    talk.say(lines("MAIL FROM:<>"))
    assert not talk.engine.is_idle
    talk.say(lines("RSET"))
    assert talk.engine.is_idle


def test_quit_closes_without_draining() -> None:
    talk = Talk()
    talk.say(lines("QUIT"))
    assert talk.is_closed
    assert talk.engine.ending is Ending.CLOSE
    assert talk.of(QuitReceived)


def test_answers_to_errors_come_slower_and_at_last_not_at_all() -> None:
    talk = Talk(ServerSettings(hostname="h", errors_slow=2, errors_close=5))
    engine = talk.engine
    delays = []
    for _ in range(5):
        engine.receive_data(b"BOGUS\r\n")
        engine.next_event()
        delays.append(engine.delay)
        engine.delay_is_over()
        last = engine.data_to_send()
    assert delays[:2] == [0, 0]
    assert all(delay > 0 for delay in delays[2:])
    assert last.startswith(b"421 4.7.0")
    assert engine.next_event() is CLOSED


def test_errors_count_anew_after_an_accepted_message() -> None:
    talk = Talk(ServerSettings(hostname="h", errors_slow=3, errors_close=3))
    talk.say(lines("EHLO a"))
    for _ in range(3):
        talk.say(lines("BOGUS", "BOGUS", "MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", "text", "."))
    assert not talk.is_closed
    talk.say(lines("BOGUS", "BOGUS", "BOGUS"))
    assert talk.is_closed


def test_what_is_pipelined_behind_a_refused_mail_is_no_error() -> None:
    def refuse(event: Event) -> Reply:
        return reply(550, "5.7.1", "No") if isinstance(event, MailFrom) else agree(event)

    talk = Talk(ServerSettings(hostname="h", errors_slow=3, errors_close=3), refuse)
    talk.say(lines("EHLO a", "MAIL FROM:<>", *["RCPT TO:<a@b>"] * 50, "DATA"))
    assert not talk.is_closed
    assert talk.engine.delay == 0


def test_very_many_refused_recipients_end_the_session() -> None:
    def refuse(event: Event) -> Reply:
        return reply(550, "5.1.1", "No such mailbox") if isinstance(event, RcptTo) else agree(event)

    talk = Talk(ServerSettings(hostname="h", refusals_close=30), refuse)
    codes = talk.codes(lines("EHLO a", "MAIL FROM:<>", *["RCPT TO:<a@b>"] * 50))
    assert codes == [250, 250, *[550] * 30, 421]


def test_very_many_idle_commands_are_errors() -> None:
    talk = Talk(ServerSettings(hostname="h", idle_commands=10, errors_close=5))
    codes = talk.codes(lines("EHLO a", *["NOOP"] * 50))
    assert len(codes) < 20
    assert codes[-1] == 421


@pytest.mark.parametrize(
    "said",
    [
        [b"AUTH PLAIN c2VjcmV0c2VjcmV0\r\n"],
        [b"AUTH PLAIN c2VjcmV0c2VjcmV0!\r\n"],
        [b"AUTH PLAIN " + b"c2VjcmV0" * 2000 + b"\r\n"],
        [b"AUTH CRAM-MD5 c2VjcmV0c2VjcmV0\r\n"],
        [b"AUTH LOGIN\r\n", b"c2VjcmV0c2VjcmV0!\r\n"],
        [b"AUTH LOGIN\r\n", b"c2VjcmV0\r\n", b"c2VjcmV0c2VjcmV0!\r\n"],
        [b"AUTH LOGIN\r\n", b"c2VjcmV0" * 2000 + b"\r\n"],
        [b"AUTH PLAIN c2VjcmV0c2VjcmV0\n"],
    ],
)
@pytest.mark.parametrize("greeting", [b"EHLO a\r\n", b""])
def test_no_event_but_credentials_holds_a_password(said: list[bytes], greeting: bytes) -> None:
    talk = Talk()
    talk.say(greeting, *said)
    assert talk.of(CommandRefused) or talk.of(Credentials)
    for event in talk.of(CommandRefused):
        assert b"c2Vj" not in event.command, event


def test_content_that_comes_octet_by_octet_is_gathered() -> None:
    talk = Talk()
    talk.say(MAIL_AND_RCPT, b"DATA\r\n")
    body = b"Subject: x\r\n\r\n" + b"text of a line\r\n" * 3000
    talk.say(*(body[at : at + 1] for at in range(len(body))), b".\r\n")
    assert talk.content == body
    assert len(talk.of(ContentPiece)) <= 4


def test_a_small_message_is_one_piece() -> None:
    talk = Talk()
    talk.say(MAIL_AND_RCPT, b"DATA\r\n", b"Subject: x\r\n\r\ntext\r\n.\r\n")
    assert [event.data for event in talk.of(ContentPiece)] == [b"Subject: x\r\n\r\ntext\r\n"]
    assert talk.of(ContentComplete) == [ContentComplete(20, 0, False)]


def test_content_behind_data_in_the_same_flight_is_content() -> None:
    talk = Talk()
    talk.say(MAIL_AND_RCPT + lines("DATA", "text", ".") + lines("MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", "more", "."))
    assert talk.content == b"text\r\nmore\r\n"


def test_memory_stays_bounded_while_a_refused_content_is_swallowed() -> None:
    talk = Talk(ServerSettings(hostname="h", size_limit=1000))
    talk.say(MAIL_AND_RCPT, b"DATA\r\n")
    for _ in range(100):
        talk.say(b"x" * 65536)
    assert talk.of(ContentBroken)
    assert talk.engine.buffered_bytes <= 4
    assert talk.codes(b"\r\n.\r\n") == [552]


def test_many_small_chunks_make_few_pieces() -> None:
    talk = Talk()
    talk.say(MAIL_AND_RCPT)
    for _ in range(900):
        talk.say(b"BDAT 16\r\ntext of a line\r\n")
    talk.say(b"BDAT 0 LAST\r\n")
    assert talk.content == b"text of a line\r\n" * 900
    assert len(talk.of(ContentPiece)) == 1


def test_content_wanted_tells_the_declared_size() -> None:
    talk = Talk()
    talk.say(lines("EHLO a", "MAIL FROM:<> SIZE=1234", "RCPT TO:<a@b>", "DATA"))
    assert talk.of(ContentWanted) == [ContentWanted(1234)]


def test_a_reply_cannot_carry_a_second_one() -> None:
    def inject(event: Event) -> Reply:
        return Reply(550, "5.7.1", ("No\r\n250 2.0.0 yes",)) if isinstance(event, MailFrom) else agree(event)

    talk = Talk(answer=inject)
    assert talk.codes(lines("EHLO a", "MAIL FROM:<>")) == [250, 550]


def test_a_refused_chunk_ends_the_transaction_for_the_handler_too() -> None:
    talk = Talk(ServerSettings(hostname="h", size_limit=100))
    talk.say(MAIL_AND_RCPT, b"BDAT 101\r\n" + b"x" * 101)
    kinds = [type(event).__name__ for event in talk.events]
    assert kinds[-2:] == ["CommandRefused", "TransactionReset"]
    assert talk.codes(lines("RCPT TO:<a@b>")) == [503]


def test_welcome_is_the_354() -> None:
    assert CONTENT_WELCOME.code == 354
