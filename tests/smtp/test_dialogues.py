"""The dialogue files, whole, octet by octet and at random splits."""

import random
from collections.abc import Iterator

import pytest

from smtp_dialogue import DIALOGUES, Dialogue, play, read_dialogue

FILES = sorted(DIALOGUES.glob("*.txt"))


def whole(octets: bytes) -> Iterator[bytes]:
    yield octets


def by_octet(octets: bytes) -> Iterator[bytes]:
    for at in range(len(octets)):
        yield octets[at : at + 1]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def dialogue(request: pytest.FixtureRequest) -> Dialogue:
    return read_dialogue(request.param)


def test_there_are_dialogues() -> None:
    assert len(FILES) > 20


def test_a_dialogue_goes_as_written(dialogue: Dialogue) -> None:
    outcome = play(dialogue, whole)
    for number, (line, expected) in enumerate(zip(outcome.lines, dialogue.replies, strict=False)):
        assert line.startswith(expected), f"line {number}: {line!r}, not {expected!r}\n" + "\n".join(outcome.lines)
    assert len(outcome.lines) == len(dialogue.replies), "\n".join(outcome.lines)
    assert outcome.ending is dialogue.ending
    if dialogue.content is not None:
        assert outcome.content == dialogue.content
    names = iter(type(event).__name__ for event in outcome.events)
    for name in dialogue.events:
        assert name in names, f"no {name} where it should be in {outcome.events}"


def test_a_dialogue_goes_the_same_octet_by_octet(dialogue: Dialogue) -> None:
    assert play(dialogue, by_octet) == play(dialogue, whole)


def test_a_dialogue_goes_the_same_at_any_split(dialogue: Dialogue) -> None:
    expected = play(dialogue, whole)
    for seed in range(20):
        chance = random.Random(seed)

        def split(octets: bytes, chance: random.Random = chance) -> Iterator[bytes]:
            cuts = sorted(chance.choices(range(len(octets) + 1), k=chance.randint(1, 12)))
            for start, end in zip([0, *cuts], [*cuts, len(octets)], strict=True):
                yield octets[start:end]

        assert play(dialogue, split) == expected
