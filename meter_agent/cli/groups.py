"""Groups of commands."""

from __future__ import annotations

import click

from meter_agent.cli.exit_codes import ExitCode

__all__ = ["group_help"]


def group_help(context: click.Context) -> None:
    """Answer a group that is called without a command: its help on stderr, and a usage error."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(ExitCode.USAGE)
