"""`posthouse trace`: the decision, the route, and the next hop's own words."""

import json

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

from posthouse.cli.program import run


class NextHop:
    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802 - the name that aiosmtpd calls
        if address.startswith("gone@"):
            return "550 5.1.1 no such user here"
        if address.startswith("later@"):
            return "450 4.2.1 mailbox busy"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"


class Controlled(Controller):
    def _trigger_server(self):
        self.port = self.server.sockets[0].getsockname()[1]  # port 0 was asked for
        super()._trigger_server()

    def factory(self):
        return SMTP(
            self.handler,
            hostname="next.example",
            auth_require_tls=False,
            authenticator=lambda *_: AuthResult(success=True),
        )


@pytest.fixture
def trace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    controller = Controlled(NextHop(), hostname="127.0.0.1", port=0)
    controller.start()
    port = controller.port
    (tmp_path / "password").write_text("geheim\n")
    (tmp_path / "posthouse.toml").write_text(
        f"""
hostname = "mx.example.org"
data_dir = "data"
[relay]
local_domains = ["example.org"]
relay_domains = ["dept.example.org"]
trusted_networks = ["192.0.2.0/24"]
[aliases]
team = ["ann@example.org", "bob@dept.example.org"]
[[route]]
domain = "example.org"
to = "maildir:mail/{{local_part}}"
[[route]]
domain = "dept.example.org"
to = "smtp://127.0.0.1:{port}"
reverse_path = "{{local_part}}@out.example.org"
[[route]]
domain = "*"
to = ["smtp://127.0.0.1:1", "smtp://127.0.0.1:{port}"]
login = {{ user = "jane", password_file = "password" }}
"""
    )

    def trace(*words):
        status = run(["trace", *words])
        return status, capsys.readouterr().out

    yield trace
    controller.stop()


def test_each_step_is_told(trace):
    status, shown = trace("someone@far.example", "--client", "192.0.2.7")
    assert status == 0
    assert "the client is in the trusted network 192.0.2.0/24" in shown
    assert "* goes to smtp://127.0.0.1:1, then smtp://127.0.0.1:" in shown
    assert "login jane" in shown


def test_a_stranger_is_refused_with_the_reply_he_would_get(trace):
    status, shown = trace("someone@far.example", "--client", "198.51.100.1")
    assert status == 1
    assert "550 5.7.1" in shown
    assert "relay-denied" in shown


def test_local_delivery_and_aliases_are_followed(trace, tmp_path):
    status, shown = trace("team@example.org", "--client", "198.51.100.1")
    assert status == 0
    assert f"the Maildir {tmp_path}/mail/ann" in shown
    assert "leads to bob@dept.example.org" in shown


def test_a_local_users_mail_to_this_host_follows_the_alias_and_a_strangers_is_refused(trace):
    status, shown = trace("team@mx.example.org")
    assert status == 0
    assert "leads to ann@example.org" in shown
    status, shown = trace("team@mx.example.org", "--client", "198.51.100.1")
    assert status == 1
    assert "relay-denied" in shown


def test_connect_shows_the_dialogue_as_far_as_rcpt(trace):
    status, shown = trace("ann@dept.example.org", "--connect", "--from", "me@example.org")
    assert status == 0
    dialogue = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    assert dialogue[0].startswith("-- connecting to 127.0.0.1 [127.0.0.1]:")
    assert [line for line in dialogue if line.startswith("->")] == [
        "-> EHLO mx.example.org",
        "-> MAIL FROM:<me@out.example.org>",
        "-> RCPT TO:<ann@dept.example.org>",
        "-> RSET",
        "-> QUIT",
    ]
    assert "<- 250 2.1.5 OK" in dialogue


def test_the_next_hop_decides_and_the_password_is_not_shown(trace):
    status, shown = trace("gone@far.example", "--connect")
    assert status == 1
    assert "connecting to 127.0.0.1 [127.0.0.1]:1" in shown
    assert "connection refused" in shown
    assert "-> AUTH PLAIN (not shown)" in shown
    assert "answers 550 5.1.1 no such user here" in shown
    assert trace("later@far.example", "--connect")[0] == 3


def test_json_has_steps_and_dialogue(trace):
    status, shown = trace("gone@dept.example.org", "--connect", "--json")
    answer = json.loads(shown)
    assert status == 1
    assert answer["verdict"] == "refused"
    assert [step["step"] for step in answer["steps"]] == [
        "configuration",
        "client",
        "decision",
        "route",
        "next-hop",
        "tls",
        "manner",
        "dialogue",
    ]
    assert "<- 550 5.1.1 no such user here" in answer["dialogue"]


def test_relay_off_is_seen(trace, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "relay-state").write_text("off\n")
    status, shown = trace("someone@far.example")
    assert status == 3
    assert "relaying is off" in shown


@pytest.mark.parametrize("words", [["no domain"], ["a@b", "--from", "x"], ["a@b", "--client", "x"]])
def test_a_wrong_call_is_2(trace, words):
    assert trace(*words)[0] == 2


def test_the_configuration_and_the_relay_option_are_named_as_they_are(trace, tmp_path):
    status, shown = trace("someone@far.example", "--client", "192.0.2.7")
    assert shown.splitlines()[0].split() == ["configuration", str(tmp_path / "posthouse.toml")]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "relay-state").write_text("off\n")
    status, shown = trace("someone@far.example", "--client", "192.0.2.7")
    assert (status, "relaying is off" in shown) == (3, True)
    (tmp_path / "data" / "relay-state").unlink()
    (tmp_path / "data" / "relay-state").mkdir()
    status, shown = trace("someone@far.example", "--client", "192.0.2.7")
    assert status == 0
    assert "relay-state can't be read; what follows holds if relaying is on" in shown
    assert "relaying is off" not in shown


def test_relay_status_that_cannot_be_read_is_no_verdict(tmp_path, capsys):
    (tmp_path / "data" / "relay-state").mkdir(parents=True)
    config = tmp_path / "posthouse.toml"
    config.write_text('data_dir = "data"\n')
    assert run(["relay", "status", "--config", str(config)]) == 3
    assert "relay-state can't be read" in capsys.readouterr().err
