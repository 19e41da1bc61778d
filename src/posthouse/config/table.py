"""One TOML table on its way to a struct: each key is taken with its kind, and every fault names the file, line and key."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from posthouse.config.error import ConfigError
from posthouse.config.keys import LATER_SECTIONS, SECTIONS
from posthouse.config.places import KeyPath
from posthouse.config.values import ItemError, Kind, type_name

T = TypeVar("T")
D = TypeVar("D")


class Document(msgspec.Struct, frozen=True):
    """Where a configuration came from: `name` for messages, `directory` for relative paths, the line of each key."""

    name: str
    directory: Path
    places: Mapping[KeyPath, int]

    def fault(self, path: KeyPath, words: str) -> ConfigError:
        """An error at the line of `path`, or of the nearest thing around it."""
        around = path
        while around and around not in self.places:
            around = around[:-1]
        line = self.places.get(around)
        return ConfigError(f"{self.name}:{line}: {words}" if line else f"{self.name}: {words}")


class Table:
    """A table with the keys that its section may have. ConfigError at once when it has others."""

    def __init__(self, document: Document, section: str, path: KeyPath, values: object) -> None:
        if not isinstance(values, dict):
            raise document.fault(path, f"{section_title(section)} must be a table, not {type_name(values)}")
        self._document = document
        self._section = section
        self.path = path
        self._values = values
        known = SECTIONS[section].names
        for key in values:
            if key not in known:
                raise document.fault((*path, key), _unknown(section, key, known))

    def take(self, key: str, kind: Kind[T], default: D) -> T | D:
        """The value of `key`, read by `kind`; `default` when the key is not there."""
        if key not in SECTIONS[self._section].names:
            raise LookupError(f"[{self._section}] {key} is missing from posthouse.config.keys")
        if key not in self._values:
            return default
        try:
            return kind(self._values[key])
        except ItemError as error:
            raise self._document.fault((*self.path, key, error.index), self._sentence(key, str(error))) from None
        except ValueError as error:
            raise self._document.fault((*self.path, key), self._sentence(key, str(error))) from None

    def need(self, key: str, kind: Kind[T]) -> T:
        """The value of a key that must be there."""
        if key not in self._values:
            raise self._document.fault(self.path, f"{section_title(self._section)} needs the key {key}")
        found = self.take(key, kind, None)
        if found is None:  # pragma: no cover - no kind answers None
            raise LookupError(key)
        return found

    def table(self, key: str, section: str) -> "Table | None":
        """A table within this one, None when it is not there."""
        if key not in self._values:
            return None
        return Table(self._document, section, (*self.path, key), self._values[key])

    def tables(self, key: str, section: str) -> "list[Table]":
        """An array of tables, [[key]]."""
        found = self._values.get(key, [])
        if not isinstance(found, list):
            words = f"write [[{key}]] with two brackets: there may be several"
            raise self._document.fault((*self.path, key), words)
        return [Table(self._document, section, (*self.path, key, index), item) for index, item in enumerate(found)]

    def fault(self, key: str, words: str) -> ConfigError:
        """An error about `key`, for what only several keys together show."""
        return self._document.fault((*self.path, key), self._sentence(key, words))

    def _sentence(self, key: str, words: str) -> str:
        return f"{section_title(self._section) + ' ' if self._section else ''}{key} {words}"


def section_title(section: str) -> str:
    """A section as the file writes it."""
    if not section:
        return ""
    head, _, inner = section.partition(".")
    bracketed = f"[[{head}]]" if SECTIONS[head].is_repeated else f"[{head}]"
    return f"{bracketed} {inner}" if inner else bracketed


def _unknown(section: str, key: str, known: tuple[str, ...]) -> str:
    if not section and key in LATER_SECTIONS:
        return f"[{key}] ({LATER_SECTIONS[key]}) is known but not built yet in this version; take the section out"
    import difflib  # noqa: PLC0415 - only for those who need it; sendmail starts without

    where = f"{section_title(section)} has no key" if section else "there is no key or section"
    near = difflib.get_close_matches(key.lower(), known, 1, 0.5)
    if near:
        return f"{where} {key}; did you mean {near[0]}?"
    elsewhere = [title for title, other in SECTIONS.items() if key in other.names]
    if elsewhere:
        place = section_title(elsewhere[0]) or "the top of the file, before the first [section]"
        return f"{where} {key}; it belongs in {place}"
    return f"{where} {key}; it knows {', '.join(known)}"
