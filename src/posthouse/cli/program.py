"""The table of commands, and what is common to them: help without loading them, errors as one plain sentence.

A command lives in its own module as `command`, a click command; the table says where, so that `posthouse --help`
loads none of them.
"""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

import click

import posthouse
from posthouse.cli.options import ExitStatus, Fault, as_typed, config_option

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("posthouse.cli.serve", "Run the mail relay in the foreground."),
    "reload": ("posthouse.cli.reload", "Have the running server read its configuration again, and show what changes."),
    "relay": ("posthouse.cli.relay", "Turn relaying off or on at once, or show which it is."),
    "demo": ("posthouse.cli.demo", "See a relay at work in one minute: loopback only, nothing left behind."),
    "init": ("posthouse.cli.init", "Write a commented configuration file."),
    "check": ("posthouse.cli.check", "Decide whether a stranger could relay, and print the relay matrix."),
    "test": ("posthouse.cli.test", "Test from outside whether a host relays for strangers."),
    "scan": ("posthouse.cli.scan", "Test the hosts of a list, all of them authorised."),
    "watch": ("posthouse.cli.watch", "Have this server tested from outside by the tester of [watch]."),
    "trace": ("posthouse.cli.trace", "Say step by step what would happen to a mail for an address."),
    "queue": ("posthouse.cli.queue", "Look at the queue and act on it."),
    "why": ("posthouse.cli.why", "Tell the recorded history of one message."),
    "usage": ("posthouse.cli.usage", "Show who used this server's relaying."),
    "user": ("posthouse.cli.user", "Manage the accounts for SMTP AUTH."),
    "sendmail": ("posthouse.cli.sendmail.command", "Take a mail from standard input, as sendmail(1) does."),
    "completion": ("posthouse.cli.completion", "Print the completion script for a shell."),
}
"""Name: the module that holds it as `command`, and its line in the help. A test holds the two help texts equal."""


class LazyCommands(click.Group):
    """A group that imports a command when it is called, and prints its help lines from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the table's order: what one needs first stands first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command; None when there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name][0]}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(posthouse.__version__, prog_name="posthouse", message="%(prog)s %(version)s")
@config_option
def program(config_path: object) -> None:
    """Posthouse: an SMTP relay that cannot become an open relay by accident.

    Every command takes --config FILE (default: ./posthouse.toml, then /etc/posthouse/posthouse.toml, then the
    embedded default). Exit status: 0 yes or done, 1 the answer is no, 2 wrong usage or configuration, 3 no verdict.
    """
    del config_path  # commands read it from the context, through their own config_option


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and answers its exit status; a user's mistake is one sentence on standard error."""
    from posthouse.config import ConfigError  # noqa: PLC0415 - `posthouse --version` needs no configuration

    try:
        answer = program.main(args=list(arguments), prog_name="posthouse", standalone_mode=False)
        sys.stdout.flush()  # a full disk behind it shows here, not when nobody can answer it any more
    except Fault as error:
        error.show()
        return error.status
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        sys.stderr.write(as_typed(shown.getvalue()))
        return error.exit_code
    except ConfigError as error:
        print(f"posthouse: {as_typed(str(error))}", file=sys.stderr)
        return ExitStatus.USAGE
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("posthouse: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `posthouse queue list | head`: the reader has had enough
        _give_output_up()
        return ExitStatus.DONE
    except OSError as error:
        return _answer_system(error)
    return answer if isinstance(answer, int) else ExitStatus.DONE


def write_whole() -> None:
    """Has standard output written to its end where Python was told not to buffer it (PYTHONUNBUFFERED, usual in containers).

    Python then loses what one write(2) leaves over, and a pipe takes less than all whenever a signal or the kernel's own
    io_uring work comes between: a JSON document ended after 65536 octets.
    """
    raw = getattr(sys.stdout, "buffer", None)
    if isinstance(raw, io.RawIOBase):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=sys.stdout.encoding,
            errors=sys.stdout.errors,
            line_buffering=True,
        )


def _answer_system(error: OSError) -> int:
    """What the operating system refused and no command had words for: one sentence, and no verdict when it is no permission."""
    try:
        sys.stdout.flush()
    except OSError:
        _give_output_up()
    place = f"{error.filename}: " if error.filename is not None else ""
    if isinstance(error, PermissionError):
        remedy = "is closed to this user; run it as root or as the server's user"
        print(f"posthouse: {error.filename or 'what it needs'} {remedy}", file=sys.stderr)
        return ExitStatus.USAGE
    print(f"posthouse: {place}{error.strerror or error}", file=sys.stderr)
    return ExitStatus.NO_VERDICT


def _give_output_up() -> None:
    """Nobody takes our output: what is still buffered goes nowhere, so that the end is quiet."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
