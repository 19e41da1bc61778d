"""sendmail(1) by `posthouse sendmail`: what other programs give it, what the server gets, what the caller is told."""

import io
import os
import pwd
import re
import resource
import subprocess
import sys
import threading

import pytest
from aiosmtpd.controller import UnixSocketController
from aiosmtpd.smtp import SMTP

from posthouse.cli.sendmail import run
from posthouse.cli.sendmail.compose import Draft, read_until_dot
from posthouse.cli.sendmail.mailboxes import read_mailboxes

ME = pwd.getpwuid(os.getuid()).pw_name
MESSAGE = b"From: me@example.org\nTo: you@example.net\nSubject: hi\n\nhello\n.\nbeyond the dot\n"


class Receiver:
    """A server on the local socket that keeps what it gets; `answers` overrides replies by command."""

    def __init__(self):
        self.mails = []
        self.rcpt_answers = {}

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802 - the name that aiosmtpd calls
        answer = self.rcpt_answers.get(address)
        if answer:
            return answer
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.append(options)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        self.mails.append(envelope)
        return "250 2.0.0 taken as 7f3k"


class Controller(UnixSocketController):
    def factory(self):
        return SMTP(self.handler, enable_SMTPUTF8=True, hostname="mx.example.org", data_size_limit=1_000_000)


@pytest.fixture
def receiver(tmp_path):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (tmp_path / "posthouse.toml").write_text('hostname = "box.example.org"\ndata_dir = "data"\n[broken]\n')
    handler = Receiver()
    controller = Controller(handler, unix_socket=str(data_dir / "submit.sock"))
    controller.start()
    yield handler
    controller.stop()


@pytest.fixture
def send(tmp_path, monkeypatch):
    def send(*arguments, message=MESSAGE):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(message)))
        return run(["--config", str(tmp_path / "posthouse.toml"), *arguments])

    return send


def content(envelope):
    return envelope.content.replace(b"\r\n", b"\n")


def test_a_mail_goes_to_those_named_with_crlf_and_the_missing_fields(receiver, send):
    assert send("you@example.net", message=b"Subject: hi\n\nhello\n..two dots\n") == 0
    (mail,) = receiver.mails
    assert (mail.mail_from, mail.rcpt_tos) == (f"{ME}@box.example.org", ["you@example.net"])
    assert re.fullmatch(
        rb"Subject: hi\r\nFrom: [^\r]*<%s@box\.example\.org>\r\n"
        rb"Date: \w{3}, \d+ \w{3} \d{4} [\d:]{8} [+-]\d{4}\r\nMessage-ID: <\d+\.[0-9a-f]{16}@box\.example\.org>\r\n"
        rb"\r\nhello\r\n\.\.two dots\r\n" % ME.encode(),
        mail.content,
    )


def test_a_dot_ends_the_message_unless_told_otherwise(receiver, send):
    assert send("a@example.net") == send("-i", "a@example.net") == send("-oi", "a@example.net") == 0
    assert [b"beyond" in mail.content for mail in receiver.mails] == [False, True, True]


@pytest.mark.parametrize(
    ("octets", "left"),
    [
        (b"a\n.\nb", b"a\n"),
        (b"a\r\n.\r\nb", b"a\r\n"),
        (b"a\n.", b"a\n"),
        (b".\n", b""),
        (b"a\n..\n", b"a\n..\n"),
        (b"a\n.b\n", b"a\n.b\n"),
        (b"a\n.\r\nb\n.\n", b"a\n"),
    ],
)
def test_only_a_line_with_a_single_dot_ends_it(octets, left):
    assert read_until_dot(octets) == left


def test_recipients_come_from_the_header_and_bcc_is_taken_out(receiver, send):
    message = (
        b'To: "Doe, Jane" <jane@example.net>, friends: bob@example.net,\n  carl@example.net;\nCc: dora@example.net (Dora)\n'
        b"Bcc: secret@example.net,\n\tsecret2@example.net\nFrom: me@example.org\n\nbody\nBcc: not a field\n"
    )
    assert send("-t", "extra@example.net", message=message) == 0
    (mail,) = receiver.mails
    assert mail.rcpt_tos == [
        "extra@example.net",
        "jane@example.net",
        "bob@example.net",
        "carl@example.net",
        "dora@example.net",
        "secret@example.net",
        "secret2@example.net",
    ]
    assert b"secret" not in mail.content
    assert b"Bcc: not a field" in mail.content


def test_a_resent_message_goes_to_the_resent_fields_alone():
    draft = Draft(b"To: a@example.net\nResent-To: b@example.net\nResent-Bcc: c@example.net\n\nx\n")
    assert draft.recipients() == ["b@example.net", "c@example.net"]
    draft.drop_bcc()
    assert draft.header == b"To: a@example.net\r\nResent-To: b@example.net\r\n"


