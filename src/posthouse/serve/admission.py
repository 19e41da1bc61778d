"""Whether a configuration may be put in force: it can be read, its files can be read, and no stranger could relay by it.

The same door for `serve`, for a reload and for a restart; what it lets through is what the workers run.
"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from posthouse.config import (
    Config,
    ConfigError,
    check_files,
    default_config,
    find_config,
    find_exposed,
    find_warnings,
    load_config,
)
from posthouse.config.search import HERE
from posthouse.policy.matrix import matrix_changes
from posthouse.policy.rules import Rules
from posthouse.serve.account_file import AccountError, AccountFile, accounts_path
from posthouse.serve.changes import setting_changes
from posthouse.serve.closure import examine
from posthouse.serve.rules import check_labs, rules_of
from posthouse.serve.self_test import SelfTest, rehearse
from posthouse.serve.testing import never_tested
from posthouse.tester.token import KeyFault, load_key


class NotAdmitted(Exception):
    """The configuration can't be put in force; the text is one sentence with the place and the remedy."""


class Admitted(msgspec.Struct, frozen=True):
    """A configuration that was proved closed, with its rules and what is allowed but surely not meant."""

    config: Config
    rules: Rules
    warnings: tuple[str, ...] = ()
    self_test: SelfTest | None = None

    def changes_from(self, old: "Admitted") -> "Changes":
        """What is different now, in words."""
        return Changes(
            matrix_changes(old.rules, self.rules), setting_changes(old.config, self.config), list(self.warnings)
        )


class Changes(msgspec.Struct, frozen=True):
    """What a reload brings: how the relay matrix changes, what else does, and what is surely not meant."""

    changes: list[str]
    other_changes: list[str]
    warnings: list[str]


def admit(path: Path | None) -> Admitted:
    """Reads `path` (None: the embedded default) and proves it closed on this machine, as it stands. NotAdmitted."""
    try:
        config = load_config(path) if path is not None else default_config()
        doubts = check_surroundings(config)
        rules = rules_of(config)
        check_labs(config, rules, time.time())
    except ConfigError as error:
        raise NotAdmitted(str(error)) from error
    closure = examine(rules)
    if not closure.is_closed:
        raise NotAdmitted(f"{config.place} would make an open relay. {' '.join(closure.sentences)}")
    tested = rehearse(config, rules)
    if tested.relayed is not None:
        words = f"{tested.relayed.sentence} The dialogue:{tested.relayed.dialogue_text}"
        raise NotAdmitted(f"{config.place} would make an open relay. {words}")
    return Admitted(config, rules, (*find_warnings(config), *closure.doubts, *doubts), tested)


def check_surroundings(config: Config) -> list[str]:
    """Reads the files beside the configuration. ConfigError for what can't be used, sentences for what is surely not meant."""
    check_files(config)
    if config.tester.key_file is not None:
        try:
            load_key(config.tester.key_file)
        except KeyFault as fault:
            raise ConfigError(str(fault)) from fault
    never_tested(config)
    found = find_exposed(config)
    try:
        AccountFile(accounts_path(config)).read()
    except AccountError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise ConfigError(str(error)) from error
        found.append(f"{error}, so nobody can log in as long as the server runs as this user")
    return found


def admission_of(explicit: Path | None) -> Callable[[], Admitted]:
    """What a server calls at its start and at each reload: always for the one file that is found now. ConfigError.

    `explicit` None: the usual places are searched, once. A file that vanishes is an error, never a reason to go on to the
    next place, and a server on the embedded default takes up no file that somebody puts there later.
    """
    found = find_config(explicit)
    path = found.absolute() if found is not None else None

    def again() -> Admitted:
        if explicit is None:
            _check_still_meant(path)
        return admit(path)

    return again


def _check_still_meant(path: Path | None) -> None:
    """The file that a search found is still the owner's to choose; nothing has come up beside the default. NotAdmitted."""
    if path is not None and path != HERE.absolute():
        return
    try:
        found = find_config(None)  # looks at the owner again
    except ConfigError as error:
        raise NotAdmitted(str(error)) from error
    if path is None and found is not None:
        raise NotAdmitted(
            f"this server was started on the embedded default, before there was {found.absolute()}: "
            f"restart it to have that file in force"
        )
