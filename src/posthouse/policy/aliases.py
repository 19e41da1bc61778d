"""Aliases: which addresses stand for others (RFC 5321 3.9.1).

A key is "name@example.org", "name" (in every local domain, and `<postmaster>` for the name postmaster), or
"@example.org" (all of that domain that has no alias of its own). A target equal to the address itself means "and here
as well". An address that leads back to itself through others is an error when the rules are compiled.
"""

from collections.abc import Callable, Iterable

import msgspec

from posthouse.smtp.address import AddressError, Path, parse_mailbox

DEEPEST = 50
"""Aliases that lead to aliases, so many times; more is taken for a ring."""


class AliasError(ValueError):
    """An alias can't be used; the message is a sentence with the remedy."""


def mailbox_key(path: Path) -> str:
    """The address as lists hold it. The local part is compared without regard to case: two mailboxes that differ by case
    alone exist nowhere, and who writes Alice means alice."""
    return f"{path.local_part.decode('utf-8', 'surrogateescape').lower()}@{path.domain}"


def parse_address_text(text: str) -> Path:
    """The Path of "user@example.org" in a configuration. AliasError when it is none."""
    try:
        return parse_mailbox(text.strip().encode())
    except AddressError as error:
        raise AliasError(f'"{text}" is not an address ({error.words}); write user@example.org') from error


class Ring(msgspec.Struct, frozen=True):
    """The aliases lead from this address back to it, or deeper than DEEPEST."""

    key: str


class AliasTable:
    """Targets by address. Never changed once made."""

    __slots__ = ("_addresses", "_names")

    def __init__(self, aliases: Iterable[tuple[str, Iterable[str]]]) -> None:
        self._addresses: dict[str, tuple[Path, ...]] = {}
        self._names: dict[str, tuple[Path, ...]] = {}
        for key, targets in aliases:
            paths = tuple(self._parse_target(key, target) for target in targets)
            if not paths:
                raise AliasError(f'The alias "{key}" has no target; give at least one address, or remove it')
            if "@" not in key:
                self._names[key.strip().lower()] = paths
            elif key.strip().startswith("@"):
                self._addresses[f"@{parse_address_text(f'any{key.strip()}').domain}"] = paths
            else:
                self._addresses[mailbox_key(parse_address_text(key))] = paths

    @staticmethod
    def _parse_target(key: str, target: str) -> Path:
        if "@" not in target:
            raise AliasError(
                f'The alias "{key}" leads to "{target}", which has no domain; write {target}@ and the domain'
            )
        try:
            return parse_address_text(target)
        except AliasError as error:
            raise AliasError(f'The alias "{key}": {error}') from error

    def targets(self, path: Path, *, is_local: bool) -> tuple[Path, ...]:
        """What the address stands for, one step; () when it has no alias. `is_local`: bare names count."""
        found = self._addresses.get(mailbox_key(path))
        if found is None and is_local:
            found = self._names.get(path.local_part.decode("utf-8", "surrogateescape").lower())
        if found is None:
            found = self._addresses.get(f"@{path.domain}", ())
        return found

    def follow(self, path: Path, is_local: Callable[[Path], bool]) -> "tuple[Path, ...] | Ring":
        """Where mail for the address ends up, each address once, in the order of the configuration."""
        found: dict[str, Path] = {}
        return self._follow(path, is_local, (), set(), found) or tuple(found.values())

    def _follow(
        self,
        path: Path,
        is_local: Callable[[Path], bool],
        above: tuple[str, ...],
        seen: set[str],
        found: dict[str, Path],
    ) -> "Ring | None":
        """Depth first: `above` are the addresses on the way here, `seen` all that were followed, `found` the ends."""
        key = mailbox_key(path)
        if key in above or len(above) > DEEPEST:
            return Ring(key)
        if key in seen:
            return None
        seen.add(key)
        targets = self.targets(path, is_local=is_local(path))
        if not targets:
            found[key] = path
        for target in targets:
            target_key = mailbox_key(target)
            if target_key == key:
                found[key] = target
            elif ring := self._follow(target, is_local, (*above, key), seen, found):
                return ring
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """The keys without a domain."""
        return tuple(self._names)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The keys with a domain."""
        return tuple(self._addresses)

    def all_targets(self) -> frozenset[Path]:
        """Every address that some alias leads to."""
        tables = (self._addresses, self._names)
        return frozenset(path for table in tables for paths in table.values() for path in paths)

    def __len__(self) -> int:
        return len(self._addresses) + len(self._names)
