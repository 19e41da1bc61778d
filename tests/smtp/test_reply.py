"""Replies: printed so that nothing can be put into them, read so that nothing hostile gets out."""

import pytest

from posthouse.smtp.reply import Reply, ReplyError, ReplyReader, reply


def read(octets: bytes) -> Reply | None:
    reader = ReplyReader()
    reader.receive_data(octets)
    return reader.next_reply()


def test_a_reply_prints_its_code_on_every_line() -> None:
    assert reply(550, "5.7.1", "a", "b").encode() == b"550-5.7.1 a\r\n550 5.7.1 b\r\n"
    assert reply(250, "", "host", "SIZE 1").encode() == b"250-host\r\n250 SIZE 1\r\n"
    assert Reply(250, "2.0.0", ()).encode() == b"250 2.0.0 \r\n"


@pytest.mark.parametrize("text", ["a\r\n250 b", "a\nb", "a\rb", "a\0b", "a\x85b", "a\u2028b"])
def test_control_characters_in_the_text_are_not_printed(text: str) -> None:
    assert reply(550, "5.7.1", text).encode().count(b"?") in (1, 2)
    assert len(reply(550, "5.7.1", text).encode().splitlines()) == 1


def test_a_line_over_the_limit_is_continued_on_the_next() -> None:
    for text in ("x" * 2000, "ü" * 2000):
        octets = reply(550, "5.7.1", text).encode()
        assert all(len(line) <= 510 for line in octets.split(b"\r\n"))
        assert octets.decode().replace("550-5.7.1 ", "").replace("550 5.7.1 ", "").replace("\r\n", "") == text


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"250 OK\r\n", Reply(250, "", ("OK",))),
        (b"250\r\n", Reply(250, "", ("",))),
        (b"250 2.1.0 OK\n", Reply(250, "2.1.0", ("OK",))),
        (b"250 2.1.0\r\n", Reply(250, "2.1.0", ("",))),
        (b"250-2.1.0 a\r\n250 2.1.0 b\r\n", Reply(250, "2.1.0", ("a", "b"))),
        (b"250-2.1.0 a\r\n250 b\r\n", Reply(250, "2.1.0", ("a", "b"))),
        (b"250 5.1.0 odd\r\n", Reply(250, "", ("5.1.0 odd",))),
        (b"250 2.1.0x\r\n", Reply(250, "", ("2.1.0x",))),
        (b"250 a\x1b[31m\x00b\r\n", Reply(250, "", ("a?[31m?b",))),
        (b"250 a\rb\r\n", Reply(250, "", ("a?b",))),
        (b"250 \xff\r\n", Reply(250, "", ("\ufffd",))),
        ("250 ü\r\n".encode(), Reply(250, "", ("ü",))),
    ],
)
def test_these_are_replies(octets: bytes, expected: Reply) -> None:
    assert read(octets) == expected


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n", b"OK\r\n", b"25 OK\r\n", b"2500 OK\r\n", b"250_OK\r\n", b"150 OK\r\n", b"650 OK\r\n", b"290 OK\r\n", b" 250 OK\r\n",
        b"250-a\r\n251 b\r\n", b"250-a\r\nb\r\n", b"\x16\x03\x01\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"SSH-2.0-x\r\n",
    ],
)  # fmt: skip
def test_these_are_none(octets: bytes) -> None:
    with pytest.raises(ReplyError):
        read(octets)


def test_a_server_that_talks_on_is_cut() -> None:
    with pytest.raises(ReplyError):
        read(b"250-" + b"x" * 10_000)
    with pytest.raises(ReplyError):
        read(b"250-" + b"x" * 10_000 + b"\r\n250 y\r\n")
    with pytest.raises(ReplyError):
        read(b"250-x\r\n" * 10_000)
