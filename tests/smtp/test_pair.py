"""Our client joined to our server, octets only: what one side says, the other side hears."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.smtp.address import NULL_PATH, POSTMASTER, Path
from posthouse.smtp.client import Answered, Asked, ClientConnection, ClientEvent
from posthouse.smtp.event import (
    BodyType,
    ContentComplete,
    ContentPiece,
    ContentWanted,
    Credentials,
    DotForm,
    Event,
    Greeted,
    MailFrom,
    MailParameters,
    Notify,
    QuitReceived,
    RcptParameters,
    RcptTo,
    Ret,
    TlsWanted,
    TransactionReset,
    Verb,
)
from posthouse.smtp.reply import CONTENT_WELCOME, Reply, reply
from posthouse.smtp.server import Dialect, ServerConnection, ServerSettings, Signal


class ConnectionPair:
    """A client and a server back to back. `answers` replies to the server's events; all else is positive."""

    def __init__(self, dialect: Dialect = Dialect.SMTP, **changes: object) -> None:
        self.server = ServerConnection(
            ServerSettings("mx.example.net", dialect=dialect, starttls=True, auth_mechanisms=("PLAIN", "LOGIN"),
                           auth_in_clear_allowed=True, **changes)  # type: ignore[arg-type]
        )  # fmt: skip
        self.client = ClientConnection(Verb.LHLO if dialect is Dialect.LMTP else Verb.EHLO)
        self.heard: list[Event] = []
        self.answers: dict[type[Event], list[Reply]] = {}
        self.server.greet()
        self.talk()
        self.client.hello("out.example.org")
        self.talk()

    def _answer(self, event: Event) -> Reply:
        waiting = self.answers.get(type(event))
        if waiting:
            return waiting.pop(0)
        if isinstance(event, ContentWanted):
            return CONTENT_WELCOME
        return reply(235, "2.7.0", "Welcome") if isinstance(event, Credentials) else reply(250, "2.0.0", "Ok")

    def talk(self) -> list[ClientEvent]:
        """Octets go to and fro until nobody has anything to say; what the client learned."""
        learned: list[ClientEvent] = []
        while True:
            octets = b"".join(self.client.data_to_send())
            self.server.receive_data(octets)
            while not isinstance(event := self.server.next_event(), Signal):
                self.heard.append(event)
                if event.needs_reply:
                    self.server.reply(self._answer(event))
            answer = self.server.data_to_send()
            learned += self.client.receive_data(answer)
            if not octets and not answer:
                return learned

    def heard_of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.heard if isinstance(event, kind)]


def codes(events: list[ClientEvent]) -> list[tuple[Asked, int]]:
    return [(event.asked, event.reply.code) for event in events if isinstance(event, Answered)]


def test_the_greeting_tells_both_sides_what_they_need() -> None:
    pair = ConnectionPair(size_limit=12345, rcpt_max=50)
    assert pair.heard == [Greeted(Verb.EHLO, "out.example.org")]
    offers = pair.client.offers
    assert offers.pipelining
    assert offers.dsn
    assert offers.smtputf8
    assert offers.starttls
    assert offers.auth == ("PLAIN", "LOGIN")
    assert offers.size_limit == 12345
    assert offers.limits.rcpt_max == 50


def test_two_messages_in_a_row_share_a_flight() -> None:
    pair = ConnectionPair()
    client = pair.client
    client.mail(Path(b"a", "example.org"))
    client.rcpt(Path(b"b", "example.net"))
    client.data()
    assert codes(pair.talk())[-1] == (Asked.DATA, 354)
    client.content((b"Subject: one\r\n\r\n.x\r\n",), DotForm.PLAIN)
    client.end_content()
    client.mail(NULL_PATH)
    client.rcpt(POSTMASTER)
    client.data()
    assert codes(pair.talk()) == [(Asked.CONTENT, 250), (Asked.MAIL, 250), (Asked.RCPT, 250), (Asked.DATA, 354)]
    client.end_content()
    client.quit()
    assert codes(pair.talk()) == [(Asked.CONTENT, 250), (Asked.QUIT, 221)]
    assert b"".join(e.data for e in pair.heard_of(ContentPiece)) == b"Subject: one\r\n\r\n..x\r\n"  # type: ignore[attr-defined]
    assert len(pair.heard_of(ContentComplete)) == 2
    assert pair.heard_of(QuitReceived)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_login_arrives_as_it_was_said(mechanism: str) -> None:
    pair = ConnectionPair()
    pair.client.auth(mechanism, "us\u00e9r", "pass word")
    assert codes(pair.talk()) == [(Asked.AUTH, 235)]
    (heard,) = pair.heard_of(Credentials)
    assert heard == Credentials(mechanism, "us\u00e9r", "pass word")


