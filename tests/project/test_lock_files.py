"""The lock files hold what pyproject.toml asks for, with hashes and without addresses."""

import re
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
RUNTIME = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
LOCKS = {
    "requirements.lock": RUNTIME,
    "requirements-dev.lock": [*RUNTIME, *PROJECT["dependency-groups"]["dev"]],
    "requirements-fuzz.lock": PROJECT["dependency-groups"]["fuzz"],
}


def locked(name: str) -> dict[str, str]:
    """What a lock file pins: the version of each project."""
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)", (CHECKOUT / name).read_text(), re.MULTILINE)
    return dict(pins)


@pytest.mark.parametrize(("lock", "wanted"), LOCKS.items())
def test_a_lock_file_pins_all_that_the_project_asks_for(lock: str, wanted: list[str]) -> None:
    names = {re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - locked(lock).keys() == set(), "run tools/lock"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes_and_no_line_an_address(lock: str) -> None:
    text = (CHECKOUT / lock).read_text()
    assert "://" not in text
    for entry in re.split(r"\n(?=[a-z0-9])", text.strip()):
        assert "--hash=sha256:" in entry, entry


def test_the_tests_run_against_the_versions_that_are_shipped() -> None:
    shipped, tested = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {name: tested[name] for name in shipped} == shipped
