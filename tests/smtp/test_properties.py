"""What holds for all octets: no cut changes anything, what is read can be printed, the short cut says what the grammar says."""

import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from posthouse.smtp.address import AddressError, Path, parse_domain, parse_mailbox
from posthouse.smtp.command import (
    Command,
    CommandError,
    Mail,
    Rcpt,
    parse_any_command,
    parse_command,
    parse_common_command,
)
from posthouse.smtp.content import END, ContentLimits, ContentReader, Fault, LineEndings
from posthouse.smtp.event import BodyType, DotForm, MailParameters, Notify, RcptParameters, Ret
from posthouse.smtp.extension import NO_OFFERS, Limits, Offers, parse_offers
from posthouse.smtp.parameter import decode_xtext, encode_xtext
from posthouse.smtp.reply import Reply, ReplyError, ReplyReader
from posthouse.smtp.server import ServerSettings
from smtp_talk import Talk, joined

MORE = int(os.environ.get("POSTHOUSE_MORE_EXAMPLES", "1"))
"""How many times the usual number of examples to try."""

ALL = Offers(pipelining=True, size=True, eight_bit_mime=True, smtputf8=True, chunking=True, dsn=True, auth=("PLAIN",))


def cut(octets: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({place % (len(octets) + 1) for place in cuts})
    for start, end in zip([0, *places], [*places, len(octets)], strict=True):
        yield octets[start:end]


# Sessions.

FRAGMENTS = [
    b"EHLO a\r\n", b"HELO a\r\n", b"LHLO a\r\n", b"MAIL FROM:<a@b>\r\n", b"MAIL FROM:<a@b> SIZE=9 BODY=8BITMIME\r\n",
    b"MAIL FROM:<>\r\n", b"RCPT TO:<c@d>\r\n", b"RCPT TO:<postmaster>\r\n", b"DATA\r\n", b"RSET\r\n", b"NOOP\r\n",
    b"BDAT 3\r\n", b"BDAT 3 LAST\r\n", b"BDAT 0 LAST\r\n", b"BDAT x\r\n", b"AUTH PLAIN AGEAYg==\r\n", b"AUTH LOGIN\r\n",
    b"QUIT\r\n", b"VRFY a\r\n", b"\r\n.\r\n", b".\r\n", b"\r\n", b"\n", b"\r", b".", b"text", b"\r\n..\r\n", b"\xc3\xbc", b"\x00",
    b"MAIL FROM:<\xc3\xbc@b> SMTPUTF8\r\n", b"Subject: x\r\n\r\n", b"x" * 300, b"NOOP " + b"x" * 600 + b"\r\n",
]  # fmt: skip
PROLOGUE = b"EHLO a\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
SMALL = ServerSettings(
    hostname="h",
    size_limit=40,
    header_limit=20,
    auth_mechanisms=("PLAIN", "LOGIN"),
    auth_in_clear_allowed=True,
    errors_close=8,
    small_chunks=3,
    rcpt_max=2,
)
SETTINGS = [
    SMALL,
    ServerSettings(hostname="h", size_limit=40, header_limit=20, normalize=True),
    ServerSettings(hostname="h", errors_close=50),
]


@pytest.mark.parametrize("sort", SETTINGS, ids=["small", "normalize", "large"])
@settings(max_examples=30 * MORE, deadline=None)
@given(
    parts=st.lists(st.sampled_from(FRAGMENTS), max_size=25),
    cuts=st.lists(st.integers(0, 5000), max_size=12),
    has_prologue=st.booleans(),
)
def test_no_cut_changes_replies_or_events(
    sort: ServerSettings, parts: list[bytes], cuts: list[int], has_prologue: bool
) -> None:
    octets = (PROLOGUE if has_prologue else b"") + b"".join(parts)
    whole, pieces, octet_by_octet = Talk(sort), Talk(sort), Talk(sort)
    whole.say(octets)
    pieces.say(*cut(octets, cuts))
    octet_by_octet.say(*(octets[at : at + 1] for at in range(len(octets))))
    for other in (pieces, octet_by_octet):
        assert other.sent == whole.sent
        assert joined(other.events) == joined(whole.events)
        assert other.engine.ending is whole.engine.ending
        assert other.is_closed == whole.is_closed


@settings(max_examples=40 * MORE, deadline=None)
@given(
    octets=st.binary(max_size=400),
    prologue=st.sampled_from([b"", PROLOGUE, PROLOGUE + b"DATA\r\n", PROLOGUE + b"BDAT 50\r\n"]),
)
def test_any_octets_get_only_whole_replies(octets: bytes, prologue: bytes) -> None:
    talk = Talk()
    talk.say(prologue, octets)
    assert re.fullmatch(rb"(?:[2-5][0-5][0-9][ -][^\r\n\x00]*\r\n)*", talk.sent)


# Content, against a reader that is as plain as can be.

CONTENT = st.lists(
    st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b"\xff", b"\r\n.\r\n", b"\r\n.", b"\n.", b"bcdef"]), max_size=40
).map(b"".join)


