"""Verbs about the machine and the shell."""

import click
from click.shell_completion import get_completion_class

from smollm3.options import json_option


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


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Say what is installed, what a training would use, and what is missing and how to get it.

    Compares installed packages with the lock, and names the build of torch, driver and GPUs, the attention backend and
    the compiler that a training would use. Exit code 1: something is missing that the project cannot run without.
    """
    from check.doctor import examine, show, to_json, works

    findings = examine()
    if as_json:
        click.echo(to_json(findings))
    else:
        show(findings)
    return 0 if works(findings) else 1
