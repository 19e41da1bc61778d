"""The client engine: commands to octets, replies to their commands, and servers that lie."""

import base64
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.smtp.address import NULL_PATH, Path
from posthouse.smtp.client import (
    Answered,
    Asked,
    ClientConnection,
    ClientEvent,
    ClientState,
    Farewell,
    ProtocolBroken,
    Timeout,
)
from posthouse.smtp.driving import LocalProtocolError
from posthouse.smtp.event import BodyType, DotForm, MailParameters, Notify, RcptParameters, Ret, Verb

ALL = "PIPELINING", "SIZE 1000000", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING", "AUTH PLAIN LOGIN", "STARTTLS"
SENDER = Path(b"sender", "example.org")
RECIPIENT = Path(b"user", "example.net")


def ehlo_reply(*offers: str) -> bytes:
    lines = ["mx.example.net", *offers]
    return "".join(f"250{'-' if i < len(lines) - 1 else ' '}{line}\r\n" for i, line in enumerate(lines)).encode()


def said(client: ClientConnection) -> bytes:
    return b"".join(client.data_to_send())


def greeted(*offers: str, dialect: Verb = Verb.EHLO) -> ClientConnection:
    client = ClientConnection(dialect)
    client.receive_data(b"220 mx.example.net ESMTP\r\n")
    client.hello("out.example.org")
    assert said(client) == f"{dialect} out.example.org\r\n".encode()
    client.receive_data(ehlo_reply(*offers))
    assert client.owed == 0
    return client


def codes(events: list[ClientEvent]) -> list[tuple[Asked, int]]:
    return [(event.asked, event.reply.code) for event in events if isinstance(event, Answered)]


def broken(events: list[ClientEvent]) -> str:
    assert isinstance(events[-1], ProtocolBroken), events
    return events[-1].words