def plain_reading(octets: bytes) -> tuple[bytes, int] | None:
    """The content of DATA and where its end lies, by RFC 5321 alone."""
    if octets.startswith(b".\r\n"):
        return b"", 3
    end = octets.find(END)
    return None if end < 0 else (octets[: end + 2], end + 5)


def plain_normal_form(content: bytes) -> bytes:
    text = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = text.split(b"\n")
    return b"\r\n".join(b".." if line == b"." else line for line in lines)


def read(limits: ContentLimits, pieces: Iterator[bytes]) -> tuple[ContentReader, bytes, bytes]:
    """The reader, the content, and what stood behind it."""
    reader, content = ContentReader(limits), b""
    for piece in pieces:
        used = reader.read_until_end(piece, 0)
        content += reader.take_piece()
        if reader.ended:
            return reader, content, piece[used:] + b"".join(pieces)
        assert used == len(piece)
    return reader, content, b""


@settings(max_examples=80 * MORE, deadline=None)
@given(octets=CONTENT, cuts=st.lists(st.integers(0, 200), max_size=8), is_strict=st.booleans())
@example(octets=b"\r\n.\r\r\n.\r\n", cuts=[3, 4], is_strict=True)
def test_content_is_what_stands_before_the_first_crlf_dot_crlf(octets: bytes, cuts: list[int], is_strict: bool) -> None:
    limits = ContentLimits(line_endings=LineEndings.STRICT if is_strict else LineEndings.NORMALIZE)
    reader, content, rest = read(limits, cut(octets, cuts))
    expected = plain_reading(octets)
    assert reader.ended == (expected is not None)
    if expected is None:
        return
    wanted, end = expected
    assert rest == octets[end:]
    if is_strict and re.search(rb"\r(?!\n)|(?<!\r)\n", wanted):
        assert reader.fault is Fault.BARE_LINE_END
        return
    wanted = wanted if is_strict else plain_normal_form(wanted)
    assert not reader.fault
    assert content == wanted
    assert reader.size_bytes == len(wanted)
    assert reader.is_8bit == (not wanted.isascii())
    assert (reader.dots is DotForm.STUFFED) == (b"\r\n." in b"\r\n" + wanted)


@settings(max_examples=60 * MORE, deadline=None)
@given(octets=CONTENT, cuts=st.lists(st.integers(0, 200), max_size=8), is_chunked=st.booleans())
def test_normalized_content_holds_no_bare_line_end_and_no_second_end(
    octets: bytes, cuts: list[int], is_chunked: bool
) -> None:
    limits = ContentLimits(line_endings=LineEndings.NORMALIZE)
    if is_chunked:
        content = read_chunks(limits, cut(octets, cuts))[1]
    else:
        content = read(limits, cut(octets + END, cuts))[1]
        assert END not in b"\r\n" + content
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", content)
    assert not content or content.endswith(b"\r\n")


def read_chunks(limits: ContentLimits, pieces: Iterator[bytes]) -> tuple[ContentReader, bytes]:
    reader, content = ContentReader(limits, chunked=True), b""
    for piece in pieces:
        reader.read_chunk(piece)
        content += reader.take_piece()
    reader.finish()
    return reader, content + reader.take_piece()


@settings(max_examples=60 * MORE, deadline=None)
@given(octets=CONTENT, cuts=st.lists(st.integers(0, 200), max_size=8))
def test_chunks_are_taken_as_they_are(octets: bytes, cuts: list[int]) -> None:
    reader, content = read_chunks(ContentLimits(), cut(octets, cuts))
    if re.search(rb"\r(?!\n)|(?<!\r)\n", octets):
        assert reader.fault is Fault.BARE_LINE_END
        return
    assert content == (octets if octets.endswith(b"\r\n") or not octets else octets + b"\r\n")
    assert reader.size_bytes == len(content)
    assert (reader.dots is DotForm.PLAIN) == (b"\r\n." in b"\r\n" + content)


