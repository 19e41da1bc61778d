"""Writes the reference pages from the program itself: `python -m posthouse.cli.reference DIRECTORY`.

docs/commands.md comes from the commands, docs/configuration.md from the table of keys; a test holds both up to date.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from posthouse.cli.program import COMMANDS, program
from posthouse.cli.sendmail.arguments import HELP as SENDMAIL_HELP
from posthouse.config.keys import LATER_ROLES, LATER_SECTIONS, SECTIONS
from posthouse.config.table import section_title

_COMMANDS_HEAD = """\
# Commands

Written by `python -m posthouse.cli.reference docs` from the program; don't edit by hand.

Every command takes `--config FILE`; the default is `./posthouse.toml`, then `/etc/posthouse/posthouse.toml`, then the
embedded default. Commands that report take `--json`: one document on standard output and nothing else there. Diagnostics
go to standard error.

| exit status | means |
|---|---|
| 0 | yes, or done |
| 1 | the answer is no: open, refused, not found; the running server says no |
| 2 | wrong usage, configuration or user: also when no server runs, or what is asked for is closed to this user or can't be read |
| 3 | no verdict could be reached; also when the running server does not answer: what was asked for may have happened or not |

`posthouse sendmail` uses the codes of sysexits.h instead. Called by the name `sendmail`, `mailq` or `newaliases` (a link),
the program acts as that.
"""

_CONFIGURATION_HEAD = """\
# Configuration

Written by `python -m posthouse.cli.reference docs` from the program; don't edit by hand.

One TOML file: `--config FILE`, else `./posthouse.toml`, else `/etc/posthouse/posthouse.toml`; without any, the embedded
default relays for this machine alone, on 127.0.0.1:2525. `posthouse init` writes a first file.

- An unknown key, a wrong type or a contradiction is an error with the line, the key and the remedy; nothing starts half.
- Relative paths are relative to the file. Domains may be written in any script; addresses and networks are never looked up.
- Times are seconds, or "30s", "5m", "4h", "5d", "2w". Sizes are octets, or "50MB" (10^6), "64MiB" (2^20).
- `posthouse reload` puts a change in force, or says why not; then the running configuration stays.
- A file in the current directory that others own or may write is not trusted; name it with `--config` if you mean it.
"""


def main() -> None:
    """Writes both pages into the directory that the command line names."""
    directory = Path(sys.argv[1])
    for name, page in PAGES.items():
        (directory / name).write_text(page())


def commands_page() -> str:
    """Every command with its usage, options and exit statuses."""
    parts = [_COMMANDS_HEAD]
    root = click.Context(program, info_name="posthouse", **program.context_settings)
    for name in COMMANDS:
        command = program.get_command(root, name)
        if command is None:
            raise LookupError(name)
        parts += _command_parts(command, name, root, level=2)
    return "\n".join(parts)


def _command_parts(command: click.Command, name: str, parent: click.Context, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
    help_text = SENDMAIL_HELP if name == "sendmail" else command.get_help(context).rstrip()
    yield f"{'#' * level} {context.command_path}\n\n```\n{help_text}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                yield from _command_parts(found, inner, context, level + 1)


def configuration_page() -> str:
    """Every section with its keys."""
    parts = [_CONFIGURATION_HEAD]
    for name, section in SECTIONS.items():
        parts.append(f"## {section_title(name) or 'The top of the file'}\n\n{section.about}\n")
        if section.keys:
            rows = "\n".join(f"| `{key.name}` | {key.kind} | {key.default} | {key.meaning} |" for key in section.keys)
            parts.append(f"| key | value | default | meaning |\n|---|---|---|---|\n{rows}\n")
    later = ", ".join(f"`[{name}]` ({what})" for name, what in LATER_SECTIONS.items())
    roles = ", ".join(f"`{role}`" for role in LATER_ROLES)
    parts.append(
        f"## Not built yet\n\nThe sections {later}, the listener roles {roles} and the next hops `uucp:` and `ftn:` are "
        f"known by name; a file that uses one is refused in words.\n"
    )
    return "\n".join(parts)


PAGES = {"commands.md": commands_page, "configuration.md": configuration_page}
"""File name: what writes its text."""

if __name__ == "__main__":
    main()
