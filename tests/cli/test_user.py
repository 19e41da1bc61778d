"""`posthouse user`."""

import io
import json
import sys

import pytest

from posthouse.cli.program import run


@pytest.fixture
def user(tmp_path, monkeypatch):
    (tmp_path / "posthouse.toml").write_text('data_dir = "data"\n')
    monkeypatch.chdir(tmp_path)

    def user(*words, password="correct horse"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{password}\n".encode())))
        return run(["user", *words])

    return user


def test_an_account_is_made_listed_changed_and_removed(user, capsys, tmp_path):
    assert user("add", "Jane", "--password-stdin") == 0
    assert (tmp_path / "data" / "accounts").exists()
    capsys.readouterr()
    assert user("list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"accounts": [{"name": "jane"}]}
    assert user("list") == 0
    assert capsys.readouterr().out == "jane\n"
    before = (tmp_path / "data" / "accounts").read_text()
    assert user("passwd", "jane", "--password-stdin", password="battery staple") == 0
    assert (tmp_path / "data" / "accounts").read_text() != before
    assert user("remove", "jane") == 0
    capsys.readouterr()
    assert user("list") == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no accounts" in shown.err


def test_no_is_1_and_a_wrong_call_is_2(user, capsys):
    assert user("add", "jane", "--password-stdin") == 0
    assert user("add", "jane", "--password-stdin") == 1
    assert user("passwd", "bob", "--password-stdin") == 1
    assert user("remove", "bob") == 1
    assert user("add", "bob", "--password-stdin", password="short") == 2
    assert user("add", "b:b", "--password-stdin") == 2
    assert user("add", "bob") == 2
    assert "--password-stdin" in capsys.readouterr().err
    assert user("list", "--config", "none.toml") == 2