@settings(max_examples=60 * MORE, deadline=None)
@given(
    octets=CONTENT,
    cuts=st.lists(st.integers(0, 200), max_size=8),
    size=st.integers(0, 30),
    header=st.integers(0, 30),
    is_strict=st.booleans(),
)
def test_no_cut_changes_the_fault(octets: bytes, cuts: list[int], size: int, header: int, is_strict: bool) -> None:
    limits = ContentLimits(size, header, LineEndings.STRICT if is_strict else LineEndings.NORMALIZE)
    octets += END
    whole, pieces = read(limits, iter([octets])), read(limits, cut(octets, cuts))
    assert pieces[0].fault is whole[0].fault
    assert pieces[2] == whole[2]
    if not whole[0].fault:
        assert pieces[1] == whole[1]
    chunked, chunked_in_pieces = read_chunks(limits, iter([octets])), read_chunks(limits, cut(octets, cuts))
    assert chunked_in_pieces[0].fault is chunked[0].fault


# Addresses and commands.

PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
LOCAL_PARTS = st.text(st.one_of(PRINTABLE, st.sampled_from('äß中.@%!"\\')), min_size=1, max_size=20).map(str.encode)
DOMAINS = st.sampled_from(
    ["a", "b.example", "x-y.example.org", "[127.0.0.1]", "[IPv6:2001:db8::1]", "xn--bcher-kva.example", "_a.b_c.d"]
)
PATHS = st.builds(Path, LOCAL_PARTS, DOMAINS)
WORDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=12)
MAIL_PARAMETERS = st.builds(
    MailParameters,
    size_bytes=st.integers(0, 10**20 - 1),
    body=st.sampled_from(BodyType),
    smtputf8=st.just(True),
    ret=st.sampled_from(Ret),
    envelope_id=st.one_of(st.just(""), WORDS),
    auth=st.one_of(st.just(""), WORDS),
)
RCPT_PARAMETERS = st.builds(
    RcptParameters,
    notify=st.sampled_from(
        [Notify.DEFAULT, Notify.NEVER, Notify.SUCCESS, Notify.FAILURE | Notify.DELAY, Notify.SUCCESS | Notify.FAILURE]
    ),
    original_recipient=st.one_of(
        st.just(""),
        WORDS.map(lambda text: f"rfc822;{text}"),
        st.text("aü中+=\\{} @", min_size=1, max_size=12).map(lambda text: f"utf-8;{text}"),
    ),
)


@settings(max_examples=60 * MORE, deadline=None)
@given(path=PATHS)
def test_a_path_that_is_printed_reads_back_the_same(path: Path) -> None:
    assert parse_mailbox(path.encode()) == path


@settings(max_examples=40 * MORE, deadline=None)
@given(command=st.one_of(st.builds(Mail, PATHS, MAIL_PARAMETERS), st.builds(Rcpt, PATHS, RCPT_PARAMETERS)))
def test_a_command_that_is_printed_reads_back_the_same(command: Command) -> None:
    line = command.encode()
    assert line.endswith(b"\r\n")
    assert line.count(b"\n") == 1
    assert parse_command(line[:-2], ALL, smtputf8=True) == command


COMMAND_LIKE = st.lists(
    st.sampled_from(
        [b"MAIL FROM:", b"RCPT TO:", b"mail from:", b"<", b">", b"a", b"@", b"b", b".", b" ", b'"', b"\\", b"%", b"[127.0.0.1]",
         b"[IPv6:::1]", b"x" * 30, b"y" * 63 + b".", b"-", b"_", b"1", b" SIZE=", b" BODY=8BITMIME", b" BODY=7BIT", b",", b":",
         "ü".encode(), b" SMTPUTF8", b" NOTIFY=NEVER", b"postmaster", b"BDAT ", b"LAST", b"12", b"EHLO ", b"AUTH PLAIN ", b"\x00"]
    ),
    max_size=14,
).map(b"".join)  # fmt: skip
MAIL_LIKE = st.builds(
    lambda verb, inner, rest: verb + b"<" + inner + b">" + rest,
    st.sampled_from([b"MAIL FROM:", b"RCPT TO:"]),
    st.lists(st.sampled_from([b"a", b"@", b".", b"x" * 31, b"y" * 62, b"-", b"1", b"_", b"Z"]), max_size=12).map(
        b"".join
    ),
    st.sampled_from(
        [b"", b"", b" SIZE=12", b" SIZE=1 BODY=8BITMIME", b" BODY=8BITMIME", b" SIZE=", b" SIZE=123456789012345678901"]
    ),
)


