"""Groups of commands."""

from __future__ import annotations

import click

from meter_agent.cli.exit_codes import ExitCode

__all__ = ["Group", "group_help"]

_UNCUT = 10_000
"""Characters of a sentence after which click would cut it."""


class Group(click.Group):
    """A group whose help has the whole first sentence of each command."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list for each section."""
        width = max(map(len, self.commands), default=0)
        for section, names in self.sections(ctx).items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(width), self._sentence(name)) for name in names])

    def sections(self, ctx: click.Context) -> dict[str, list[str]]:
        """Return the names of commands by heading."""
        return {"Commands": self.list_commands(ctx)}

    def _sentence(self, name: str) -> str:
        return self.commands[name].get_short_help_str(_UNCUT)


def group_help(context: click.Context) -> None:
    """Answer a group that is called without a command: its help on stderr, and a usage error."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)  # noqa: TID251 - several lines, none from outside
        context.exit(ExitCode.USAGE)
