"""The fuzz target's corpus, without a fuzzer."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from smtp_dialogue import DIALOGUES, read_dialogue

FUZZ = Path(__file__).parents[2] / "fuzz"


@pytest.fixture(scope="module")
def target() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_smtp_server", FUZZ / "smtp_server.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
