"""From "type:name" to a table: files read, indexed ones by their index where postmap(1) can list it, else by their text."""

from collections.abc import Iterable
from pathlib import Path

from posthouse.audit.postfix.place import Hit, Place, Stop, Unopened
from posthouse.audit.postfix.postconf import find_program, run
from posthouse.audit.postfix.rules import RuleError, lines_of, read_rules
from posthouse.audit.postfix.settings import Settings
from posthouse.audit.postfix.table import Cidr, Pipe, Plain, Regexp, Sealed, Static, Table, Union
from posthouse.audit.postfix.text import logical_lines, read_text, split_list, unbrace

_SUFFIXES = {"hash": ".db", "btree": ".db", "lmdb": ".lmdb", "cdb": ".cdb", "dbm": ".pag", "sdbm": ".pag"}
_ORDERED = {"cidr": Cidr, "regexp": Regexp, "pcre": Regexp}
_OPTIONAL = frozenset(("cdb", "dbm", "lmdb", "pcre", "sdbm"))
"""Types that a Postfix may lack; most distributions have them in packages of their own."""
_USUAL_HOME = Path("/etc/postfix")


class Tables:
    """Opens each table once. `doubts` gathers what was odd about them (an index older than its text, a copied directory).

    `types` are those that postconf lists (none: it wasn't asked), of this machine, where the configuration is if
    `is_at_home`. `doubtful` gathers the tables whose type the other machine may lack; they are taken to work if
    `opens_doubtful`, else to be such as Postfix can't open.
    """

    def __init__(
        self,
        settings: Settings,
        types: frozenset[str] = frozenset(),
        *,
        is_at_home: bool = False,
        opens_doubtful: bool = True,
    ) -> None:
        self._home = settings.main.parent
        self._default_type = settings.text("default_database_type") or "hash"
        self._opened: dict[str, Table] = {}
        self._types = types
        self._is_at_home = is_at_home
        self._opens_doubtful = opens_doubtful
        self.doubts: dict[str, None] = {}
        self.doubtful: dict[Place, str] = {}
        self.unopened = False

    def open(self, spec: str, place: Place) -> Table:
        """The table, sealed when it can't be read. `place` is the line that names it."""
        if spec not in self._opened:
            self._opened[spec] = self._open(spec, place)
        return self._opened[spec]

    def lines(self, name: str) -> tuple[str, str]:
        """The text of a file that a list includes, and its path as read. OSError as usual."""
        path = self._path(name)
        return read_text(path), str(path)

    def _open(self, spec: str, place: Place) -> Table:
        kind, colon, name = spec.partition(":")
        if not colon:
            kind, name = self._default_type, spec
        missing = self._missing(kind, spec, place)
        if missing is not None:
            return Sealed(spec, missing)
        if kind == "proxy":
            return self._open(name, place)
        if kind == "static":
            return Static(spec, place, unbrace(name))
        if kind == "inline":
            pairs = (unbrace(item).partition("=") for item in split_list(unbrace(name)))
            return Plain(spec, place, ((key.strip(), Hit(unbrace(value.strip()), place)) for key, _, value in pairs))
        if kind in ("unionmap", "pipemap"):
            inner = [self.open(unbrace(item), place) for item in split_list(unbrace(name))]
            return Union(spec, place, inner) if kind == "unionmap" else Pipe(spec, place, inner)
        if kind in _ORDERED or kind in _SUFFIXES or kind == "texthash":
            return self._from_file(kind, name, spec, place)
        words = (
            f"{spec} is asked at the time of each mail and may hold anything; look there for what a stranger can choose"
        )
        return Sealed(spec, Stop(place, words))

    def _missing(self, kind: str, spec: str, place: Place) -> Unopened | None:
        """Why Postfix can't open a table of that type; None when it can, or may."""
        if kind in self._types or (not self._types and kind not in _OPTIONAL):
            return None
        answers = "until it is, Postfix answers with 451 what asks this table"
        if self._types and self._is_at_home:
            words = f"{spec} is of the type {kind}, which is not installed (postconf -m): {answers}"
            self.doubts[f"{place}: {words}"] = None
            self.unopened = True
            return Unopened(place, words)
        words = (
            f"{spec} is of the type {kind}; whether that is installed where Postfix runs is not known here "
            f"(postconf -m there lists it): {answers}"
        )
        self.doubtful[place] = words
        self.unopened = not self._opens_doubtful
        return None if self._opens_doubtful else Unopened(place, words)

    def _from_file(self, kind: str, name: str, spec: str, place: Place) -> Table:
        try:
            if kind in _ORDERED:
                return self._ordered(kind, name, spec, place)
            return self._indexed(kind, name, spec, place)
        except OSError as error:
            words = f"{spec} cannot be read ({error.strerror or error}); make it readable here"
            return Sealed(spec, Stop(place, words))
        except RuleError as error:
            return Sealed(spec, Stop(place, f"{spec} cannot be understood: {error}"))

    def _ordered(self, kind: str, name: str, spec: str, place: Place) -> Table:
        if name.startswith("{"):
            lines = [(unbrace(item), place) for item in split_list(unbrace(name))]
        else:
            path = self._path(name)
            lines = lines_of(read_text(path), str(path))
        return _ORDERED[kind](spec, place, read_rules(lines, are_patterns=kind != "cidr"))

    def _indexed(self, kind: str, name: str, spec: str, place: Place) -> Table:
        path = self._path(name)
        index = path.with_name(path.name + _SUFFIXES.get(kind, ""))
        text = _pairs(path) if path.exists() else None
        if kind == "texthash":
            return Plain(spec, place, _pairs(path))
        listed = _listed(kind, path, self._home) if index.exists() else None
        if listed is None and text is None:
            if not index.exists():
                raise FileNotFoundError(2, "No such file", str(path))
            return Sealed(spec, Stop(place, f"{index} has no text beside it and postmap cannot list it here"))
        if listed is None:
            text = text or []
            if not index.exists():
                self.doubts[f"{spec} has no index ({index.name} is missing): judged by its text; run postmap"] = None
            elif path.stat().st_mtime > index.stat().st_mtime:
                self.doubts[f"{path} is newer than {index.name}: judged by the text; run postmap"] = None
            return Plain(spec, place, text)
        where = {key.lower(): hit.place for key, hit in text or ()}
        if text is not None and {key.lower(): hit.value for key, hit in reversed(text)} != {
            key.lower(): value for key, value in listed
        }:
            self.doubts[f"{index.name} does not hold what {path} says: judged by the index; run postmap"] = None
        return Plain(
            spec, place, ((key, Hit(value, where.get(key.lower(), Place(str(index))))) for key, value in listed)
        )

    def _path(self, name: str) -> Path:
        """The file meant; in a copy of /etc/postfix the copy's."""
        path = Path(name)
        if self._home != _USUAL_HOME and path.is_relative_to(_USUAL_HOME):
            copy = self._home / path.relative_to(_USUAL_HOME)
            if copy.exists() and not path.exists():
                self.doubts[f"{copy} was read in place of {path}"] = None
                return copy
        return path


def _pairs(path: Path) -> list[tuple[str, Hit]]:
    """Keys and values of a text that postmap(1) would index."""
    found = []
    for logical in logical_lines(read_text(path)):
        text = logical.text
        if text.startswith('"') and '"' in text[1:]:
            end = text.index('"', 1)
            key, value = text[1:end], text[end + 1 :]
        else:
            key, _, value = text.replace("\t", " ").partition(" ")
        found.append((key.removesuffix(":"), Hit(value.strip(), Place(str(path), logical.line))))
    return found


def _listed(kind: str, path: Path, home: Path) -> Iterable[tuple[str, str]] | None:
    """What the index holds, as `postmap -s` lists it; None when it can't."""
    program = find_program("postmap")
    printed = None if program is None else run([program, "-c", str(home), "-s", f"{kind}:{path}"])
    if printed is None:
        return None
    pairs = (line.partition("\t") for line in printed.split("\n") if line)
    return [(key, value.strip()) for key, _, value in pairs]
