"""[aliases]: other names for recipients. The meaning is policy's; here each name and target is checked where it stands."""

from posthouse.config import values

Aliases = tuple[tuple[str, tuple[str, ...]], ...]


def read_aliases(value: object) -> Aliases:
    """Kind of value: the table of aliases, names in lower case. ItemError for a name or target that is none."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a table, not {values.type_name(value)}")  # noqa: TRY004
    found: dict[str, tuple[str, ...]] = {}
    for name, targets in value.items():
        try:
            found[_new_name(name, found)] = _targets(name, targets)
        except ValueError as error:
            raise values.ItemError(name, str(error)) from None
    return tuple(found.items())


def _new_name(name: str, taken: dict[str, tuple[str, ...]]) -> str:
    folded = _name(name)
    if folded in taken:
        raise ValueError(f"has {name!r} twice (letter case does not count)")
    return folded


def _name(name: str) -> str:
    """A local part, an address, or "@example.org" for all of a domain."""
    if name.startswith("@"):
        return f"@{values.host_name(name[1:])}"
    return values.mail_address(name if "@" in name else f"{name}@localhost").removesuffix("@localhost").lower()


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
    if "@" not in written:
        raise ValueError(f"{name!r} leads to {written!r}, which has no domain; write {written}@ and the domain")
    return values.mail_address(written)
