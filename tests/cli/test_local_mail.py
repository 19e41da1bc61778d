"""Mail from local users to a real server: sendmail(1) in front, the local socket, an account for the network."""

import os
import re
import smtplib
import time

import pytest

from posthouse_server import ADDRESS, configured

SETTINGS = """
[relay]
local_domains = ["example.org"]
trusted_networks = []
[[route]]
domain = "example.org"
to = "maildir:mail/{local_part}"
"""


def wait_for_mail(directory, count=1):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = sorted((directory / "new").glob("*")) if directory.exists() else []
        if len(found) >= count:
            return [path.read_text() for path in found]
        time.sleep(0.02)
    raise AssertionError(f"no mail in {directory}")


@pytest.fixture
def server():
    with configured(SETTINGS) as server, server.serving():
        yield server


def test_sendmail_hands_over_by_the_local_socket_which_knows_the_uid(server):
    message = "To: Ann <ann@example.org>\nBcc: bob@example.org\nSubject: grüße\n\nhello\n.dot\n"
    server.command("sendmail", "-t", "-i", "-F", "Cron", stdin=message)
    (mail,) = wait_for_mail(server.directory / "mail" / "ann")
    wait_for_mail(server.directory / "mail" / "bob")
    assert "bob@example.org" not in mail
    assert "\n\nhello\n.dot\n" in mail
    assert f"uid {os.getuid()}" in server.command("why", queue_id_of(mail)).stdout


def queue_id_of(mail):
    return re.search(r"\sid (\w+)", mail)[1]


def test_bs_speaks_smtp_with_the_server(server):
    done = server.command("sendmail", "-bs", stdin="EHLO me\r\nQUIT\r\n")
    assert done.stdout.startswith("220 relay.test")
    assert "\n221 " in done.stdout


def test_mailq_and_q_are_the_queue(server):
    assert server.command("sendmail", "-bp").returncode == 0
    assert server.command("sendmail", "-q").returncode == 0
    assert "reload" in server.command("sendmail", "-bi").stdout


def test_an_account_may_relay_and_a_changed_password_counts_at_once(server):
    server.command("user", "add", "jane", "--password-stdin", stdin="correct horse\n")
    with smtplib.SMTP(ADDRESS, server.port) as client:
        client.ehlo()
        assert client.rcpt("x@far.example")[0] == 503
        client.mail("jane@example.org")
        assert client.rcpt("x@far.example")[0] == 550
        client.rset()
        client.login("jane", "correct horse")
        client.mail("jane@example.org")
        assert client.rcpt("x@far.example")[0] == 250
    server.command("user", "passwd", "jane", "--password-stdin", stdin="battery staple\n")
    with smtplib.SMTP(ADDRESS, server.port) as client:
        client.ehlo()
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            client.login("jane", "correct horse")
        assert refused.value.smtp_code == 535
