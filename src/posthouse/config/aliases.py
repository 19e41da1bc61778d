"""[aliases]: other names for recipients."""

from posthouse.config import values

Aliases = tuple[tuple[str, tuple[str, ...]], ...]


def read_aliases(value: object) -> Aliases:
    """Kind of value: the table of aliases, names in lower case. ValueError for a target that is nothing, or a circle."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a table, not {values.type_name(value)}")  # noqa: TRY004
    found: dict[str, tuple[str, ...]] = {}
    for name, targets in value.items():
        try:
            found[_new_name(name, found)] = _targets(name, targets)
        except ValueError as error:
            raise values.ItemError(name, str(error)) from None
    for name in value:
        try:
            _check_ends(name.lower(), found)
        except ValueError as error:
            raise values.ItemError(name, str(error)) from None
    return tuple(found.items())


def _check_ends(start: str, aliases: dict[str, tuple[str, ...]]) -> None:
    """Follows an alias to its ends: each must be an address, and none may lead back."""
    seen: set[str] = set()
    pending = list(aliases.get(start, ()))
    while pending:
        name = pending.pop().lower()
        if name == start:
            raise ValueError(f"{start!r} leads back to itself")
        if "@" not in name and name not in aliases:
            raise ValueError(f"{start!r} leads to {name!r}, which is neither an address nor another alias")
        if name in aliases and name not in seen:
            seen.add(name)
            pending += aliases[name]


def _new_name(name: str, taken: dict[str, tuple[str, ...]]) -> str:
    folded = _name(name)
    if folded in taken:
        raise ValueError(f"has {name!r} twice (letter case does not count)")
    return folded


def _name(name: str) -> str:
    if "@" in name:
        return values.mail_address(name).lower()
    if not name or any(character in name for character in ' <>,;:"\\()[]') or not name.isprintable():
        raise ValueError(f"has {name!r}, which is neither a local part nor an address")
    return name.lower()


def _targets(name: str, targets: object) -> tuple[str, ...]:
    if not isinstance(targets, list):
        raise ValueError(f'{name!r} must be an array: {name} = ["someone@example.org"]')  # noqa: TRY004
    if not targets:
        raise ValueError(f"{name!r} leads to nobody; name at least one address")
    return tuple(_target(name, target) for target in targets)


def _target(name: str, target: object) -> str:
    written = values.text(target)
    if written.startswith("|"):
        raise ValueError(f'{name!r}: programs are run by a [[route]] to "pipe:", not by an alias')
    return values.mail_address(written) if "@" in written else _name(written)
