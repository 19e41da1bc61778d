"""The fuzz target's corpus, without a fuzzer, and what is made of it by chance."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from smtp_dialogue import DIALOGUES, read_dialogue

FUZZ = Path(__file__).parents[2] / "fuzz"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FUZZ / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def target() -> ModuleType:
    return _load("smtp_server")


@pytest.fixture(scope="module")
def mutations(target: ModuleType) -> ModuleType:
    return _load("mutations")


CORPUS = sorted((FUZZ / "corpus" / "smtp_server").iterdir())


def test_there_is_a_corpus() -> None:
    assert len(CORPUS) > 10


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_the_engine_keeps_its_promises_for_the_corpus(target: ModuleType, path: Path) -> None:
    target.check(path.read_bytes())


@pytest.mark.parametrize("path", sorted(DIALOGUES.glob("*.txt")), ids=lambda path: path.stem)
def test_the_engine_keeps_its_promises_for_the_dialogues(target: ModuleType, path: Path) -> None:
    octets = b"".join(read_dialogue(path).turns)
    for sort in range(3):
        for step in (0, 2, 6):
            target.check(bytes([sort, step]) + octets)


def test_the_engine_keeps_its_promises_for_what_chance_makes_of_the_corpus(
    target: ModuleType, mutations: ModuleType
) -> None:
    _check_all(target, mutations)


def _check_all(target: ModuleType, mutations: ModuleType) -> None:
    for octets in mutations.inputs(seed=1, count=3000):
        target.check(octets)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("content._undecided", lambda _octets: 0),  # an end of data that is cut in two goes unseen
        ("content.Normalizer.flush", lambda _self: b""),  # the last line is lost
        ("content._bare", lambda _octets: None),  # a bare line feed passes, or trips the engine
    ],
)
def test_chance_finds_an_engine_that_breaks_a_promise(
    target: ModuleType,
    mutations: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    broken: Callable[..., object],
) -> None:
    monkeypatch.setattr(f"posthouse.smtp.{name}", broken)
    with pytest.raises((AssertionError, TypeError, ValueError)):
        _check_all(target, mutations)


def test_the_same_seed_makes_the_same_inputs(mutations: ModuleType) -> None:
    assert list(mutations.inputs(3, 50)) == list(mutations.inputs(3, 50)) != list(mutations.inputs(4, 50))
