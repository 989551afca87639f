"""`meter-agent doctor`: what is wrong, and what mends it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from meter_agent.cli import delivery_options
from meter_agent.cli.printing import print_json, say
from meter_agent.cli.settings import given_settings

if TYPE_CHECKING:
    from meter_agent.cli.doctor.finding import Finding

__all__ = ["doctor"]


@click.command
@click.option("--offline", is_flag=True, help="Ask nobody: settings and files alone.")
@click.option(
    "--event",
    "events",
    multiple=True,
    metavar="NAME",
    help="An event name that you record: it must have a meter. Also: those in payload_keys.",
)
@delivery_options.sandbox_url
@click.option("--json", "as_json", is_flag=True, help="Print JSON Lines.")
@click.pass_context
def doctor(
    context: click.Context,
    /,
    *,
    offline: bool,
    events: tuple[str, ...],
    sandbox_url: str | None,
    as_json: bool,
) -> None:
    """Find out what is wrong, and what mends it.

    Checked are settings, key, network, clock, session, meters, files, and what can be seen of how
    the service runs.

    Run it as the user of the service and with its environment. A session is opened, meters are
    listed, and no meter event is sent.

    A warning is worth a change, and does not count as failed; what is not checked cannot be seen
    from here. The exit code is that of the first check that failed.

    Exit codes: 0 none failed, 1 meters, clock or spool are not as they should be, 2 settings or
    files, 4 the key is refused, 5 a host cannot be reached.
    """
    from meter_agent.cli.doctor.examination import examine
    from meter_agent.cli.doctor.finding import State
    from meter_agent.cli.exit_codes import ExitCode

    states: Counter[State] = Counter()
    status = ExitCode.OK
    for finding in examine(given_settings(sandbox_url=sandbox_url), events, offline=offline):
        states[finding.state] += 1
        status = status or finding.exit_code
        if as_json:
            print_json(finding.to_document())
        else:
            _print(finding)
    told = ", ".join(f"{states[state]} {state}" for state in State if states[state])
    say(told, err=True)
    context.exit(status)


def _print(finding: Finding) -> None:
    say(f"{finding.state:<11}  {finding.check:<13}  {finding.detail}", indent=28)
    if finding.advice is not None:
        say(f"{'':<11}  {'':<13}  -> {finding.advice}", indent=31)
