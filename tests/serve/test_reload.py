"""Which file a running server reads again, and what a reload says: of the file, of what changes, of what is surely not meant."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from posthouse.config import ListenerSettings, RouteSettings, default_config
from posthouse.serve.admission import NotAdmitted, admission_of, admit
from posthouse.serve.changes import setting_changes
from posthouse.serve.control import ControlError, ask
from serve_fake import Server, serving, until, write_config


def _posthouse(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "posthouse", *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=directory, timeout=60, check=False)


@contextmanager
def serving_in(directory: Path, *words: str) -> Iterator[Server]:
    """A server started in a directory, as a person does who has not read about --config."""
    env = {"XDG_STATE_HOME": str(directory / "state")}
    server = Server([sys.executable, "-m", "posthouse", "serve", *words], env, cwd=directory)
    try:
        yield server
    finally:
        server.end()


def test_a_reload_never_goes_on_to_another_file_than_the_server_was_started_on(tmp_path: Path) -> None:
    config = write_config(tmp_path, workers=1)
    with serving_in(tmp_path) as server:
        (port,) = server.ready()
        config.rename(tmp_path / "away.toml")
        with pytest.raises(ControlError, match=r"posthouse\.toml does not exist.*stays"):
            ask(tmp_path / "data", "reload")
        assert [each["address"] for each in ask(tmp_path / "data", "status")["listeners"]] == [f"127.0.0.1:{port}"]
        (tmp_path / "away.toml").rename(config)
        assert ask(tmp_path / "data", "reload")["configuration"] == str(config)


def test_a_server_on_the_embedded_default_takes_up_no_file_that_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("posthouse.config.search.SYSTEM", tmp_path / "none.toml")
    again = admission_of(None)
    assert again().config.source is None
    write_config(tmp_path)
    with pytest.raises(NotAdmitted, match="restart it to have that file in force"):
        again()
    assert admission_of(None)().config.source == tmp_path / "posthouse.toml"
    (tmp_path / "posthouse.toml").chmod(0o666)
    with pytest.raises(NotAdmitted, match="not trusted"):
        again()
    assert admit(None).config.source is None


def test_reload_of_another_file_than_the_servers_is_refused_with_both_names(tmp_path: Path) -> None:
    config = write_config(tmp_path, workers=1)
    other = tmp_path / "other.toml"
    other.write_text(config.read_text() + '[relay]\ntrusted_networks = ["0.0.0.0/0"]\n')
    (tmp_path / "link.toml").symlink_to(config)
    with serving(config) as server:
        server.ready()
        done = _posthouse(tmp_path, "reload", "--config", "other.toml")
        assert done.returncode == 2
        assert f"the server runs {config}, not other.toml" in done.stderr
        done = _posthouse(tmp_path, "reload", "--config", "link.toml")
        assert done.returncode == 0
        assert done.stdout.endswith(f"\n{config} is in force\n")
        assert json.loads(_posthouse(tmp_path, "reload", "--json").stdout) == {
            "accepted": True,
            "configuration": str(config),
            "changes": [],
            "other_changes": [],
            "warnings": [],
        }


def test_reload_names_listeners_routes_and_what_is_surely_not_meant(tmp_path: Path) -> None:
    config = write_config(tmp_path, workers=1)
    with serving(config) as server:
        server.ready()
        text = config.read_text()
        config.write_text(
            text.replace('address = "127.0.0.1:0"', 'address = "127.0.0.1:0"\nrole = "submission"')
            + '[[route]]\ndomain = "*"\nto = ["smtp://smart.example:587"]\ntls = "never"\n'
            + 'login = { user = "me", password_file = "secret" }\n'
        )
        (tmp_path / "secret").write_text("secret\n")
        said = _posthouse(tmp_path, "reload").stdout
        assert "nothing changes in who may relay where" in said
        assert "the listener on 127.0.0.1:0 is changed" in said
        assert "all other mail goes to smtp://smart.example:587 now" in said
        assert "mind: " in said


def test_changes_of_listeners_routes_and_sections_are_sentences() -> None:
    old = default_config()
    new = msgspec.structs.replace(
        old,
        hostname="new.example",
        listeners=(ListenerSettings("127.0.0.1", 25),),
        routes=(RouteSettings(domain=("a.example",), to=("mx:",)), *old.routes),
    )
    assert setting_changes(old, old) == []
    assert setting_changes(old, new) == [
        "listens on 127.0.0.1:25 now (relay)",
        "listens on 127.0.0.1:2525 no longer",
        "mail for a.example goes to mx: now",
        "changed too: hostname",
    ]
    assert "mail for a.example has no route of its own any more" in setting_changes(new, old)


def test_what_first_sight_would_say_stands_in_the_log_where_nobody_looks_on(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    config = write_config(
        tmp_path,
        '[[route]]\ndomain = "*"\nto = ["smtp://smart.example:587"]\ntls = "never"\n'
        'login = { user = "me", password_file = "secret" }\n',
        workers=1,
    )
    assert _posthouse(tmp_path, "relay", "off").returncode == 0
    with serving(config) as server:
        server.ready()
        events = until(lambda: [json.loads(line) for line in server.lines if line.startswith("{")])
        assert {each["event"] for each in events} >= {"mind", "relay-off"}
        assert all(each["level"] == "warning" for each in events if each["event"] in ("mind", "relay-off"))
        assert ("running-as-root" in server.said) == (os.geteuid() == 0)
