"""`posthouse init`: a file that is proved before it is written, and never overwrites."""

import io
import stat
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from posthouse.cli.program import run
from posthouse.config import load_config, load_text
from posthouse.config.compose import Wishes, compose_config
from posthouse.policy.gateways import Gateway
from posthouse.serve.machine import Surroundings


@pytest.fixture
def init(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def init(*words, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        return run(["init", *words])

    return init


def test_without_wishes_it_means_the_embedded_default(init, capsys):
    assert init("--yes") == 0
    assert "posthouse serve" in capsys.readouterr().out
    written, default = load_config(), load_text("", Path("posthouse.toml").absolute())
    assert (written.listeners, written.relay, written.routes) == (default.listeners, default.relay, default.routes)
    assert sorted(path.name for path in Path().iterdir()) == ["posthouse.toml"]


def test_every_wish_is_in_the_file(init):
    words = (
        "--hostname mx.example.org --data-dir data --postmaster me@example.org --listen 127.0.0.1:2626 --listen [::1]:2626 "
        "--trust 192.0.2.0/24 --gateway-as-stranger 192.0.2.1 --local-domain example.org --local-domain example.net "
        "--relay-domain dept.example.org --relay-to smtp://192.0.2.9:25 --smart-host smart.example.net:587 "
        "--smart-host-user me --smart-host-password-stdin --config etc/mine.toml"
    )
    assert init(*words.split(), stdin='pass "word\n') == 0
    config = load_config(Path("etc/mine.toml"))
    directory = Path("etc").absolute()
    assert (config.hostname, config.data_dir, config.postmaster) == (
        "mx.example.org",
        directory / "data",
        "me@example.org",
    )
    assert [listener.host for listener in config.listeners] == ["127.0.0.1", "::1"]
    assert config.relay.trusted_networks == ("127.0.0.1", "::1", "192.0.2.0/24")
    assert config.relay.gateways_as_strangers == ("192.0.2.1",)
    assert config.relay.local_domains == ("example.org", "example.net")
    assert [(route.domain, route.to) for route in config.routes] == [
        (("example.org", "example.net"), (f"maildir:{directory}/data/mail/{{local_part}}",)),
        (("dept.example.org",), ("smtp://192.0.2.9:25",)),
        (("*",), ("smtp://smart.example.net:587",)),
    ]
    login = config.routes[2].login
    assert login.user == "me"
    assert login.password_file.read_text() == 'pass "word\n'
    assert stat.S_IMODE(login.password_file.stat().st_mode) == 0o600


def test_what_is_there_is_not_overwritten(init, capsys):
    Path("posthouse.toml").write_text("# mine\n")
    assert init("--yes") == 2
    assert "exists already" in capsys.readouterr().err
    assert Path("posthouse.toml").read_text() == "# mine\n"


def test_a_password_that_is_there_is_not_overwritten(init):
    Path("smart-host.password").write_text("mine\n")
    words = ["--smart-host", "a.example:587", "--smart-host-user", "me", "--smart-host-password-stdin"]
    assert init(*words, stdin="new\n") == 2
    assert Path("smart-host.password").read_text() == "mine\n"
    assert not Path("posthouse.toml").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--trust 0.0.0.0/0", "would make an open relay"),
        ("--relay-domain *", "would make an open relay"),
        ("--trust 192.0.2.5/24", 'write "192.0.2.0/24"'),
        ("--listen 25", "needs a port"),
        ("--hostname a_b..c", "not a domain name"),
        ("--smart-host-user me", "needs --smart-host"),
        ("--smart-host a.example:587 --smart-host-user me", "--smart-host-password-stdin"),
        ("--smart-host a.example:x", "to smtp://a.example:x"),
        ("--relay-to smtp://192.0.2.9", "--relay-to needs --relay-domain"),
        ("--deliver-to pipe:", "--deliver-to needs --local-domain"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_and_nothing_is_written(init, capsys, words, sentence):
    assert init(*words.split(), "--yes") == 2
    assert sentence in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_any_text_is_quoted_so_that_it_stays_text():
    wishes = Wishes(
        hostname="mx.example.org", smart_host="a.example:587", smart_host_user='a"\\\n\x7f', password_file="p"
    )
    text = compose_config(wishes)
    import tomllib

    assert tomllib.loads(text)["route"][0]["login"]["user"] == 'a"\\\n\x7f'


def test_on_a_terminal_it_asks_and_takes_what_stands_in_brackets(tmp_path):
    import os
    import pty
    import subprocess

    ours, theirs = pty.openpty()
    os.write(
        ours, b"mx example\nmx.example.org\nmx.example.org\n\nnobody\n\nsmart.example.net:x\nsmart.example.net\nme\n"
    )
    command = [sys.executable, "-m", "posthouse", "init"]
    with subprocess.Popen(
        command, stdin=theirs, stderr=subprocess.PIPE, cwd=tmp_path, start_new_session=True
    ) as process:
        asked = b""
        while b"Password of me" not in asked:  # typed before it is asked for, it would be thrown away
            octet = process.stderr.read(1)
            assert octet, asked
            asked += octet
        os.write(ours, b"geheim wort\n")
        asked += process.communicate(timeout=60)[1]
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    assert asked.count(b"Error: ") == 4  # each answer is judged at once, not when all are given
    config = load_config(tmp_path / "posthouse.toml")
    assert config.hostname == "mx.example.org"
    assert [(listener.host, listener.port) for listener in config.listeners] == [("127.0.0.1", 2525)]
    assert config.routes[0].to == ("smtp://smart.example.net:587",)
    assert config.routes[0].login.user == "me"
    assert (tmp_path / "smart-host.password").read_text() == "geheim wort\n"


@pytest.mark.parametrize(
    ("words", "to"),
    [
        ("--smart-host a.example", "smtp://a.example:25"),
        ("--smart-host a.example --smart-host-user me", "smtp://a.example:587"),
        ("--smart-host [2001:db8::1] --smart-host-user me", "smtp://[2001:db8::1]:587"),
        ("--smart-host smtps://a.example --smart-host-user me", "smtps://a.example:465"),
        ("--smart-host a.example:26 --smart-host-user me", "smtp://a.example:26"),
    ],
)
def test_a_smart_host_without_a_port_has_the_one_that_is_meant(init, words, to):
    assert init(*words.split(), "--smart-host-password-stdin", stdin="secret\n") == 0
    assert load_config().routes[0].to == (to,)


@pytest.mark.parametrize(
    ("words", "status"), [("", 2), ("--gateway-as-stranger 192.0.2.1", 0), ("--gateway-trusted 192.0.2.1", 0)]
)
def test_a_network_with_a_gateway_in_it_asks_for_an_option_by_its_name(init, capsys, monkeypatch, words, status):
    gateway = Gateway(ip_address("192.0.2.1"), "a default gateway of this machine")
    monkeypatch.setattr("posthouse.serve.closure.look_around", lambda: Surroundings((gateway,)))
    assert init("--yes", "--trust", "192.0.2.0/24", *words.split()) == status
    said = capsys.readouterr().err
    assert ("--gateway-as-stranger or --gateway-trusted" in said) == (status == 2)
