"""`posthouse completion bash|zsh|fish`: the script that lets a shell complete commands and options."""

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from posthouse.cli.options import config_option, fail

_HOW = {
    "bash": 'add to ~/.bashrc:  eval "$(posthouse completion bash)"',
    "zsh": 'add to ~/.zshrc:  eval "$(posthouse completion zsh)"',
    "fish": "posthouse completion fish > ~/.config/fish/completions/posthouse.fish",
}


@click.command(name="completion", help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(list(_HOW)))
@config_option
@click.pass_context
def command(context: click.Context, shell: str, config_path: Path | None) -> None:
    """The script goes to standard output, how to use it stands in its first line."""
    del config_path  # taken because every command takes it
    completion_class = get_completion_class(shell)
    if completion_class is None:
        fail(f"there is no completion for {shell}")
    program = context.find_root().command
    script = completion_class(program, {}, "posthouse", "_POSTHOUSE_COMPLETE").source()
    click.echo(f"# {_HOW[shell]}\n{script}")
