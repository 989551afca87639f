"""Options of the commands about dead letters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from meter_agent._dead_letters import DeadLetterReason

__all__ = ["as_json", "choice"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON Lines.")


def choice(command: _Command) -> _Command:
    """Add the file, and which of its letters."""
    for decorate in (
        click.option("--line", "lines", type=int, multiple=True, help="Only this line."),
        click.option("--identifier", "identifiers", multiple=True, help="Only of this event."),
        click.option(
            "--reason",
            "reasons",
            type=click.Choice([reason.value for reason in DeadLetterReason]),
            multiple=True,
            help="Only letters with this reason.",
        ),
        click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command
