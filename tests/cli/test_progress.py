"""The sign of life of a long command: on a terminal only, and gone when it ends."""

import io
import sys
import time

import pytest

from posthouse.cli.progress import sign_of_life


class Terminal(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal


def _shown(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool, is_long: bool) -> str:
    terminal = Terminal(is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(ValueError, match="as expected"), sign_of_life("counting", 0.01 if is_long else 60):  # noqa: PT012
        end = time.monotonic() + (10 if is_terminal else 0.05)
        while is_long and not terminal.getvalue() and time.monotonic() < end:
            time.sleep(0.005)
        raise ValueError("as expected")
    return terminal.getvalue()


def test_a_long_wait_is_explained_and_the_line_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _shown(monkeypatch, is_terminal=True, is_long=True)
    assert shown.startswith("\rcounting … 0 s\r")
    assert shown.endswith(f"\r{' ' * len('counting … 0 s')}\r")


@pytest.mark.parametrize(("is_terminal", "is_long"), [(True, False), (False, True)])
def test_short_waits_and_programs_get_nothing(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, is_long: bool
) -> None:
    assert _shown(monkeypatch, is_terminal=is_terminal, is_long=is_long) == ""
