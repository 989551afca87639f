"""`meter-agent status`: how things stand on this host."""

from __future__ import annotations

from pathlib import Path

import click

from meter_agent.cli import delivery_options
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.settings import given_settings, read_settings

__all__ = ["status"]


@click.command
@delivery_options.sandbox_url
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where journals of imports are kept. Default: ~/.local/state/meter-agent/imports.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def status(
    context: click.Context,
    /,
    *,
    sandbox_url: str | None,
    state_dir: Path | None,
    as_json: bool,
) -> None:
    """Tell how things stand on this host.

    Printed is where events go, what waits, what was refused, and which imports there were.

    It reads the files that the settings name, and a sandbox's totals if they name a sandbox. What
    running processes hold in memory cannot be seen from outside: that is their stats().

    Exit codes: 1 something needs a human: orphans in a spool on which nobody alive has a segment,
    damage, dead letters that were neither sent again nor discarded, an import that was broken off
    or whose rejected rows are still in their file; 2 a setting is wrong; 5 the sandbox does not
    answer.
    """
    from meter_agent._found_settings import find_settings
    from meter_agent.cli.importing.journal import state_directory
    from meter_agent.cli.printing import print_json, say
    from meter_agent.cli.status.report import sections

    given = given_settings(sandbox_url=sandbox_url)
    disabled = any(
        each.value is True for each in find_settings(**given) if each.setting.name == "disabled"
    )
    # No key is needed to look at files.
    config = read_settings(**given, disabled=True)
    try:
        imports = state_directory(state_dir)
    except click.UsageError:
        imports = None
    found = list(sections(config, disabled=disabled, imports=imports))
    attention = [each for section in found for each in section.attention]
    if as_json:
        document = {section.name: section.document for section in found}
        print_json({**document, "attention": attention})
    else:
        for section in found:
            name = section.name.replace("_", " ")
            for place, line in enumerate(section.lines):
                say(f"{'' if place else name:<13} {line}", indent=14)
        for each in attention:
            say(f"{'':<13} -> {each}", indent=17)
    if attention:
        context.exit(ExitCode.BAD)
    context.exit(ExitCode.UNREACHABLE if any(each.unreachable for each in found) else ExitCode.OK)