def test_starttls_is_understood_and_everything_is_said_again() -> None:
    pair = ConnectionPair()
    pair.client.starttls()
    assert codes(pair.talk()) == [(Asked.STARTTLS, 220)]
    assert pair.heard_of(TlsWanted)
    pair.server.tls_started()
    pair.client.tls_started()
    pair.client.hello("out.example.org")
    assert codes(pair.talk()) == [(Asked.HELLO, 250)]
    assert not pair.client.offers.starttls


def test_bdat_brings_the_plain_form() -> None:
    pair = ConnectionPair()
    client = pair.client
    client.mail(Path(b"a", "example.org"), MailParameters(body=BodyType.EIGHT_BIT_MIME))
    client.rcpt(Path(b"b", "example.net"))
    client.bdat(b"Subject: x\r\n\r\n.\r", is_last=False)
    client.bdat(b"\n.\xff\r\n", is_last=True)
    assert codes(pair.talk())[-2:] == [(Asked.BDAT, 250)] * 2
    (complete,) = pair.heard_of(ContentComplete)
    assert isinstance(complete, ContentComplete)
    assert complete.dots is DotForm.PLAIN
    assert complete.is_8bit
    assert b"".join(e.data for e in pair.heard_of(ContentPiece)) == b"Subject: x\r\n\r\n.\r\n.\xff\r\n"  # type: ignore[attr-defined]


def test_rset_forgets_the_transaction() -> None:
    pair = ConnectionPair()
    pair.client.mail(NULL_PATH)
    pair.client.rset()
    pair.client.mail(NULL_PATH)
    assert codes(pair.talk()) == [(Asked.MAIL, 250), (Asked.RSET, 250), (Asked.MAIL, 250)]
    assert pair.heard_of(TransactionReset)


def test_lmtp_recipients_are_answered_one_by_one() -> None:
    pair = ConnectionPair(Dialect.LMTP)
    client = pair.client
    pair.answers[RcptTo] = [reply(250, "2.1.5", "Ok"), reply(550, "5.1.1", "No"), reply(250, "2.1.5", "Ok")]
    client.mail(NULL_PATH)
    for name in (b"a", b"b", b"c"):
        client.rcpt(Path(name, "example.net"))
    client.data()
    pair.talk()
    client.end_content()
    assert client.owed == 2
    server = pair.server
    server.receive_data(b"".join(client.data_to_send()))
    while not isinstance(event := server.next_event(), ContentComplete):
        assert not isinstance(event, Signal)
    server.reply_each([reply(250, "2.0.0", "a"), reply(452, "4.2.2", "c is full")])
    assert codes(client.receive_data(server.data_to_send())) == [(Asked.CONTENT, 250), (Asked.CONTENT, 452)]


LOCAL_PARTS = st.one_of(
    st.text(string.ascii_letters + string.digits + "!#$%&'*+/=?^_`{|}~-", min_size=1, max_size=20),
    st.text(string.printable[:95], min_size=1, max_size=20),
    st.text(st.characters(min_codepoint=0x20, exclude_characters="\x7f", exclude_categories=("Cs", "Cc")), min_size=1, max_size=10),
).map(str.encode)  # fmt: skip
DOMAINS = st.sampled_from(
    ["example.net", "a.b-c.example", "xn--bcher-kva.example", "[192.0.2.1]", "[IPv6:2001:db8::1]"]
)
PATHS = st.builds(Path, LOCAL_PARTS, DOMAINS)
WORDS = st.text(string.printable[:94].replace(" ", ""), min_size=1, max_size=20)


@given(
    PATHS | st.just(NULL_PATH),
    PATHS | st.just(POSTMASTER),
    st.builds(
        MailParameters,
        st.integers(0, 10**9),
        st.sampled_from(BodyType),
        st.just(True),
        st.sampled_from(Ret),
        st.just("") | WORDS,
    ),
    st.builds(
        RcptParameters,
        st.sampled_from([Notify.DEFAULT, Notify.NEVER, Notify.SUCCESS | Notify.FAILURE, Notify.DELAY]),
        st.just("") | WORDS.map(lambda word: f"rfc822;{word}@example.org"),
    ),
)
def test_envelopes_arrive_as_they_were_said(
    reverse_path: Path, forward_path: Path, mail: MailParameters, rcpt: RcptParameters
) -> None:
    pair = ConnectionPair()
    pair.client.mail(reverse_path, mail)
    pair.client.rcpt(forward_path, rcpt, smtputf8=True)
    assert codes(pair.talk()) == [(Asked.MAIL, 250), (Asked.RCPT, 250)]
    assert pair.heard_of(MailFrom) == [MailFrom(reverse_path, mail)]
    assert pair.heard_of(RcptTo) == [RcptTo(forward_path, rcpt)]