@pytest.mark.parametrize(
    ("text", "mailboxes"),
    [
        ("", []),
        ("a@x", ["a@x"]),
        ("a@x, b@x", ["a@x", "b@x"]),
        ("A <a@x>, <b@x>,, ", ["a@x", "b@x"]),
        ('"A, \\"B\\" <no@x>" <a@x>', ["a@x"]),
        ('"a b"@x', ['"a b"@x']),
        ("a@x (comment, (nested) \\) here), b@x", ["a@x", "b@x"]),
        ("undisclosed recipients:;", []),
        ("list: a@x, B <b@x>; c@x", ["a@x", "b@x", "c@x"]),
        ("<@relay.example:a@x>", ["a@x"]),
        ("root", ["root"]),
        ("=?utf-8?q?J=C3=BCrgen?= <j@bücher.example>", ["j@bücher.example"]),
    ],
)
def test_address_lists_are_read(text, mailboxes):
    assert read_mailboxes(text) == mailboxes


@pytest.mark.parametrize("text", ['"a@x', "a@x (b", "<a@x", "a@x b@x"])
def test_a_broken_address_list_is_an_error(text):
    with pytest.raises(ValueError, match=r"does not end|is not one address"):
        read_mailboxes(text)


@pytest.mark.parametrize(
    ("arguments", "sender"),
    [
        (["-f", "bounce@example.org"], "bounce@example.org"),
        (["-fbounce@example.org"], "bounce@example.org"),
        (["-r", "<bounce@example.org>"], "bounce@example.org"),
        (["-f", "root"], "root@box.example.org"),
        (["-f", "<>"], "<>"),
        (["-f", ""], "<>"),
    ],
)
def test_the_reverse_path_is_what_f_says(receiver, send, arguments, sender):
    assert send(*arguments, "a@example.net") == 0
    assert str(receiver.mails[0].mail_from) == sender


@pytest.mark.parametrize(
    "arguments",
    [
        ["-FCronDaemon", "-i", "-odi", "-oem", "-oi", "-t", "-f", "root"],  # cron
        ["-i", "-f", "me@example.org", "you@example.net"],  # git send-email
        ["-oem", "-oi", "-f", "me@example.org", "--", "you@example.net"],  # mutt
        ["-t", "-i"],  # PHP
        ["-ti"],
        [
            "-FJane Doe",
            "-oi",
            "-bm",
            "-t",
            "-B8BITMIME",
            "-L",
            "tag",
            "-X/dev/null",
            "-h0",
            "-Am",
            "-G",
            "-U",
            "-n",
            "-O",
            "x=y",
        ],
    ],
)
def test_what_known_programs_give_is_understood(receiver, send, arguments):
    assert send(*arguments) == 0
    assert receiver.mails[0].rcpt_tos == ["you@example.net"]


def test_a_bare_name_gets_our_host_name_and_postmaster_none(receiver, send):
    assert send("root", "postmaster", "root") == 0
    assert receiver.mails[0].rcpt_tos == ["root@box.example.org", "postmaster"]


def test_eight_bit_content_and_unicode_addresses_are_declared(receiver, send):
    assert send("jürgen@example.net", message="Subject: x\n\nGrüße\n".encode()) == 0
    assert {option.upper() for option in receiver.mails[0].mail_options} >= {"BODY=8BITMIME", "SMTPUTF8"}
    assert send("a@example.net", message=b"Subject: x\n\nplain\n") == 0
    assert "BODY=8BITMIME" not in receiver.mails[1].mail_options


def test_a_text_without_a_header_gets_one(receiver, send):
    assert send("a@example.net", message=b"disk is full\nplease help\n") == 0
    assert content(receiver.mails[0]).endswith(b"\n\ndisk is full\nplease help\n")
    assert send("a@example.net", message=b"From jane Mon Sep 1 2025\nSubject: x\nnot a field\n") == 0
    assert content(receiver.mails[1]).startswith(b"Subject: x\n")
    assert content(receiver.mails[1]).endswith(b"\n\nnot a field\n")


def test_bare_carriage_returns_become_line_ends(receiver, send):
    assert send("a@example.net", message=b"Subject: x\n\n 10%\r 20%\r\n") == 0
    assert receiver.mails[0].content.endswith(b"\r\n\r\n 10%\r\n 20%\r\n")


def test_a_name_that_is_not_ascii_is_encoded(receiver, send):
    assert send("-F", "Jürgen", "a@example.net", message=b"\nx\n") == 0
    assert b"From: =?utf-8?b?SsO8cmdlbg==?= <" in receiver.mails[0].content
    assert send("-F", "Doe, Jane", "a@example.net", message=b"\nx\n") == 0
    assert b'From: "Doe, Jane" <' in receiver.mails[1].content


def test_one_refused_recipient_means_nothing_is_sent(receiver, send, capsys):
    receiver.rcpt_answers = {"gone@example.net": "550 5.1.1 no such user here", "no@example.net": "550 5.7.1 no"}
    assert send("a@example.net", "gone@example.net") == 67
    assert "550 5.1.1 no such user here" in capsys.readouterr().err
    assert send("no@example.net") == 77
    receiver.rcpt_answers = {"later@example.net": "452 4.3.1 disk full"}
    assert send("later@example.net") == 75
    assert receiver.mails == []


