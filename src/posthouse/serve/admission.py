"""Whether a configuration may be put in force: it can be read, its files can be read, and no stranger could relay by it.

The same door for `serve`, for a reload and for a restart; what it lets through is what the workers run.
"""

from pathlib import Path

import msgspec

from posthouse.config import Config, ConfigError, check_files, find_warnings, load_config
from posthouse.policy.matrix import matrix_changes
from posthouse.policy.rules import Rules
from posthouse.serve.closure import examine
from posthouse.serve.rules import rules_of


class NotAdmitted(Exception):
    """The configuration can't be put in force; the text is one sentence with the place and the remedy."""


class Admitted(msgspec.Struct, frozen=True):
    """A configuration that was proved closed, with its rules and what is allowed but surely not meant."""

    config: Config
    rules: Rules
    warnings: tuple[str, ...] = ()

    def changes_from(self, old: "Admitted") -> list[str]:
        """How the relay matrix changes, in words; empty when it does not."""
        return matrix_changes(old.rules, self.rules)


def admit(path: Path | None) -> Admitted:
    """Reads `path` (None: the usual places) and proves it closed on this machine, as it stands. NotAdmitted."""
    try:
        config = load_config(path)
        check_files(config)
        rules = rules_of(config)
    except ConfigError as error:
        raise NotAdmitted(str(error)) from error
    closure = examine(rules)
    if not closure.is_closed:
        source = config.source or "the embedded default"
        raise NotAdmitted(f"{source} would make an open relay. {' '.join(closure.sentences)}")
    return Admitted(config, rules, (*find_warnings(config), *closure.doubts))
