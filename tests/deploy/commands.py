"""Checks a container's command line against the real commands without running them."""

from collections.abc import Sequence

import typer

from streams.cli import app
from streams.settings import PREFIX, Settings


def parsed(arguments: Sequence[str]) -> str:
    """The command that `recstream ARGUMENTS` means, such as `topics create`.

    Raises:
        click.UsageError: there is no such command or option, or a value is not allowed.
    """
    command = typer.main.get_command(app)
    context = command.make_context("recstream", list(arguments))
    path = []
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        path.append(str(name))
        context = command.make_context(name, list(rest), parent=context)
    return " ".join(path)


def unknown_settings(names: Sequence[str]) -> list[str]:
    """Variables that look like settings of recstream and are none."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in names if name.startswith(PREFIX) and name not in known)
