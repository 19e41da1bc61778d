"""master.cf: the services, each with what its `-o` options override (master(5))."""

from pathlib import Path

import msgspec

from posthouse.audit.finding import AuditError
from posthouse.audit.postfix.place import Place
from posthouse.audit.postfix.text import Logical, logical_lines, read_text, split_list, unbrace

_FIELDS = 8


class Override(msgspec.Struct, frozen=True):
    """One `-o name=value`."""

    value: str
    place: Place


class Service(msgspec.Struct, frozen=True):
    """One entry: `name` as written ("smtp", "127.0.0.1:10025"), `kind` inet, unix, pass ..., `command` the program."""

    name: str
    kind: str
    command: str
    overrides: dict[str, Override]
    place: Place

    @property
    def title(self) -> str:
        """How people find the entry: its first two fields and its program."""
        return f"{self.name} {self.kind} {self.command}"


def read_master(path: Path) -> list[Service]:
    """All services in order. AuditError when the file can't be read or a line has too few fields."""
    try:
        text = read_text(path)
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error.strerror}") from error
    return [_service(logical, str(path)) for logical in logical_lines(text)]


def _service(logical: Logical, file: str) -> Service:
    fields = split_list(logical.text, " \t\r\n")
    if len(fields) < _FIELDS:
        raise AuditError(f"{file}, line {logical.line}: a service has eight fields at least, this has {len(fields)}")
    name, kind, command, arguments = fields[0], fields[1], fields[7], fields[8:]
    overrides, after = {}, logical.line
    for setting in _settings(arguments):
        key, _, value = unbrace(setting).partition("=")
        after = logical.line_of(key.strip(), after)
        overrides[key.strip()] = Override(value.strip(), Place(file, after))
    return Service(name, kind, command, overrides, Place(file, logical.line))


def _settings(arguments: list[str]) -> list[str]:
    """What follows each -o, which may also stick to it."""
    found, arguments = [], list(arguments)
    while arguments:
        argument = arguments.pop(0)
        if argument == "-o" and arguments:
            found.append(arguments.pop(0))
        elif argument.startswith("-o") and "=" in argument:
            found.append(argument[2:])
    return found
