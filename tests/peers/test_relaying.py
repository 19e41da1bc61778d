"""Mail from real clients through Posthouse to real servers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peer_programs import (
    environment,
    free_port,
    loopback_address,
    program,
    require_peer,
    run_client,
    server_directory,
    swaks,
    wait_until,
)
from peer_servers import (
    Arrived,
    NextHop,
    dovecot_lmtp,
    exim_next_hop,
    knot,
    postfix_client,
    postfix_next_hop,
)
from posthouse_server import ADDRESS, Posthouse, posthouse, quick_retries, route_to, write_certificate

pytestmark = pytest.mark.peer
DOMAINS = ["d.test", "src.test"]
REFUSED = {"refused@d.test": "550 5.1.1 no such user here"}


def to(server: NextHop, **options: str) -> str:
    return route_to(f"smtp://{server.address}:{server.port}", **options)


def send(server: Posthouse, *recipients: str, data: Path | None = None) -> None:
    """Hands in a mail with swaks: the octets of `data`, or a short one with the subject "hello"."""
    content = ("--data", f"@{data}") if data else ("--header", "Subject: hello")
    address = ("--server", ADDRESS, "--port", str(server.port))
    swaks(*address, "--from", "a@src.test", "--to", ",".join(recipients), *content)


def by_recipient(arrived: list[Arrived]) -> dict[str, Arrived]:
    return {one.forward_path: one for one in arrived}


def queue_is_empty(server: Posthouse) -> bool:
    return not server.json("queue", "list")["messages"]


@pytest.mark.parametrize("next_hop", [postfix_next_hop, exim_next_hop])
def test_a_mail_goes_from_swaks_through_us_to_a_real_server_untouched(next_hop, tmp_path: Path) -> None:
    body = "".join(
        f"{line}\n" for line in ["one", ".", "..two", ".three", "", "x" * 990, "tab\there", "ümlaut", " end "]
    )
    content = f"From: a@src.test\nTo: one@d.test\nSubject: untouched\nX-Odd:  spaces  \n\n{body}"
    mail = tmp_path / "mail"
    mail.write_text(content.removesuffix("\n"))  # swaks puts a line end there
    with next_hop(DOMAINS) as server, posthouse(to(server)) as relay:
        send(relay, "one@d.test", "two@d.test", data=mail)
        arrived = by_recipient(server.wait_for(2))
        assert sorted(arrived) == ["one@d.test", "two@d.test"]
        for one in arrived.values():
            assert one.reverse_path == "a@src.test"
            assert one.octets.replace(b"\r\n", b"\n").endswith(content.encode())
            received = one.message.get_all("Received")
            assert "by relay.test" in received[1]
            assert "127.0.0.1" in received[1]
        wait_until(lambda: queue_is_empty(relay), "an empty queue")


def test_a_large_mail_goes_through_whole(tmp_path: Path) -> None:
    mail = tmp_path / "mail"
    content = b"Subject: large\n\n" + b"".join(
        b"%08d %s\n" % (number, b"." * (number % 70)) for number in range(100_000)
    )
    mail.write_bytes(content.removesuffix(b"\n"))
    with (
        postfix_next_hop(DOMAINS, settings={"message_size_limit": "50000000"}) as server,
        posthouse(to(server)) as relay,
    ):
        send(relay, "one@d.test", data=mail)
        (one,) = server.wait_for(1)
        assert one.octets.endswith(content)


@pytest.mark.parametrize("implicit", [False, True])
def test_msmtp_logs_in_under_tls_and_may_relay_and_without_a_login_may_not(implicit: bool, tmp_path: Path) -> None:
    certificate, key, root = write_certificate(tmp_path)
    listener = f'role = "submission"\ntls = {{ certificate = "{certificate}", key = "{key}", implicit = {str(implicit).lower()} }}'
    with postfix_next_hop(DOMAINS) as server, posthouse(to(server), listener=listener) as relay:
        relay.command("user", "add", "jo", "--password-stdin", stdin="secret word\n")
        options = [
            *(f"--host={ADDRESS}", f"--port={relay.port}", "--tls=on", f"--tls-starttls={'off' if implicit else 'on'}"),
            *(f"--tls-trust-file={root}", "--from=jo@src.test"),
        ]
        mail = b"Subject: logged in\n\nhello\n"
        without = run_client("msmtp", "usr/bin/msmtp", *options, "one@d.test", stdin=mail, check=False)
        assert without.returncode != 0
        assert b"530" in without.stderr
        wrong = ["--auth=plain", "--user=jo", "--passwordeval=echo wrong"]
        refused = run_client("msmtp", "usr/bin/msmtp", *options, *wrong, "one@d.test", stdin=mail, check=False)
        assert b"535" in refused.stderr
        for mechanism in ("plain", "login"):
            right = [f"--auth={mechanism}", "--user=jo", "--passwordeval=echo secret word"]
            run_client("msmtp", "usr/bin/msmtp", *options, *right, "one@d.test", stdin=mail)
        arrived = server.wait_for(2)
        assert [one.message["Subject"] for one in arrived] == ["logged in", "logged in"]
        assert "SMTPSA id" in arrived[0].message.get_all("Received")[1]


def test_postfix_relays_through_us_and_hears_which_recipient_was_refused() -> None:
    settings = '[relay]\nrelay_domains = ["d.test"]\ntrusted_networks = []\n'
    with (
        postfix_next_hop(DOMAINS) as server,
        posthouse(settings + to(server)) as relay,
        postfix_client(ADDRESS, relay.port, {"bounce_queue_lifetime": "0"}) as client,
    ):
        client.send(
            "a@src.test", ["one@d.test", "two@d.test", "x@elsewhere.test"], b"Subject: many\n\n.dot\n", "-N", "failure"
        )
        arrived = by_recipient(server.wait_for(2))
        assert sorted(arrived) == ["one@d.test", "two@d.test"]
        assert arrived["one@d.test"].octets.endswith(b"\n.dot\n")
        wait_until(lambda: "status=bounced" in client.log(), "Postfix to note the refusal")
        assert "to=<x@elsewhere.test>" in client.log()
        assert "550 5.7.1" in client.log()


@pytest.mark.parametrize("next_hop", [postfix_next_hop, exim_next_hop])
def test_a_refused_recipient_is_reported_to_the_sender_and_the_others_get_their_mail(next_hop) -> None:
    with next_hop(DOMAINS, answers=REFUSED) as server, posthouse(to(server)) as relay:
        send(relay, "one@d.test", "refused@d.test")
        arrived = by_recipient(server.wait_for(2))
        assert sorted(arrived) == ["a@src.test", "one@d.test"]
        notice = arrived["a@src.test"]
        assert notice.reverse_path == ""
        report = notice.message
        assert report.get_content_type() == "multipart/report"
        assert report.get_param("report-type") == "delivery-status"
        text, status, original = report.iter_parts()
        assert "refused@d.test" in text.get_content()
        assert status.get_content_type() == "message/delivery-status"
        fields = status.as_string()
        assert "Action: failed" in fields
        assert "Status: 5.1.1" in fields
        assert "no such user here" in fields.replace("\n ", " ")
        assert original.get_content_type() in ("message/rfc822", "text/rfc822-headers")
        assert report["Auto-Submitted"] == "auto-replied"
        wait_until(lambda: queue_is_empty(relay), "an empty queue")


def test_mail_waits_while_the_next_hop_is_down_and_arrives_when_it_is_up() -> None:
    port = free_port()
    with posthouse(route_to(f"smtp://127.0.0.1:{port}") + quick_retries()) as relay:
        send(relay, "one@d.test")
        wait_until(lambda: relay.json("queue", "list")["messages"], "the message to wait")
        with postfix_next_hop(DOMAINS, port=port) as server:
            (one,) = server.wait_for(1)
            assert one.forward_path == "one@d.test"
        wait_until(lambda: queue_is_empty(relay), "an empty queue")


def test_the_second_next_hop_of_a_route_takes_what_the_first_cannot() -> None:
    with postfix_next_hop(DOMAINS) as server:
        hops = (f"smtp://127.0.0.1:{free_port()}", f"smtp://{server.address}:{server.port}")
        with posthouse(route_to(*hops)) as relay:
            send(relay, "one@d.test")
            server.wait_for(1)


def test_mail_deferred_by_the_next_hop_is_tried_again() -> None:
    with server_directory("answers") as directory:
        answers = directory / "answers"
        answers.write_text("/later/ 450 4.2.1 come again\n")
        settings = {"smtpd_recipient_restrictions": f"check_recipient_access regexp:{answers}, permit"}
        with postfix_next_hop(DOMAINS, settings=settings) as server, posthouse(to(server) + quick_retries()) as relay:
            send(relay, "later@d.test", "now@d.test")
            assert [one.forward_path for one in server.wait_for(1)] == ["now@d.test"]
            answers.write_text("")
            run_client("postfix", "usr/sbin/postfix", "reload", MAIL_CONFIG=str(server.directory / "etc"))
            assert sorted(by_recipient(server.wait_for(2))) == ["later@d.test", "now@d.test"]


@pytest.mark.parametrize("by_socket", [False, True])
def test_dovecot_answers_over_lmtp_for_each_recipient_and_each_gets_its_own_fate(by_socket: bool) -> None:
    with (
        dovecot_lmtp(["one", "two"], full=["full"]) as dovecot,
        postfix_next_hop(["src.test"]) as server,
    ):
        lmtp = f"lmtp://{dovecot.socket}" if by_socket else f"lmtp://{dovecot.address}:{dovecot.port}"
        settings = (
            f'[relay]\nlocal_domains = ["d.test"]\n{route_to(lmtp, domain="d.test")}{to(server, domain="src.test")}'
        )
        with posthouse(settings + quick_retries("1m")) as relay:
            send(relay, "one@d.test", "two@d.test", "nobody@d.test", "full@d.test")
            assert sorted(path.parent.parent.name for path in dovecot.mail.glob("*/new/*")) in (
                [],
                ["one"],
                ["one", "two"],
                ["two"],
            )
            delivered = dovecot.wait_for(2)
            assert all(one.message["Subject"] == "hello" for one in delivered)
            assert {one.reverse_path for one in delivered} == {"a@src.test"}
            (notice,) = server.wait_for(1)
            assert "Final-Recipient: rfc822;nobody@d.test" in notice.message.as_string().replace("; ", ";")
            assert "rfc822;full@d.test" not in notice.message.as_string().replace("; ", ";")
            (waiting,) = relay.json("queue", "list")["messages"]
            assert "full@d.test" in str(waiting)
            assert "one@d.test" not in str(waiting)


@contextmanager
def mail_exchanger(domains: list[str]) -> Iterator[NextHop]:
    """Postfix on port 25 of a loopback address of its own, as an MX record leads to."""
    with postfix_next_hop(domains, port=25, address=loopback_address()) as server:
        yield server


def test_mail_finds_its_way_by_the_mx_records_of_a_real_zone() -> None:
    with mail_exchanger(["ordered.z.test", "implicit.z.test", "src.test"]) as server:
        zone = f"""