@settings(max_examples=120 * MORE, deadline=None)
@given(line=st.one_of(MAIL_LIKE, COMMAND_LIKE), offers=st.sampled_from([ALL, NO_OFFERS]))
def test_the_short_cut_says_what_the_grammar_says(line: bytes, offers: Offers) -> None:
    short = parse_common_command(line, offers)
    if short is not None:
        assert parse_any_command(line, offers, smtputf8=False) == short


@settings(max_examples=120 * MORE, deadline=None)
@given(line=st.one_of(MAIL_LIKE, COMMAND_LIKE, st.binary(max_size=60)), smtputf8=st.booleans())
def test_whatever_is_read_can_be_printed_and_reads_back_the_same(line: bytes, smtputf8: bool) -> None:
    try:
        command = parse_command(line, ALL, smtputf8=smtputf8)
    except CommandError as error:
        assert error.reply.is_permanent  # noqa: PT017
        return
    printed = command.encode()
    assert printed.endswith(b"\r\n")
    assert b"\r" not in printed[:-2]
    assert b"\n" not in printed[:-2]
    assert parse_command(printed[:-2], ALL, smtputf8=smtputf8) == command


@settings(max_examples=80 * MORE, deadline=None)
@given(text=st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_octets_are_a_domain_in_normal_form_or_an_address_error(text: bytes) -> None:
    try:
        domain = parse_domain(text)
    except AddressError as error:
        assert error.enhanced == "5.1.3"  # noqa: PT017
        return
    assert parse_domain(domain.encode()) == domain
    assert domain.isascii()


@given(text=st.text(st.characters(codec="utf-8"), max_size=20))
def test_xtext_reads_back_the_same(text: str) -> None:
    assert decode_xtext(encode_xtext(text)) == text


# Replies and offers.

TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)
REPLIES = st.builds(
    Reply,
    st.integers(2, 5).flatmap(lambda first: st.integers(first * 100, first * 100 + 59)),
    st.just(""),
    st.lists(TEXT, min_size=1, max_size=5).map(tuple),
)


@settings(deadline=None)
@given(replies=st.lists(REPLIES, max_size=5), cuts=st.lists(st.integers(0, 500), max_size=8))
def test_replies_read_back_whole_however_they_are_cut(replies: list[Reply], cuts: list[int]) -> None:
    replies = [reply for reply in replies if not re.match(r"[245]\.\d+\.\d+( |$)", reply.lines[0])]
    reader, found = ReplyReader(), []
    for piece in cut(b"".join(reply.encode() for reply in replies), cuts):
        reader.receive_data(piece)
        while (reply := reader.next_reply()) is not None:
            found.append(reply)
    assert found == replies
    assert reader.is_between_replies


@given(octets=st.binary(max_size=200))
def test_any_octets_are_replies_or_a_reply_error(octets: bytes) -> None:
    reader = ReplyReader()
    reader.receive_data(octets)
    try:
        while (reply := reader.next_reply()) is not None:
            assert reply.text.isprintable() or "\ufffd" in reply.text or not reply.text.isascii()
    except ReplyError:
        pass


@given(
    offers=st.builds(
        Offers,
        pipelining=st.booleans(),
        size=st.just(True),
        size_limit=st.integers(0, 10**12),
        eight_bit_mime=st.booleans(),
        smtputf8=st.booleans(),
        chunking=st.booleans(),
        enhanced_status_codes=st.booleans(),
        dsn=st.booleans(),
        starttls=st.booleans(),
        auth=st.sampled_from([(), ("PLAIN",), ("PLAIN", "LOGIN")]),
        limits=st.builds(Limits, st.integers(0, 999999), st.integers(0, 999999), st.integers(0, 999999)),
    )
)
def test_offers_read_back_the_same(offers: Offers) -> None:
    assert parse_offers(Reply(250, "", ("host", *offers.lines()))) == offers
