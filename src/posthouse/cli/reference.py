"""Writes the reference pages from the program itself: `python -m posthouse.cli.reference DIRECTORY`.

docs/commands.md comes from the commands, docs/configuration.md from the table of keys, docs/cases.md from the relay test's cases,
docs/test-report.schema.json from its report; a test holds them up to date.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from msgspec.json import schema

from posthouse.cli.program import COMMANDS, program
from posthouse.cli.sendmail.arguments import HELP as SENDMAIL_HELP
from posthouse.config.keys import LATER_ROLES, LATER_SECTIONS, SECTIONS
from posthouse.config.table import section_title
from posthouse.tester.case import CASES, TESTER_HELLO, Case, Names, Way
from posthouse.tester.report import Document

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
    """Writes all pages into the directory that the command line names."""
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


_CASES_HEAD = """\
# The cases of the relay test

Written by `python -m posthouse.cli.reference docs` from the program; don't edit by hand. [The relay test](test.md) says what
is done with them.

`target` is the host's domain, `mx.target` its name, `192.0.2.1` its address; `user@third` is the third party, whose local part
carries the token; `me@tester` is the tester. *Local*: it may be accepted for a mailbox of the host's own, never passed on.
"""

_CASE_NAMES = Names("target", "mx.target", "192.0.2.1", "user", "third", "me", "tester", "tester")


def cases_page() -> str:
    """Every case, as it is said."""
    rows = (
        f"| {case.number} | {case.name} | {_said(case.mail_line(_CASE_NAMES))} | {_said(case.rcpt_line(_CASE_NAMES))} "
        f"| {_how(case)} | {case.right} | {case.history.replace('|', chr(92) + '|')} |"
        for case in CASES
    )
    head = "| case | name | MAIL FROM: | RCPT TO: | way | right | history |\n|---|---|---|---|---|---|---|"
    ways = "\n".join(f"| {way} | {_WAY_WORDS[way]} |" for way in Way)
    return "\n".join([_CASES_HEAD, head, *rows, "", "## Ways", "", "| way | how it is said |", "|---|---|", ways, ""])


def _how(case: Case) -> str:
    """The way, with the name in EHLO and the false end of data where these make the case."""
    hello = f", EHLO `{_CASE_NAMES.fill(case.hello)}`" if case.hello != TESTER_HELLO else ""
    return f"{case.way}{hello}" + (f", `{case.ending.encode('unicode_escape').decode()}`" if case.ending else "")


def _said(line: bytes) -> str:
    """The path as code in a table's cell; what can't be printed is escaped."""
    path = line.partition(b":")[2].decode()
    shown = "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in path)
    return f"`{shown}`".replace("|", "\\|")


_WAY_WORDS = {
    Way.SEPARATE: "MAIL, RCPT and DATA, each after the answer to the one before",
    Way.PIPELINED: "MAIL, RCPT and DATA in one packet, where PIPELINING is offered",
    Way.BDAT: "the content by BDAT, where CHUNKING is offered",
    Way.AFTER_RSET: "after a transaction to the host's postmaster was reset",
    Way.SECOND_RECIPIENT: "behind the host's postmaster as the first recipient",
    Way.SECOND_EHLO: "in a transaction begun after a second EHLO",
    Way.HELO: "after HELO instead of EHLO",
    Way.NO_HELLO: "without HELO or EHLO",
    Way.STARTTLS: "through TLS, where it is offered",
    Way.REFUSED_AUTH: "after an AUTH that was begun and called off; no password is guessed",
    Way.XCLIENT: "after `XCLIENT ADDR=127.0.0.1`",
    Way.PROXY_V1: "behind a PROXY header that says 127.0.0.1 calls",
    Way.PROXY_V2: "the same, version 2",
    Way.SMUGGLED: "inside a mail to the host's postmaster, behind an end of data that is none",
}


_DIALECT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def report_schema() -> str:
    """The JSON schema of `posthouse test --json`."""
    return json.dumps(_DIALECT | schema(Document), indent=1, ensure_ascii=False) + "\n"


PAGES = {
    "commands.md": commands_page,
    "configuration.md": configuration_page,
    "cases.md": cases_page,
    "test-report.schema.json": report_schema,
}
"""File name: what writes its text."""

if __name__ == "__main__":
    main()
