"""The trace fields (RFC 5321 4.4, RFC 3848, RFC 6531)."""

import re
from datetime import UTC, datetime
from email import message_from_bytes
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.mail.envelope import Origin
from posthouse.mail.trace import (
    TraceWriter,
    date_time,
    delivered_to_field,
    mailbox_octets,
    protocol_keyword,
    return_path_field,
)
from posthouse.smtp.address import NULL_PATH, Path
from posthouse.smtp.event import Verb

NOW = 1_795_559_554_321  # Tue, 24 Nov 2026 22:32:34 UTC
BOB = Path(b"bob", "example.org")


def received_field(origin: Origin, queue_id: str, forward_path: Path | None = None) -> bytes:
    return TraceWriter("mx.example.org", origin).received(queue_id, NOW, forward_path)


@pytest.mark.parametrize(
    ("verb", "tls", "login", "smtputf8", "keyword"),
    [
        (Verb.HELO, False, False, False, "SMTP"),
        (Verb.HELO, True, False, False, "SMTP"),
        (Verb.EHLO, False, False, False, "ESMTP"),
        (Verb.EHLO, True, False, False, "ESMTPS"),
        (Verb.EHLO, False, True, False, "ESMTPA"),
        (Verb.EHLO, True, True, False, "ESMTPSA"),
        (Verb.LHLO, False, False, False, "LMTP"),
        (Verb.LHLO, True, True, False, "LMTPSA"),
        (Verb.EHLO, False, False, True, "UTF8SMTP"),
        (Verb.EHLO, True, True, True, "UTF8SMTPSA"),
        (Verb.LHLO, True, False, True, "UTF8LMTPS"),
    ],
)
def test_the_keyword_says_how_the_mail_came(verb: Verb, tls: bool, login: bool, smtputf8: bool, keyword: str) -> None:
    assert protocol_keyword(verb, tls=tls, login=login, smtputf8=smtputf8) == keyword


def test_received_of_a_client_with_tls_and_login_names_no_login() -> None:
    origin = Origin(
        "192.0.2.7", "ESMTPSA", hello_name="client.example.net", login="ann", tls="TLSv1.3 TLS_AES_256_GCM_SHA384"
    )
    assert received_field(origin, "1abc", BOB) == (
        b"Received: from client.example.net ([192.0.2.7])\r\n"
        b"\t(TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n"
        b"\tby mx.example.org with ESMTPSA id 1abc\r\n"
        b"\tfor <bob@example.org>;\r\n"
        b"\tTue, 24 Nov 2026 22:32:34 +0000\r\n"
    )


def test_received_of_several_recipients_names_none() -> None:
    field = received_field(Origin("2001:db8::7", "ESMTP", hello_name="[IPv6:2001:db8::7]"), "1")
    assert field == (
        b"Received: from [IPv6:2001:db8::7] ([IPv6:2001:db8::7])\r\n"
        b"\tby mx.example.org with ESMTP id 1;\r\n"
        b"\tTue, 24 Nov 2026 22:32:34 +0000\r\n"
    )


def test_received_of_a_local_user_names_the_uid() -> None:
    assert received_field(Origin("", "ESMTP", local_uid=1000), "1") == (
        b"Received: by mx.example.org (Posthouse, from userid 1000)\r\n\tid 1;\r\n\tTue, 24 Nov 2026 22:32:34 +0000\r\n"
    )


def test_received_of_our_own_notification_names_nobody() -> None:
    field = received_field(Origin("", "ESMTP"), "1", BOB)
    assert field == (
        b"Received: by mx.example.org (Posthouse)\r\n\tid 1\r\n\tfor <bob@example.org>;\r\n"
        b"\tTue, 24 Nov 2026 22:32:34 +0000\r\n"
    )


@given(st.text(max_size=400), st.text(max_size=60), st.binary(max_size=80))
def test_nothing_that_a_client_says_gets_out_of_its_place(hello_name: str, tls: str, local_part: bytes) -> None:
    origin = Origin("192.0.2.7", "UTF8SMTPS", hello_name=hello_name, tls=tls)
    field = received_field(origin, "1abc", Path(local_part, "example.org"))
    assert field.endswith(b"\r\n")
    lines = field[:-2].split(b"\r\n")
    assert lines[0].startswith(b"Received: from ")
    assert all(line.startswith(b"\t") for line in lines[1:])
    assert len(lines) <= 6
    assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", b"".join(lines))
    before_for = field[: field.index(b"\r\n\tby mx")]
    assert before_for.count(b"(") == before_for.count(b")") == 1 + bool(tls)
    assert b";" not in before_for
    parsed = message_from_bytes(field + b"\r\n")
    assert parsed.keys() == ["Received"]


def test_8bit_local_part_is_left_out_without_smtputf8() -> None:
    path = Path("jörg".encode(), "example.org")
    writer = TraceWriter("mx.example.org", Origin("192.0.2.7", "ESMTP", hello_name="a"))
    assert writer.received("1", NOW, path).isascii()
    writer = TraceWriter("mx.example.org", Origin("192.0.2.7", "UTF8SMTP", hello_name="a"))
    assert "for <jörg@example.org>;".encode() in writer.received("1", NOW, path)


@given(st.integers(0, 4_102_444_800))
def test_date_is_the_one_that_another_parser_reads(second: int) -> None:
    text = date_time(second * 1000 + 999).decode()
    assert parsedate_to_datetime(text).astimezone(UTC) == datetime.fromtimestamp(second, UTC)


@pytest.mark.parametrize(
    ("path", "octets"),
    [
        (BOB, b"bob@example.org"),
        (Path(b"a.b+c", "[192.0.2.1]"), b"a.b+c@[192.0.2.1]"),
        (Path(b"a b", "x.org"), b'"a b"@x.org'),
        (Path(b"a..b", "x.org"), b'"a..b"@x.org'),
        (Path(b'a"\\b', "x.org"), b'"a\\"\\\\b"@x.org'),
        (Path(b"a\r\nX: y", "x.org"), b'"a??X: y"@x.org'),
        (Path(b"postmaster", ""), b"postmaster"),
        (NULL_PATH, b""),
    ],
)
def test_mailbox_is_quoted_where_it_must_be(path: Path, octets: bytes) -> None:
    assert mailbox_octets(path) == octets


def test_fields_of_final_delivery() -> None:
    assert return_path_field(NULL_PATH) == b"Return-Path: <>\r\n"
    assert return_path_field(BOB) == b"Return-Path: <bob@example.org>\r\n"
    assert delivered_to_field(BOB) == b"Delivered-To: bob@example.org\r\n"
