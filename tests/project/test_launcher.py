"""./posthouse, the program of a checkout: found through links, acting by their names, named in hints as it was typed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOW = '#!/bin/sh\necho "$# $*"\necho "called ${POSTHOUSE_CALLED-posthouse}"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is ready, with a program that only shows what it was given."""
    directory = tmp_path / "a checkout"
    (directory / "tools").mkdir(parents=True)
    (directory / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "posthouse", directory)
    (directory / "tools" / "venv.sh").write_text("prepare_venv() { :; }\n")
    program = directory / ".venv" / "bin" / "posthouse"
    program.write_text(SHOW)
    program.chmod(0o755)
    return directory


def _run(*words: str, cwd: Path, path: str = "/usr/bin:/bin") -> list[str]:
    env = {"PATH": path}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sendmail", "4 sendmail -oi a b@example.org"),
        ("mailq", "5 sendmail -bp -oi a b@example.org"),
        ("newaliases", "5 sendmail -bi -oi a b@example.org"),
        ("relay", "3 -oi a b@example.org"),
    ],
)
def test_a_link_to_the_launcher_acts_by_its_name(checkout: Path, tmp_path: Path, name: str, given: str) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / name).symlink_to(checkout / "posthouse")
    (links / "further").symlink_to(links / name)
    assert _run(f"./{name}", "-oi", "a", "b@example.org", cwd=links)[0] == given
    assert _run(name, "-oi", "a", "b@example.org", cwd=tmp_path, path=f"{links}:/usr/bin:/bin")[0] == given


def test_hints_name_the_program_as_it_was_typed(checkout: Path) -> None:
    assert _run("./posthouse", "init", cwd=checkout) == ["1 init", "called ./posthouse"]
    assert _run("posthouse", "init", cwd=checkout, path=f"{checkout}:/usr/bin:/bin")[1] == "called posthouse"
    env = {**os.environ, "POSTHOUSE_CALLED": "./posthouse"}
    line = [sys.executable, "-m", "posthouse"]
    done = subprocess.run(
        [*line, "reload", "--config", "/nonexistent.toml"], env=env, capture_output=True, text=True, check=False
    )
    assert done.stderr == "posthouse: /nonexistent.toml does not exist; `./posthouse init` writes one\n"
