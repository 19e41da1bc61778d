"""A case of the relay test as steps, for the self-test: the same steps against an engine in memory and over a socket.

A dialogue is a generator. It yields what is to happen next, and is sent the replies that came back; it knows neither
engine nor socket. The prober says the same cases to other people's servers, with patience that we need not have with
ourselves.
"""

from collections.abc import Generator

import msgspec

from posthouse.smtp.reply import Reply
from posthouse.tester.case import Case, Names, Way

PROXY_V2_HEADER = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"
    + bytes((127, 0, 0, 1, 127, 0, 0, 1))
    + (4242).to_bytes(2)
    + (25).to_bytes(2)
)
"""TCP over IPv4, from 127.0.0.1 (haproxy's proxy-protocol.txt, 2.2)."""

PROXY_V1_HEADER = b"PROXY TCP4 127.0.0.1 127.0.0.1 4242 25\r\n"
CONTENT = b"Subject: self-test\r\n\r\nThis must never arrive.\r\n"


class Say(msgspec.Struct, frozen=True):
    """Octets for the server; so many replies are due."""

    octets: bytes
    replies: int = 1


class StartTls(msgspec.Struct, frozen=True):
    """The handshake, after STARTTLS was answered with 220."""


Step = Say | StartTls
Dialogue = Generator[Step, tuple[Reply, ...], None]


def can_be_said(case: Case, offered: frozenset[str]) -> bool:
    """The listener offers what the case needs (keywords of EHLO in upper case)."""
    return not case.offered or case.offered in offered


def say_case(case: Case, names: Names, *, hello: str, with_content: bool) -> Dialogue:
    """From the greeting's answer to the case's end. Without content it ends at the recipient, so that nothing is accepted.

    `hello` is said first where the case's own name is another: a session that a server must know as its own test.
    """
    yield from _begin(case, names, hello)
    match case.way:
        case Way.AFTER_RSET:
            yield Say(_line(b"MAIL FROM:<>"))
            yield Say(_line(b"RCPT TO:<postmaster>"))
            yield Say(_line(b"RSET"))
        case Way.REFUSED_AUTH:
            replies = yield Say(_line(b"AUTH PLAIN"))
            if replies and replies[-1].code == 334:
                yield Say(_line(b"*"))
        case Way.XCLIENT:
            yield Say(_line(b"XCLIENT ADDR=127.0.0.1 NAME=localhost"))
    if case.way is Way.SMUGGLED:
        yield from _smuggle(case, names, with_content=with_content)
    else:
        yield from _transact(case, names, with_content=with_content)


def _begin(case: Case, names: Names, hello: str) -> Dialogue:
    if case.way is Way.PROXY_V1:
        yield Say(PROXY_V1_HEADER)
    if case.way is Way.PROXY_V2:
        yield Say(PROXY_V2_HEADER, 0)  # how many lines, and answers, its octets make is the server's to say
        yield Say(b"\r\n")
    if case.way is Way.NO_HELLO:
        return
    yield Say(_line(b"EHLO " + hello.encode()))
    if case.way is Way.STARTTLS:
        replies = yield Say(_line(b"STARTTLS"))
        if replies and replies[-1].code == 220:
            yield StartTls()
            yield Say(_line(b"EHLO " + hello.encode()))
    if case.way is Way.HELO:
        yield Say(_line(b"HELO " + names.tester_name.encode()))
    own_name = names.fill(case.hello)
    if case.way is Way.SECOND_EHLO or own_name != names.tester_name:
        yield Say(_line(b"EHLO " + own_name.encode()))


def _transact(case: Case, names: Names, *, with_content: bool) -> Dialogue:
    mail, rcpt = _line(case.mail_line(names)), _line(case.rcpt_line(names))
    if case.way is Way.PIPELINED:
        replies = yield Say(mail + rcpt + (_line(b"DATA") if with_content else b""), 3 if with_content else 2)
        if with_content and replies and replies[-1].code == 354:
            yield Say(CONTENT + b".\r\n")
        return
    yield Say(mail)
    if case.way is Way.SECOND_RECIPIENT:
        yield Say(_line(b"RCPT TO:<postmaster>"))
    yield Say(rcpt)
    if not with_content:
        return
    if case.way is Way.BDAT:
        yield Say(_line(f"BDAT {len(CONTENT)} LAST".encode()) + CONTENT)
        return
    replies = yield Say(_line(b"DATA"))
    if replies and replies[-1].code == 354:
        yield Say(CONTENT + b".\r\n")


def _smuggle(case: Case, names: Names, *, with_content: bool) -> Dialogue:
    """A mail to our own postmaster with the case behind a false end of data; whatever is answered to that is judged by what arrived."""
    if not with_content:
        return  # there is nothing to smuggle behind
    yield Say(_line(case.mail_line(names)))
    yield Say(_line(b"RCPT TO:<postmaster>"))
    replies = yield Say(_line(b"DATA"))
    if replies and replies[-1].code == 354:
        hidden = _line(case.mail_line(names)) + _line(case.rcpt_line(names)) + b"DATA\r\n" + CONTENT
        yield Say(CONTENT.removesuffix(b"\r\n") + case.ending.encode() + hidden + b".\r\n")


def _line(text: bytes) -> bytes:
    return text + b"\r\n"
