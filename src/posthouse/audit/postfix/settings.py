"""The settings that one Postfix service runs with: main.cf over built-in defaults, and a service's own overrides over both."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from posthouse.audit.finding import AuditError
from posthouse.audit.postfix.expand import ExpandError, expand
from posthouse.audit.postfix.master import Override
from posthouse.audit.postfix.place import Place
from posthouse.audit.postfix.text import Logical, logical_lines, read_text, split_list

_REFERENCE = re.compile(r"\$[({]?\s*([A-Za-z0-9_]+)")
_NAME = re.compile(r"[A-Za-z0-9_.]+")


def read_main(path: Path) -> dict[str, tuple[str, Logical]]:
    """Names with raw values and their lines; of two lines for one name the last counts. AuditError when it can't be read."""
    try:
        text = read_text(path)
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error.strerror}") from error
    found = {}
    for logical in logical_lines(text):
        name, equals, value = logical.text.partition("=")
        if not equals or not _NAME.fullmatch(name.strip()):
            raise AuditError(f'{path}, line {logical.line}: "{logical.text[:40]}" is not "name = value"')
        found[name.strip()] = (value.strip(), logical)
    return found


class Settings:
    """Parameters by name: `text` filled in, `place` where a value or a part of it stands."""

    def __init__(
        self,
        main: Path,
        explicit: Mapping[str, tuple[str, Logical]],
        defaults: Mapping[str, str],
        overrides: Mapping[str, Override] | None = None,
    ) -> None:
        self.main = main
        self._explicit = explicit
        self._defaults = defaults
        self._overrides = overrides or {}
        self._filled: dict[str, str] = {}

    def under(self, overrides: Mapping[str, Override]) -> "Settings":
        """The same with a service's `-o` options on top."""
        return Settings(self.main, self._explicit, self._defaults, overrides)

    def raw(self, name: str) -> str | None:
        """The value as written, or the built-in default; None when there is no such parameter."""
        if name in self._overrides:
            return self._overrides[name].value
        if name in self._explicit:
            return self._explicit[name][0]
        return self._defaults.get(name)

    def is_said(self, name: str) -> bool:
        """Whether somebody wrote it, in main.cf or as an override."""
        return name in self._overrides or name in self._explicit

    def text(self, name: str) -> str:
        """The value with all names filled in; "" when there is none. AuditError when it is malformed."""
        if name not in self._filled:
            try:
                self._filled[name] = expand(self.raw(name) or "", self.raw).strip()
            except ExpandError as error:
                raise AuditError(f"{self.place(name)}: {name} cannot be read: {error}") from error
        return self._filled[name]

    def items(self, name: str) -> list[str]:
        """The value as a list."""
        return split_list(self.text(name))

    def is_yes(self, name: str) -> bool:
        """Whether a yes/no parameter says yes."""
        return self.text(name).lower() == "yes"

    def number(self, name: str, default: int) -> int:
        """The value as a number."""
        text = self.text(name)
        return int(text) if text.isdigit() else default

    def place(self, name: str, token: str = "") -> Place:
        """Where the value stands; with a token, the line that holds it, followed through the names that the value uses."""
        for candidate in self._chain(name):
            if candidate in self._overrides:
                if not token or token in self._overrides[candidate].value:
                    return self._overrides[candidate].place
            elif candidate in self._explicit:
                value, logical = self._explicit[candidate]
                if not token or token in value:
                    return Place(str(self.main), logical.line_of(token or candidate))
        if name in self._overrides:
            return self._overrides[name].place
        if name in self._explicit:
            return Place(str(self.main), self._explicit[name][1].line)
        return Place(f"{self.main} (built-in default of {name})")

    def _chain(self, name: str) -> Iterator[str]:
        """The name, and the names that its value uses, each once."""
        waiting, seen = [name], set()
        while waiting:
            one = waiting.pop(0)
            if one in seen:
                continue
            seen.add(one)
            yield one
            waiting += _REFERENCE.findall(self.raw(one) or "")
