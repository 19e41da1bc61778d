"""`posthouse check`."""

import json
from pathlib import Path
from typing import Any

import pytest

from posthouse.cli.program import run
from posthouse.config import load_config
from posthouse.policy.gateways import Gateway
from posthouse.policy.networks import parse_address
from posthouse.policy.proof import ASSUMPTION
from posthouse.serve import closure as closure_module
from posthouse.serve.machine import Surroundings

CONFIG = """
hostname = "mx.example.org"
data_dir = "{data}"

[[listener]]
address = "127.0.0.1:2525"
role = "relay"

[relay]
local_domains = ["example.org"]
relay_domains = {relay_domains}
trusted_networks = {trusted_networks}
{more}

[[route]]
domain = "example.org"
to = ["maildir:/nowhere"]

[[route]]
domain = "*"
to = ["mx:"]
"""


@pytest.fixture(autouse=True)
def _one_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(parse_address("192.0.2.1"), "the default gateway of this machine (on eth0)")
    monkeypatch.setattr(closure_module, "look_around", lambda: Surroundings((gateway,)))


def written(tmp_path: Path, **settings: Any) -> str:
    values = {"relay_domains": ["dept.example.org"], "trusted_networks": ["127.0.0.1"], **settings}
    more = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items() if key.startswith("gateways"))
    file = tmp_path / "posthouse.toml"
    file.write_text(
        CONFIG.format(
            data=tmp_path / "data",
            relay_domains=json.dumps(values["relay_domains"]),
            trusted_networks=json.dumps(values["trusted_networks"]),
            more=more,
        )
    )
    return str(file)


def test_closed_prints_the_matrix_and_the_assumption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--config", written(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("closed: ")
    assert "dept.example.org" in out
    assert "strangers" in out
    assert "550 5.7.1" in out
    assert ASSUMPTION in out
    assert err == ""
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"relay_domains": ["*"]}, ["relay_domains", "RCPT TO:<", "203.0.113.9"]),
        ({"trusted_networks": ["0.0.0.0/0"]}, ["a /8 of public IPv4", "RCPT TO:<"]),
        ({"trusted_networks": ["192.0.2.0/24"]}, ["192.0.2.1", "gateways_as_strangers", "gateways_trusted"]),
    ],
)
def test_open_prints_the_counterexample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], words: list[str]
) -> None:
    assert run(["check", "--config", written(tmp_path, **settings)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("OPEN: ")
    for one in words:
        assert one in out


@pytest.mark.parametrize("key", ["gateways_as_strangers", "gateways_trusted"])
def test_a_gateway_named_on_purpose_is_closed(tmp_path: Path, key: str) -> None:
    assert run(["check", "--config", written(tmp_path, trusted_networks=["192.0.2.0/24"], **{key: ["192.0.2.1"]})]) == 0


def test_json_is_one_document_with_stable_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"verdict", "configuration", "opening", "masked", "labs", "matrix", "doubts", "assumption"}
    keys |= {"self_test", "suspended", "echoes"}
    assert run(["check", "--json", "--config", written(tmp_path)]) == 0
    closed = json.loads(capsys.readouterr().out)
    assert set(closed) == keys
    assert closed["verdict"] == "closed"
    assert closed["opening"] is None
    assert {"who", "where", "granted", "slug", "answer"} == set(closed["matrix"][0])
    settings = {"relay_domains": [".com"], "trusted_networks": ["192.0.2.0/24"]}
    assert run(["check", "--json", "--config", written(tmp_path, **settings)]) == 1
    opened = json.loads(capsys.readouterr().out)
    assert opened["verdict"] == "open"
    assert set(opened["opening"]) == {"kind", "client", "role", "forward_path", "grant", "words"}
    assert opened["opening"]["forward_path"] == "<victim@a.com>"
    assert opened["masked"][0]["address"] == "192.0.2.1"


def test_a_configuration_that_cannot_be_read_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--config", str(tmp_path / "none.toml")]) == 2
    assert run(["check", "--config", written(tmp_path, trusted_networks=["10.0.0.1/8"])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "10.0.0.0/8" in err
    assert "Traceback" not in err


def test_another_servers_configuration_must_be_named_and_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", "--mta", "postfix"]) == 2
    assert "name the configuration of Postfix" in capsys.readouterr().err
    assert run(["check", "--mta", "postfix", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert run(["check", "--mta", "postfix", str(tmp_path)]) == 2
    assert "main.cf" in capsys.readouterr().err
    assert run(["check", "/etc/posthouse/posthouse.toml"]) == 2
    assert "--config" in capsys.readouterr().err


def test_accounts_that_cannot_be_read_are_told_by_check_and_before_a_server_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path)
    for make, words in (
        (lambda path: path.mkdir(parents=True), "Is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "it is not text"),
        (lambda path: path.write_text("anna:geheim\n"), "is not name:hash"),
    ):
        make(load_config(Path(config)).accounts)
        for command in ("check", "serve"):
            assert run([command, "--config", config]) == 2
            assert words in capsys.readouterr().err
        if load_config(Path(config)).accounts.is_dir():
            load_config(Path(config)).accounts.rmdir()
