"""`meter-agent config`: the settings as an agent would have them."""

from __future__ import annotations

import json

import click

from meter_agent.cli import delivery_options
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.groups import Group, group_help
from meter_agent.cli.settings import given_settings
from meter_agent.cli.shell_words import shell_words

__all__ = ["config"]


@click.group(cls=Group, name="config", invoke_without_command=True)
@click.pass_context
def config(context: click.Context) -> None:
    """Look at the settings."""
    group_help(context)


@config.command(name="show")
@delivery_options.sandbox_url
@click.option("--json", "as_json", is_flag=True, help="Print JSON Lines.")
@click.pass_context
def show(context: click.Context, /, *, sandbox_url: str | None, as_json: bool) -> None:
    """Print every setting: its value, and where that comes from. Secrets are masked.

    Exit code 2 when a setting is wrong; what is wrong is told on stderr.
    """
    from meter_agent import Config, ConfigError
    from meter_agent._config import unknown_variables
    from meter_agent._found_settings import find_settings
    from meter_agent.cli.printing import Columns, print_json, say

    given = given_settings(sandbox_url=sandbox_url)
    table = Columns(setting=24, value=40, origin=0)
    for found in find_settings(**given):
        name, value = found.setting.name, found.value
        if as_json:
            problem = None if found.problem is None else shell_words(found.problem)
            document = {"setting": name, "value": value, "origin": found.origin}
            print_json({**document, "variable": found.setting.variable, "problem": problem})
        else:
            table.row(name, _shown(value), found.origin)
    for variable, nearest in unknown_variables():
        hint = f": is {nearest} meant?" if nearest else ""
        say(f"{variable} is no setting{hint}", err=True)
    try:
        Config.from_env(**given)
    except ConfigError as error:
        for problem in error.problems:
            say(shell_words(problem), err=True)
        context.exit(ExitCode.USAGE)


def _shown(value: object) -> str:
    # As it would stand in the variable.
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)
