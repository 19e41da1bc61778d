"""Postfix's own word on its effective configuration, where postconf(1) can be run. It prints; it changes nothing."""

import re
import shutil
import subprocess
from pathlib import Path

import msgspec

_PATIENCE = 20.0  # seconds
_PLACES = "/usr/sbin:/usr/local/sbin:/sbin:/opt/local/sbin"
_LINE = re.compile(r"^([A-Za-z0-9_.]+) =(?: (.*))?$")
_OVERRIDE = re.compile(r"^(\S+)/(\S+)/([A-Za-z0-9_]+) =(?: (.*))?$")


class Effective(msgspec.Struct, frozen=True):
    """All parameters as postconf prints them, unexpanded, and the overrides by service name, kind and parameter.

    `types`: the types of tables that there are; empty when postconf does not say.
    """

    version: str
    directory: str
    parameters: dict[str, str]
    overrides: dict[tuple[str, str, str], str]
    types: frozenset[str] = frozenset()


def find_program(name: str) -> str | None:
    """A program of Postfix in PATH or where such programs usually are."""
    return shutil.which(name) or shutil.which(name, path=_PLACES)


def ask_postconf(directory: Path) -> Effective | None:
    """What postconf says of the configuration in `directory`; None where there is no postconf, or it can't read that."""
    program = find_program("postconf")
    if program is None:
        return None
    everything = run([program, "-c", str(directory)])
    builtin = run([program, "-c", str(directory), "-dh", "mail_version", "config_directory"])
    overrides = run([program, "-c", str(directory), "-P"])
    if everything is None or builtin is None or overrides is None:
        return None
    version, _, home = builtin.partition("\n")
    types = run([program, "-c", str(directory), "-m"]) or ""
    return Effective(
        version.strip(), home.strip(), _parameters(everything), _overrides(overrides), frozenset(types.split())
    )


def run(command: list[str]) -> str | None:
    """What a program prints; None when it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=True, stdin=subprocess.DEVNULL)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "surrogateescape")


def _parameters(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        matched = _LINE.match(line)
        if matched:
            found[matched[1]] = (matched[2] or "").strip()
    return found


def _overrides(text: str) -> dict[tuple[str, str, str], str]:
    found = {}
    for line in text.splitlines():
        matched = _OVERRIDE.match(line)
        if matched:
            found[matched[1], matched[2], matched[3]] = (matched[4] or "").strip()
    return found
