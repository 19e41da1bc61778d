"""The files that systemd reads: hardened enough, and such that the program really lives under them."""

import os
import re
import shutil
import signal
import smtplib
import subprocess
import sys
from pathlib import Path

import pytest

from posthouse.config import load_text
from posthouse.serve.control import ask
from serve_fake import greeting, serving, until, write_config

PACKAGING = Path(__file__).parents[2] / "packaging"


def _systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")
    return subprocess.run([program, *arguments], check=False, capture_output=True, text=True, timeout=60)


def test_unit_exposes_at_most_one_and_a_half() -> None:
    done = _systemd_analyze(
        "security", "--offline=true", "--threshold=15", "--no-pager", str(PACKAGING / "posthouse.service")
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    level = re.search(r"exposure level for posthouse.service: ([\d.]+)", done.stdout)
    assert level
    assert float(level[1]) <= 1.5


def test_units_hold_no_word_that_systemd_does_not_know(tmp_path: Path) -> None:
    for name in ("posthouse.service", "posthouse.socket"):
        text = (PACKAGING / name).read_text().replace("/usr/bin/posthouse", sys.executable)
        (tmp_path / name).write_text(text)
    done = _systemd_analyze("verify", str(tmp_path / "posthouse.service"), str(tmp_path / "posthouse.socket"))
    ours = [line for line in done.stderr.splitlines() if "posthouse." in line]
    assert not ours


def test_unit_stops_for_good_on_what_wants_a_person() -> None:
    from posthouse.serve.start import EXIT_SYNC_FAILED

    unit = (PACKAGING / "posthouse.service").read_text()
    assert f"RestartPreventExitStatus=2 {EXIT_SYNC_FAILED}\n" in unit


def test_socket_unit_opens_what_listeners_can_name(tmp_path: Path) -> None:
    addresses = re.findall(r"^ListenStream=(.*)$", (PACKAGING / "posthouse.socket").read_text(), re.MULTILINE)
    assert len(addresses) == 6
    text = 'hostname = "mx.example.org"\n' + "".join(f'[[listener]]\naddress = "{one}"\n' for one in addresses)
    config = load_text(text, tmp_path / "posthouse.toml")
    assert {one.port for one in config.listeners} == {25, 465, 587}


_NO_WRITABLE_CODE = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE, Linux 6.3: what MemoryDenyWriteExecute asks for
    sys.exit(99)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_server_runs_where_memory_is_never_writable_and_executable(tmp_path: Path) -> None:
    probe = subprocess.run([sys.executable, "-c", _NO_WRITABLE_CODE, sys.executable, "-c", ""], check=False, timeout=30)
    if probe.returncode == 99:
        pytest.skip("this kernel is older than Linux 6.3 and knows no PR_SET_MDWE")
    prefix = [sys.executable, "-c", _NO_WRITABLE_CODE]
    with serving(write_config(tmp_path, workers=1), is_fake=False, prefix=prefix) as server:
        (port,) = server.ready()
        assert greeting(port).startswith("220")
        assert server.stop() == 0


@pytest.mark.slow
def test_server_makes_no_system_call_that_the_unit_forbids(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (Debian package strace)")
    sets = _system_call_sets()
    allowed = sets["@system-service"] - sets["@privileged"] - sets["@resources"]
    trace = tmp_path / "trace"
    box = f"maildir:{tmp_path / 'box'}"
    routes = f'[relay]\nlocal_domains = ["here.example"]\n[[route]]\ndomain = "here.example"\nto = ["{box}"]\n'
    prefix = [strace, "-f", "-qq", "-o", str(trace)]
    with serving(write_config(tmp_path, routes, workers=1), is_fake=False, prefix=prefix) as server:
        (port,) = server.ready()
        for to in ("you@here.example", "you@[127.0.0.9]"):
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                client.sendmail("", to, "Subject: hello\r\n\r\nHello.\r\n")
        until(lambda: list((tmp_path / "box" / "new").glob("*")))
        ask(tmp_path / "data", "reload")
        os.kill(ask(tmp_path / "data", "status")["pid"], signal.SIGTERM)
        assert server.wait() == 0
    called = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", trace.read_text(errors="replace"), re.MULTILINE))
    if os.geteuid() == 0:
        called.discard("fchown")  # SQLite gives its log to the database's owner, as root only
    assert called
    assert called - allowed == set()


def _system_call_sets() -> dict[str, set[str]]:
    listed: dict[str, set[str]] = {}
    name = ""
    for line in _systemd_analyze("syscall-filter", "--no-pager").stdout.splitlines():
        if line.startswith("@"):
            name = line.strip()
            listed[name] = set()
        elif line.startswith(" ") and not line.strip().startswith("#"):
            listed[name].add(line.strip())

    def whole(wanted: str) -> set[str]:
        return {call for one in listed[wanted] for call in (whole(one) if one.startswith("@") else {one})}

    return {one: whole(one) for one in listed}
