"""A transcript shows the dialogue and keeps secrets."""

from posthouse.net.transcript import Transcript


def test_lines_are_joined_however_octets_are_cut():
    transcript = Transcript()
    for octets in (b"220 he", b"re\r", b"\n250-a\r\n250 b\r\n"):
        transcript.received(octets)
    transcript.sent(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")
    assert transcript.lines == ["<- 220 here", "<- 250-a", "<- 250 b", "-> MAIL FROM:<a@b>", "-> RCPT TO:<c@d>"]


def test_passwords_are_not_shown():
    transcript = Transcript()
    transcript.sent(b"AUTH PLAIN AHVzZXIAc2VjcmV0\r\n")
    transcript.received(b"235 ok\r\n")
    transcript.sent(b"auth LOGIN\r\n")
    transcript.received(b"334 VXNlcm5hbWU6\r\n")
    transcript.sent(b"dXNlcg==\r\n")
    transcript.received(b"334 UGFzc3dvcmQ6\r\n")
    transcript.sent(b"c2VjcmV0\r\n")
    transcript.received(b"535 no\r\n")
    transcript.sent(b"QUIT\r\n")
    ours = [line for line in transcript.lines if line.startswith("->")]
    assert ours == ["-> AUTH PLAIN (not shown)", "-> AUTH LOGIN", "-> (not shown)", "-> (not shown)", "-> QUIT"]


def test_a_server_cannot_move_the_cursor():
    transcript = Transcript()
    transcript.received(b"220 \x1b[2Jhi\x07 \xff\r\n")
    assert transcript.lines == ["<- 220 \\x1b[2Jhi\\x07 \\xff"]
