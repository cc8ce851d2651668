"""`atlasctl completion`: what a shell runs to complete verbs, options and files."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_ATLASCTL_COMPLETE"
"""By this variable click knows that the shell asks."""
_MENDED = {
    # zsh has compdef only after compinit, which ~/.zshrc may call later or never.
    "zsh": (
        "    compdef ",
        "    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }\n    compdef ",
    ),
    # The text behind a verb may have commas of its own.
    "fish": ('string split ","', 'string split --max 1 ","'),
}
"""What is replaced in click's own text for a shell."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion for a shell.

    For bash, add to ~/.bashrc: eval "$(atlasctl completion bash)"
    """
    kind = get_completion_class(shell)
    if kind is None:  # the names are click's own
        raise click.UsageError(f"click does not complete for {shell}.")
    program = click.get_current_context().find_root()
    made = kind(program.command, {}, program.info_name or "atlasctl", _VARIABLE)
    click.echo(made.source().replace(*_MENDED.get(shell, ("", ""))))