def test_the_message_size_is_declared(receiver, send, capsys):
    assert send("a@example.net", message=b"Subject: big\n\n" + b"x" * 990 * 2000) == 65
    assert "552" in capsys.readouterr().err


def test_no_server_means_try_again(tmp_path, send, capsys):
    (tmp_path / "posthouse.toml").write_text('data_dir = "data"\n')
    assert send("a@example.net") == 75
    assert "no server answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 64, "no recipients"),
        (["-Z"], 64, "no option -Z"),
        (["--fast"], 64, "no option --fast"),
        (["-f"], 64, "-f needs a value"),
        (["-bd"], 64, "posthouse serve"),
        (["-bz"], 64, "no mode -bz"),
        (["-Nsometimes", "a@example.net"], 64, "-N is never"),
        (["-Rsome", "a@example.net"], 64, "-R is full or hdrs"),
        (["a@example.net>\r\nRCPT TO:<b@example.net"], 64, "not a mail address"),
        (["-f", "a b@x", "a@example.net"], 64, "not a mail address"),
        (["-t"], 65, "does not end"),
    ],
)
def test_a_wrong_call_is_refused_in_words(receiver, send, capsys, arguments, status, words):
    assert send(*arguments, message=b'To: "open\n\nx\n') == status
    assert words in capsys.readouterr().err
    assert receiver.mails == []


def test_a_wrong_configuration_is_78(tmp_path, send, capsys):
    (tmp_path / "posthouse.toml").write_text("data_dir = \n")
    assert send("a@example.net") == 78
    assert "posthouse.toml" in capsys.readouterr().err


def test_v_shows_the_dialogue(receiver, send, capsys):
    assert send("-v", "a@example.net") == 0
    shown = capsys.readouterr().err
    assert "-> RCPT TO:<a@example.net>" in shown
    assert "taken as 7f3k" in shown


def test_newaliases_says_where_aliases_are(send, capsys):
    assert send("-bi") == 0
    assert "posthouse reload" in capsys.readouterr().out


def posthouse(*arguments, name="posthouse", tmp_path, stdin=b"", **options):
    """The command as a process, called by `name`."""
    link = tmp_path / name
    if not link.exists():
        link.write_text(f"#!{sys.executable}\nfrom posthouse.cli import main\nmain()\n")
        link.chmod(0o755)
    return subprocess.run(
        [link, *arguments], input=stdin, capture_output=True, timeout=60, check=False, cwd=tmp_path, **options
    )


def test_called_as_sendmail_it_is_sendmail(receiver, tmp_path):
    done = posthouse("-i", "a@example.net", name="sendmail", tmp_path=tmp_path, stdin=b"Subject: x\n\nhi\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert receiver.mails[0].rcpt_tos == ["a@example.net"]
    assert b"newaliases" not in posthouse(name="newaliases", tmp_path=tmp_path).stdout


def test_bs_is_a_dialogue_on_standard_input_and_output(receiver, tmp_path):
    dialogue = b"EHLO me\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\nSubject: x\r\n\r\nhi\r\n.\r\nQUIT\r\n"
    done = posthouse("sendmail", "-bs", tmp_path=tmp_path, stdin=dialogue)
    assert done.returncode == 0
    assert done.stdout.startswith(b"220 ")
    assert done.stdout.rstrip().rsplit(b"\n", 1)[-1].startswith(b"221")
    assert receiver.mails[0].rcpt_tos == ["b@example.net"]


def test_bs_without_a_server_says_421(tmp_path):
    (tmp_path / "posthouse.toml").write_text('data_dir = "data"\n')
    done = posthouse("sendmail", "-bs", tmp_path=tmp_path)
    assert done.returncode == 75
    assert done.stdout.startswith(b"421 ")


def cpu_seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_nothing_heavy_is_loaded_and_the_start_is_quick(receiver, tmp_path):
    program = (
        "import sys; sys.argv[1:] = ['sendmail', 'a@example.net']\n"
        "from posthouse.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    took = []
    for _ in range(5):
        before = cpu_seconds_of_children()
        done = subprocess.run(
            [sys.executable, "-c", program], input=b"Subject: x\n\n", capture_output=True, check=True, cwd=tmp_path
        )
        took.append(cpu_seconds_of_children() - before)
    loaded = set(done.stdout.decode().split())
    assert not loaded & {
        "click",
        "rich",
        "msgspec",
        "dns",
        "uvloop",
        "asyncio",
        "structlog",
        "argon2",
        "sqlite3",
        "email",
    }
    assert min(took) < 0.150, took  # processor time: on a busy machine the clock on the wall tells of others


def test_a_server_that_hangs_up_means_nothing_was_sent(tmp_path, send, capsys):
    import socket

    (tmp_path / "data").mkdir()
    (tmp_path / "posthouse.toml").write_text('data_dir = "data"\n')
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "data" / "submit.sock"))
        listening.listen()

        def hang_up():
            peer = listening.accept()[0]
            peer.sendall(b"220 here\r\n")
            peer.recv(1000)
            peer.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert send("a@example.net") == 75
        thread.join()
    assert "nothing was sent" in capsys.readouterr().err