ordered MX 10 down
ordered MX 20 up
down A {loopback_address()}
up A {server.address}
implicit A {server.address}
null MX 0 .
inside MX 10 secret
secret A 10.9.8.7
loop MX 10 relay.test.
"""
        with knot({"z.test": zone}) as names:
            settings = f"""
[resolver]
servers = ["{names.server}"]
{to(server, domain="src.test")}
{route_to("mx:", more='allow_networks = ["127.0.0.0/8"]')}
"""
            with posthouse(settings) as relay:
                send(relay, "one@ordered.z.test", "two@implicit.z.test")
                assert sorted(by_recipient(server.wait_for(2))) == ["one@ordered.z.test", "two@implicit.z.test"]
                for domain, status in {"null": "5.1.10", "gone": "5.1.2", "inside": "5.4.4", "loop": "5.4.6"}.items():
                    before = len(server.arrived())
                    send(relay, f"x@{domain}.z.test")
                    notice = server.wait_for(before + 1)[-1]
                    assert notice.reverse_path == ""
                    assert f"Status: {status}" in notice.message.as_string(), domain


def test_a_strangers_dns_does_not_lead_mail_into_our_own_network() -> None:
    with (
        mail_exchanger(["inside.z.test", "src.test"]) as server,
        knot({"z.test": f"inside A {server.address}"}) as names,
    ):
        settings = f'[resolver]\nservers = ["{names.server}"]\n{to(server, domain="src.test")}{route_to("mx:")}'
        with posthouse(settings) as relay:
            send(relay, "one@inside.z.test")
            (notice,) = server.wait_for(1)
            assert "allow_networks" in notice.message.as_string()


def sendmail_link(relay: Posthouse) -> Path:
    """A link by which Posthouse acts as sendmail; it finds the configuration in the directory it is called in."""
    link = relay.directory / "sendmail"
    link.symlink_to(Path(sys.executable).parent / "posthouse")
    return link


def test_mail_1_hands_over_through_posthouse_sendmail(tmp_path: Path) -> None:
    require_peer("mailx")
    with postfix_next_hop(DOMAINS) as server, posthouse(to(server)) as relay:
        settings = tmp_path / "mailrc"
        settings.write_text(f"set sendmail={sendmail_link(relay)}\n")
        variables = {**environment("mailx"), "MAILRC": str(settings), "USER": "root", "LOGNAME": "root"}
        command = [program("mailx", "usr/bin/bsd-mailx"), "-s", "from mail", "-r", "a@src.test", "one@d.test"]
        subprocess.run(
            command, input=b"hello\n.not the end\n", env=variables, cwd=relay.directory, check=True, timeout=30
        )
        (one,) = server.wait_for(1)
        assert one.message["Subject"] == "from mail"
        assert one.reverse_path == "a@src.test"
        assert ".not the end" in one.message.get_content()


def test_git_send_email_hands_over_through_posthouse_sendmail(tmp_path: Path) -> None:
    require_peer("git-email")
    with postfix_next_hop(DOMAINS) as server, posthouse(to(server)) as relay:
        link = sendmail_link(relay)
        patch = tmp_path / "0001-x.patch"
        patch.write_text(
            "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\n"
            "From: A <a@src.test>\nDate: Mon, 1 Jan 2024 00:00:00 +0000\nSubject: [PATCH] dots\n\n.a line\n---\n.\n-- \n2.39\n"
        )
        variables = {
            **environment("git-email"),
            "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"),
            "HOME": str(tmp_path),
        }
        (tmp_path / "gitconfig").write_text("[user]\nname = A\nemail = a@src.test\n")
        subprocess.run(["git", "init", "-q", str(relay.directory)], env=variables, check=True)
        options = [
            "--confirm=never",
            "--quiet",
            "--suppress-cc=all",
            "--from=a@src.test",
            "--to=one@d.test",
            f"--smtp-server={link}",
            "--envelope-sender=b@src.test",
        ]
        command = [program("git-email", "usr/lib/git-core/git-send-email"), *options, str(patch)]
        done = subprocess.run(
            command,
            env={**variables, "PATH": f"{variables['PATH']}:{os.environ['PATH']}"},
            cwd=relay.directory,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        (one,) = server.wait_for(1)
        assert one.message["Subject"] == "[PATCH] dots"
        assert one.reverse_path == "b@src.test"
        assert one.octets.endswith(b"\n---\n.\n-- \n2.39\n")