def test_a_group_leaves_at_once_and_its_replies_find_their_commands() -> None:
    client = greeted(*ALL)
    client.mail(SENDER, MailParameters(size_bytes=42))
    client.rcpt(RECIPIENT)
    client.rcpt(Path(b"other", "example.net"))
    client.data()
    assert said(client) == (
        b"MAIL FROM:<sender@example.org> SIZE=42\r\n"
        b"RCPT TO:<user@example.net>\r\nRCPT TO:<other@example.net>\r\nDATA\r\n"
    )
    assert client.timeout is Timeout.MAIL
    events = client.receive_data(b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n550-5.1.1 No\r\n550 5.1.1 such user\r\n354 Go\r\n")
    assert codes(events) == [(Asked.MAIL, 250), (Asked.RCPT, 250), (Asked.RCPT, 550), (Asked.DATA, 354)]
    refusal = events[2]
    assert isinstance(refusal, Answered)
    assert (refusal.reply.enhanced, refusal.reply.lines) == ("5.1.1", ("No", "such user"))
    assert client.accepted_recipients == 1
    assert client.timeout is Timeout.CONTENT_BLOCK
    client.content((b"Subject: x\r\n", b"\r\n..\r\n"), DotForm.STUFFED)
    client.end_content()
    assert client.timeout is Timeout.CONTENT_END
    client.mail(NULL_PATH)
    assert said(client) == b"Subject: x\r\n\r\n..\r\n.\r\nMAIL FROM:<>\r\n"
    assert codes(client.receive_data(b"250 2.0.0 Ok\r\n250 Ok\r\n")) == [(Asked.CONTENT, 250), (Asked.MAIL, 250)]
    assert client.timeout is Timeout.NONE


def test_without_pipelining_one_command_waits_for_the_one_before() -> None:
    client = greeted("8BITMIME")
    client.mail(SENDER)
    with pytest.raises(LocalProtocolError):
        client.rcpt(RECIPIENT)
    client.receive_data(b"250 Ok\r\n")
    client.rcpt(RECIPIENT)


def test_nothing_follows_data_before_its_reply() -> None:
    client = greeted(*ALL)
    client.mail(SENDER)
    client.rcpt(RECIPIENT)
    client.data()
    with pytest.raises(LocalProtocolError):
        client.mail(SENDER)
    with pytest.raises(LocalProtocolError):
        client.content((b"x",), DotForm.NONE)


def test_parameters_leave_only_where_they_are_offered() -> None:
    asks = MailParameters(7, BodyType.SEVEN_BIT, smtputf8=False, ret=Ret.HEADERS, envelope_id="a+b")
    wants = RcptParameters(Notify.SUCCESS | Notify.DELAY, "rfc822;old=user@example.org")
    plain = greeted("PIPELINING")
    plain.mail(SENDER, asks)
    plain.rcpt(RECIPIENT, wants)
    assert said(plain) == b"MAIL FROM:<sender@example.org>\r\nRCPT TO:<user@example.net>\r\n"
    rich = greeted(*ALL)
    rich.mail(SENDER, asks)
    rich.rcpt(RECIPIENT, wants)
    assert said(rich) == (
        b"MAIL FROM:<sender@example.org> SIZE=7 RET=HDRS ENVID=a+2Bb\r\n"
        b"RCPT TO:<user@example.net> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;old+3Duser@example.org\r\n"
    )


def test_what_the_server_cannot_carry_is_not_said() -> None:
    client = greeted("PIPELINING")
    with pytest.raises(LocalProtocolError):
        client.mail(SENDER, MailParameters(smtputf8=True))
    with pytest.raises(LocalProtocolError):
        client.mail(SENDER, MailParameters(body=BodyType.EIGHT_BIT_MIME))
    with pytest.raises(LocalProtocolError):
        client.rcpt(Path("us\u00e9r".encode(), "example.net"))
    with pytest.raises(LocalProtocolError):
        client.bdat(b"x", is_last=True)
    assert said(client) == b""


def test_internationalised_paths_are_said_under_smtputf8() -> None:
    client = greeted(*ALL)
    client.mail(SENDER, MailParameters(smtputf8=True, body=BodyType.EIGHT_BIT_MIME))
    client.rcpt(Path("us\u00e9r".encode(), "xn--bcher-kva.example"), smtputf8=True)
    assert (
        said(client)
        == (
            "MAIL FROM:<sender@example.org> BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<us\u00e9r@xn--bcher-kva.example>\r\n"
        ).encode()
    )


@pytest.mark.parametrize(
    "path",
    [
        Path(b"a\r\nRCPT TO:<b", "example.net"),
        Path(b"a\nb", "example.net"),
        Path(b"a\0b", "example.net"),
        Path(b"a", "example.net>\r\nDATA"),
        Path(b"a", "example.net> NOTIFY=NEVER"),
        Path(b"a", "b c"),
        Path(b"a", "exampl\u00e9.net"),
    ],
)
def test_no_path_makes_a_second_command(path: Path) -> None:
    client = greeted(*ALL)
    with pytest.raises(LocalProtocolError):
        client.mail(path)
    with pytest.raises(LocalProtocolError):
        client.rcpt(path)
    assert said(client) == b""


@pytest.mark.parametrize("name", ["", "a b", "a\r\nMAIL FROM:<>", "ex\u00e9mple", "x" * 300])
def test_no_name_makes_a_second_command(name: str) -> None:
    client = ClientConnection()
    client.receive_data(b"220 mx\r\n")
    with pytest.raises(LocalProtocolError):
        client.hello(name)


def test_odd_local_parts_are_quoted_and_never_choose_a_route() -> None:
    client = greeted(*ALL)
    client.rcpt(Path(b'a "b"\\@c', "example.net"))
    client.rcpt(Path(b"user%other.example", "example.net"))
    client.rcpt(Path(b"postmaster", ""))
    assert said(client) == (
        b'RCPT TO:<"a \\"b\\"\\\\@c"@example.net>\r\nRCPT TO:<user%other.example@example.net>\r\nRCPT TO:<postmaster>\r\n'
    )


def test_verbatim_stays_one_line() -> None:
    client = greeted(*ALL)
    client.verbatim(b"MAIL FROM: <a@b@c>")
    assert said(client) == b"MAIL FROM: <a@b@c>\r\n"
    assert codes(client.receive_data(b"501 No\r\n")) == [(Asked.VERBATIM, 501)]
    for line in (b"a\r\nb", b"a\nb", b"a\rb", b"a\0b"):
        with pytest.raises(LocalProtocolError):
            client.verbatim(line)


def test_helo_follows_where_ehlo_is_not_known() -> None:
    client = ClientConnection()
    client.receive_data(b"220 old\r\n")
    client.hello("out.example.org")
    said(client)
    assert client.receive_data(b"500 What?\r\n") == []
    assert said(client) == b"HELO out.example.org\r\n"
    assert codes(client.receive_data(b"250-old\r\n250 PIPELINING\r\n")) == [(Asked.HELLO, 250)]
    assert not client.offers.pipelining
    client.mail(SENDER, MailParameters(size_bytes=5))
    assert said(client) == b"MAIL FROM:<sender@example.org>\r\n"


def test_a_refusal_of_helo_or_lhlo_is_an_answer() -> None:
    client = ClientConnection()
    client.receive_data(b"220 old\r\n")
    client.hello("out.example.org")
    client.receive_data(b"500 What?\r\n")
    assert codes(client.receive_data(b"550 No\r\n")) == [(Asked.HELLO, 550)]
    lmtp = ClientConnection(Verb.LHLO)
    lmtp.receive_data(b"220 lmtp\r\n")
    lmtp.hello("out.example.org")
    assert codes(lmtp.receive_data(b"500 What?\r\n")) == [(Asked.HELLO, 500)]


def test_lmtp_answers_once_for_each_accepted_recipient() -> None:
    client = greeted(*ALL, dialect=Verb.LHLO)
    client.mail(SENDER)
    for name in (b"a", b"b", b"c"):
        client.rcpt(Path(name, "example.net"))
    client.data()
    client.receive_data(b"250 Ok\r\n250 Ok\r\n550 No\r\n250 Ok\r\n354 Go\r\n")
    client.end_content()
    assert client.owed == 2
    events = client.receive_data(b"250 2.0.0 a\r\n452 4.2.2 full\r\n")
    assert codes(events) == [(Asked.CONTENT, 250), (Asked.CONTENT, 452)]
    assert "to nothing" in broken(client.receive_data(b"250 one more\r\n"))


def test_bdat_carries_its_octets_and_gets_a_reply_a_chunk() -> None:
    client = greeted(*ALL)
    client.mail(SENDER)
    client.rcpt(RECIPIENT)
    client.bdat(b"Subject: x\r\n\r\n", is_last=False)
    client.bdat(b".\r\n", is_last=True)
    assert said(client).endswith(b"BDAT 14\r\nSubject: x\r\n\r\nBDAT 3 LAST\r\n.\r\n")
    assert codes(client.receive_data(b"250 a\r\n250 b\r\n250 c\r\n250 d\r\n"))[2:] == [(Asked.BDAT, 250)] * 2


def test_login_by_plain_is_one_line() -> None:
    client = greeted(*ALL)
    client.auth("PLAIN", "user", "s\u00e9cret")
    expected = base64.b64encode("\0user\0s\u00e9cret".encode())
    assert said(client) == b"AUTH PLAIN " + expected + b"\r\n"
    assert codes(client.receive_data(b"235 2.7.0 Ok\r\n")) == [(Asked.AUTH, 235)]


def test_login_by_login_answers_two_challenges_and_no_third() -> None:
    client = greeted(*ALL)
    client.auth("LOGIN", "user", "secret")
    assert said(client) == b"AUTH LOGIN\r\n"
    assert client.receive_data(b"334 VXNlcm5hbWU6\r\n") == []
    assert said(client) == base64.b64encode(b"user") + b"\r\n"
    assert client.receive_data(b"334 UGFzc3dvcmQ6\r\n") == []
    assert said(client) == base64.b64encode(b"secret") + b"\r\n"
    assert "challenge" in broken(client.receive_data(b"334 more\r\n"))
    assert said(client) == b""


def test_a_nul_never_stands_in_a_login() -> None:
    client = greeted(*ALL)
    with pytest.raises(LocalProtocolError):
        client.auth("PLAIN", "user\0admin", "secret")
    with pytest.raises(LocalProtocolError):
        client.auth("CRAM-MD5", "user", "secret")


def test_starttls_forgets_what_was_offered_in_the_clear() -> None:
    client = greeted(*ALL)
    client.starttls()
    assert codes(client.receive_data(b"220 Go\r\n")) == [(Asked.STARTTLS, 220)]
    assert client.timeout is Timeout.TLS
    with pytest.raises(LocalProtocolError):
        client.mail(SENDER)
    client.tls_started()
    assert not client.offers.auth
    client.hello("out.example.org")
    client.receive_data(ehlo_reply("SIZE"))
    assert client.offers.size


@pytest.mark.parametrize("behind", [b"250 injected\r\n", b"2", b"\x16\x03", b"\r\n"])
def test_octets_behind_the_reply_to_starttls_end_it(behind: bytes) -> None:
    client = greeted(*ALL)
    client.starttls()
    assert "STARTTLS" in broken(client.receive_data(b"220 Go\r\n" + behind))
    assert client.receive_data(b"250 more\r\n") == []


def test_octets_in_the_clear_before_the_handshake_end_it() -> None:
    client = greeted(*ALL)
    client.starttls()
    client.receive_data(b"220 Go\r\n")
    assert "STARTTLS" in broken(client.receive_data(b"250 injected\r\n"))


def test_a_reply_to_nothing_ends_it_but_a_421_is_a_farewell() -> None:
    client = greeted(*ALL)
    (event,) = client.receive_data(b"421 4.3.2 going down\r\n")
    assert isinstance(event, Farewell)
    assert event.reply.code == 421
    assert "to nothing" in broken(greeted(*ALL).receive_data(b"250 surprise\r\n"))


def test_a_second_reply_to_the_greeting_ends_it() -> None:
    client = ClientConnection()
    events = client.receive_data(b"220 mx\r\n250 injected\r\n")
    assert codes(events) == [(Asked.GREETING, 220)]
    assert "to nothing" in broken(events)


@pytest.mark.parametrize(
    "octets",
    [
        b"hello\r\n",
        b"25\r\n",
        b"2500 x\r\n",
        b"150 x\r\n",
        b"650 x\r\n",
        b"\r\n",
        b"\xff\xfe\r\n",
        b"250-one\r\n251 two\r\n",
        b"250-one\r\n550 two\r\n",
        b"250-one\r\nnonsense\r\n",
        b"354 go\r\n",
        b"334 go\r\n",
        b"x" * 100_000,
        b"250-" + b"x" * 100_000,
        b"250-x\r\n" * 10_000,
    ],
)
def test_what_is_no_reply_to_mail_ends_it_and_nothing_after_it_counts(octets: bytes) -> None:
    client = greeted(*ALL)
    client.mail(SENDER)
    events = client.receive_data(octets)
    assert broken(events)
    assert len(events) == 1
    assert client.state is ClientState.BROKEN
    assert client.receive_data(b"250 sorry\r\n") == []


@pytest.mark.parametrize("code", [b"250", b"221", b"334"])
def test_only_354_lets_content_go(code: bytes) -> None:
    client = greeted(*ALL)
    client.mail(SENDER)
    client.rcpt(RECIPIENT)
    client.data()
    client.receive_data(b"250 Ok\r\n250 Ok\r\n")
    assert "fits no data" in broken(client.receive_data(code + b" Ok\r\n"))


def in_content() -> ClientConnection:
    client = greeted(*ALL)
    client.mail(SENDER)
    client.rcpt(RECIPIENT)
    client.data()
    client.receive_data(b"250 Ok\r\n250 Ok\r\n354 Go\r\n")
    return client


def test_acceptance_before_the_final_dot_is_a_lie() -> None:
    assert "before the end" in broken(in_content().receive_data(b"250 Queued already\r\n"))


def test_a_refusal_before_the_final_dot_counts() -> None:
    assert codes(in_content().receive_data(b"552 5.3.4 Too much\r\n")) == [(Asked.CONTENT, 552)]


@pytest.mark.parametrize(
    ("pieces", "dots", "expected"),
    [
        ((b".a\r\n", b".\r\n"), DotForm.PLAIN, b"..a\r\n..\r\n.\r\n"),
        ((b"a\r", b"\n.b\r\n"), DotForm.PLAIN, b"a\r\n..b\r\n.\r\n"),
        ((b"a\r\n", b".", b"\r\n"), DotForm.PLAIN, b"a\r\n..\r\n.\r\n"),
        ((b"a\r\n..b\r\n",), DotForm.STUFFED, b"a\r\n..b\r\n.\r\n"),
        ((b"a", b"", b"b"), DotForm.NONE, b"ab\r\n.\r\n"),
        ((b"a\r", b"\n"), DotForm.NONE, b"a\r\n.\r\n"),
        ((), DotForm.NONE, b".\r\n"),
    ],
)
def test_content_goes_as_data_wants_it(pieces: tuple[bytes, ...], dots: DotForm, expected: bytes) -> None:
    client = in_content()
    said(client)
    client.content(pieces, dots)
    client.end_content()
    assert said(client) == expected


_LINES = st.lists(st.sampled_from([b".", b"..", b"", b"a", b".a", b"a." * 3]), max_size=8).map(
    lambda ls: b"\r\n".join([*ls, b""])
)


@given(_LINES, st.lists(st.integers(0, 60), max_size=5))
def test_stuffing_is_the_same_however_the_content_is_cut(content: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    client = in_content()
    said(client)
    client.content([content[a:b] for a, b in itertools.pairwise(edges)], DotForm.PLAIN)
    client.end_content()
    octets = said(client)
    assert octets.endswith(b".\r\n")
    lines = octets[:-3].split(b"\r\n")
    assert b"\r\n".join(line.removeprefix(b".") for line in lines) == content
    assert all(line.startswith(b"..") for line in lines if line.startswith(b"."))


_REPLY_LINES = st.lists(
    st.sampled_from(
        [b"250 2.1.0 Ok\r\n", b"250-a\r\n", b"250 \r\n", b"250\r\n", b"250-2.1.0 a\r\n", b"550 5.1.1 no\r\n", b"354 go\r\n",
         b"421 bye\r\n", b"250 lf\n", b"550-x\r\n", b"junk\r\n", b"250 \xff\r\n", b"334 x\r\n", b"\r", b"\n", b"2"]
    ),
    max_size=12,
).map(b"".join)  # fmt: skip


@given(_REPLY_LINES, st.lists(st.integers(0, 120), max_size=6))
def test_any_split_of_the_same_octets_means_the_same(octets: bytes, cuts: list[int]) -> None:
    def hear(pieces: list[bytes]) -> tuple[list[ClientEvent], ClientState, int]:
        client = greeted(*ALL)
        client.mail(SENDER)
        client.rcpt(RECIPIENT)
        client.rcpt(RECIPIENT)
        client.data()
        events = [event for piece in pieces for event in client.receive_data(piece)]
        return events, client.state, client.accepted_recipients

    edges = [0, *sorted(cut for cut in cuts if cut < len(octets)), len(octets)]
    assert hear([octets]) == hear([octets[a:b] for a, b in itertools.pairwise(edges)])
    assert hear([octets]) == hear([octets[i : i + 1] for i in range(len(octets))])


@given(st.binary(max_size=200))
def test_no_octets_make_the_engine_fail(octets: bytes) -> None:
    client = greeted(*ALL)
    client.mail(SENDER)
    client.receive_data(octets)
    client.receive_data(octets)
