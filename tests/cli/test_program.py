"""The command line as a whole: help, names, exit statuses, the reference pages."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest

from posthouse.cli.options import Fault, fail, print_json
from posthouse.cli.program import COMMANDS, program, run
from posthouse.cli.reference import PAGES

DOCS = Path(__file__).parents[2] / "docs"


def commands():
    """Every command with its words, groups as well."""
    found = []

    def walk(command, words):
        found.append((words, command))
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                walk(command.get_command(context, name), f"{words} {name}".strip())

    walk(program, "")
    return found


def test_the_table_says_what_each_command_says_of_itself():
    context = click.Context(program)
    for name, (_, line) in COMMANDS.items():
        assert program.get_command(context, name).get_short_help_str(200) == line, name


def test_every_command_takes_config_and_explains_each_option():
    for words, command in commands():
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--config" in options or isinstance(command, click.Group), words
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{words} {parameter.opts}"


def test_help_loads_no_command():
    program_text = (
        "import sys; from posthouse.cli.program import run; run(['--help']);"
        "print([name for name in sys.modules if name.startswith('posthouse.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program_text], capture_output=True, text=True, check=True)
    assert "posthouse.cli.serve" not in done.stderr
    assert "posthouse.serve" not in done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_up_to_date(name):
    assert (DOCS / name).read_text() == PAGES[name](), "run: python -m posthouse.cli.reference docs"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["user", "--help"], 0),
        (["nonsense"], 2),
        (["user", "list", "--nonsense"], 2),
        (["user", "list", "--config", "/nonexistent/posthouse.toml"], 2),
        (["--config", "/nonexistent/posthouse.toml", "user", "list"], 2),
    ],
)
def test_exit_statuses(words, status, capsys):
    assert run(words) == status
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    if status:
        assert shown.out == ""
        assert shown.err


def test_a_wrong_configuration_is_one_plain_sentence(tmp_path, capsys):
    (tmp_path / "posthouse.toml").write_text("hostnam = 'x'\n")
    assert run(["user", "list", "--config", str(tmp_path / "posthouse.toml")]) == 2
    assert capsys.readouterr().err == (
        f"posthouse: {tmp_path}/posthouse.toml:1: there is no key or section hostnam; did you mean hostname?\n"
    )


def test_python_m_posthouse_is_the_command():
    done = subprocess.run([sys.executable, "-m", "posthouse", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("posthouse ")


def test_a_reader_that_stops_early_is_no_fault():
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m posthouse completion bash | true"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell, capsys):
    assert run(["completion", shell]) == 0
    assert "_POSTHOUSE_COMPLETE" in capsys.readouterr().out


def test_the_shell_completes_commands(tmp_path):
    env = {"COMP_WORDS": "posthouse us", "COMP_CWORD": "1", "_POSTHOUSE_COMPLETE": "bash_complete"}
    done = subprocess.run([sys.executable, "-m", "posthouse"], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.split() == ["plain,usage", "plain,user"]


def test_json_is_one_document_with_paths_and_enums_as_text(capsys):
    print_json({"path": Path("/x"), "status": (1, 2)})
    assert json.loads(capsys.readouterr().out) == {"path": "/x", "status": [1, 2]}
    with pytest.raises(Fault):
        fail("no", 1)


@pytest.mark.parametrize("words", [["check"], ["check", "--json"], ["--help"], ["sendmail", "--help"]])
def test_a_full_disk_behind_the_output_is_one_sentence(words, tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "posthouse", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == (74 if words[0] == "sendmail" else 3)
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_a_directory_that_is_gone_is_one_sentence(tmp_path):
    done = subprocess.run(
        ["sh", "-c", f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m posthouse init --yes"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode in (2, 3)
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


CLOSED = [
    ["queue", "list"],
    ["queue", "show", "2d33nhrwpj730"],
    ["queue", "hold", "--all"],
    ["queue", "delete", "2d33nhrwpj730"],
    ["why", "2d33nhrwpj730"],
    ["usage"],
    ["usage", "--mail"],
    ["sendmail", "-bp"],
    ["sendmail", "-q"],
]
AS_NOBODY = """
import importlib, os, pkgutil, sys, posthouse
for module in pkgutil.walk_packages(posthouse.__path__, "posthouse."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)  # nobody may not even be able to read them
from posthouse.cli import main
if os.geteuid() == 0:
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
for line in sys.stdin.read().splitlines():
    sys.argv = ["posthouse", *line.split()]
    try:
        main()
    except SystemExit as end:
        print(line, end.code, flush=True)
"""


def test_what_is_closed_to_the_caller_is_one_sentence_with_the_remedy():
    """As any user who types `mailq` on a machine whose server is another's."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "posthouse.toml").write_text('data_dir = "data"\npostmaster = "you@example.org"\n')
        (directory / "data" / "spool" / "0").mkdir(parents=True)
        spool = directory / "data" / "spool"
        spool.chmod(0o700 if os.geteuid() == 0 else 0)
        lines = [f"{' '.join(words)} --config {directory}/posthouse.toml" for words in CLOSED]
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY], input="\n".join(lines), capture_output=True, text=True, check=False
        )
        spool.chmod(0o700)
    assert "Traceback" not in done.stderr
    statuses = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in done.stdout.splitlines()}
    assert statuses == {line: "78" if line.startswith("sendmail") else "2" for line in lines}
    said = done.stderr.splitlines()
    assert len(said) == len(CLOSED)
    for line in said:
        assert re.fullmatch(
            rf"posthouse: {spool}\S* is closed to this user; run it as root or as the server's user", line
        )
