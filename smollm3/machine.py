"""Verbs about the machine and the shell."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    In bash: eval "$(smollm3 completion bash)". For every new shell, put that line into ~/.bashrc.
    """
    from smollm3.command_line import smollm3

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(smollm3, {}, "smollm3", "_SMOLLM3_COMPLETE").source())
