"""`meter-agent dead-letters`: look at what could not be billed, and send it again."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meter_agent import Config
from meter_agent.cli import delivery_options, letter_options
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.groups import Group, group_help
from meter_agent.cli.printing import print_json, say
from meter_agent.cli.settings import letter_file, read_settings

if TYPE_CHECKING:
    from meter_agent.cli.dead_letters.letters import Letters
    from meter_agent.cli.dead_letters.plan import Plan
    from meter_agent.cli.dead_letters.resend import Resend
    from meter_agent.cli.dead_letters.resent import Resent

__all__ = ["dead_letters"]


@click.group(cls=Group, name="dead-letters", invoke_without_command=True)
@click.pass_context
def dead_letters(context: click.Context) -> None:
    """Look at what could not be billed, and send it again.

    FILE is METER_AGENT_DEAD_LETTER_FILE, if it is not given, or the one in METER_AGENT_SPOOL_DIR.
    """
    group_help(context)


@dead_letters.command(name="ls")
@letter_options.choice
@letter_options.as_json
@click.pass_context
def ls(context: click.Context, /, file: Path | None, as_json: bool, **choice: Any) -> None:
    """List letters: why, when, and the identifier of the event."""
    from meter_agent.cli.dead_letters.listing import list_letters

    _, letters, resent = _open(context, file, choice)
    list_letters(letters, resent, as_json=as_json)
    context.exit(ExitCode.PARTLY if letters.unread else ExitCode.OK)


@dead_letters.command(name="show")
@letter_options.choice
@letter_options.as_json
@click.pass_context
def show(context: click.Context, /, file: Path | None, as_json: bool, **choice: Any) -> None:
    """Print letters with all that they say."""
    from meter_agent.cli.dead_letters.listing import show_letters

    _, letters, resent = _open(context, file, choice)
    show_letters(letters, resent, as_json=as_json)
    context.exit(ExitCode.PARTLY if letters.unread else ExitCode.OK)


@dead_letters.command(name="export")
@letter_options.choice
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write to this new file. Default: stdout."
)
@click.pass_context
def export(
    context: click.Context, /, file: Path | None, output: Path | None, **choice: Any
) -> None:
    """Write the events of letters as JSON Lines, as they would have gone over the wire.

    Those that were invalid are written as they were recorded.
    """
    from meter_agent.cli.dead_letters.listing import export_letters
    from meter_agent.cli.files import opened_output

    _, letters, _ = _open(context, file, choice)
    with opened_output(output) as opened:
        count = export_letters(letters, opened)
    say(f"{count} events", err=True)
    context.exit(ExitCode.PARTLY if letters.unread else ExitCode.OK)


@dead_letters.command(name="resend")
@letter_options.choice
@click.option("--yes", is_flag=True, help="Send. Without it you are asked or, in a script, told.")
@click.option("--uncertain", is_flag=True, help="Also what Stripe may have already.")
@delivery_options.sandbox_url
@delivery_options.patience
@letter_options.as_json
@click.pass_context
def resend(
    context: click.Context,
    /,
    *,
    file: Path | None,
    yes: bool,
    uncertain: bool,
    sandbox_url: str | None,
    patience: float,
    as_json: bool,
    **choice: Any,
) -> None:
    """Send events again, under the identifiers that they had.

    Only those that Stripe refused, unless --uncertain is given. What was sent is noted in a file
    beside the letters, FILE.resent, and not sent a second time.

    Exit codes: 2 nothing was sent without --yes, 3 some letters stay, 4 the key is refused, 5
    nothing was delivered for a while.
    """
    from meter_agent.cli.dead_letters.judging import Judge
    from meter_agent.cli.dead_letters.plan import NOTHING, Plan, make_parts
    from meter_agent.cli.dead_letters.resend import AT_A_TIME, Resend
    from meter_agent.cli.log_lines import warnings_said
    from meter_agent.cli.progress import progress

    if as_json and file is None and not letter_file(file).exists():
        print_json(NOTHING)
    path, letters, resent = _open(context, file, choice)
    config = _sending(read_settings(sandbox_url=sandbox_url), path)
    judge = Judge(config.encoder_keys, uncertain=uncertain)
    plan = Plan(letters, judge, resent)
    for line in plan.to_lines():
        say(line, err=True)
    if not (plan.total and (yes or _confirmed())):
        if as_json:
            print_json(plan.to_document())
        nothing_to_send = ExitCode.OK if plan.complete else ExitCode.PARTLY
        context.exit(ExitCode.USAGE if plan.total else nothing_to_send)
    try:
        with progress("resend") as shown, warnings_said(shown.say), resent:
            work = Resend(config, resent, patience_seconds=patience, shown=shown, total=plan.total)
            work.run(make_parts(letters, judge, resent, at_a_time=AT_A_TIME))
    except BlockingIOError:
        raise click.UsageError(f"{path}: its letters are being sent by another process") from None
    except OSError as error:
        raise click.UsageError(f"{error.filename or path}: {error.strerror or error}") from None
    if work.ended != "done":
        say(f"{work.ended}; run it again to go on", err=True)
    if as_json:
        print_json(work.to_document() | {"stay": plan.to_document()["stay"]})
    else:
        say(work.to_line())
    context.exit(work.exit_code or (ExitCode.OK if _is_done(plan, work) else ExitCode.PARTLY))


def _open(
    context: click.Context, /, file: Path | None, choice: dict[str, Any]
) -> tuple[Path, Letters, Resent]:
    from meter_agent.cli.dead_letters.letters import Choice, Letters
    from meter_agent.cli.dead_letters.resent import Resent

    path = letter_file(file)
    if file is None and not path.exists():
        say(f"no dead letters: there is no {path}", err=True)
        context.exit(ExitCode.OK)
    try:
        return path, Letters(path, Choice(**choice)), Resent(path)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None


def _sending(config: Config, path: Path) -> Config:
    if config.disabled:
        raise click.UsageError("METER_AGENT_DISABLED is on")
    # No spool: what is not sent stays a letter. What fails again becomes a new one behind it.
    return dataclasses.replace(
        config,
        spool_dir=None,
        dead_letter_file=path,
        strict=False,
        buffer_events=1000,
        overflow="drop_newest",
    )


def _confirmed() -> bool:
    if sys.stdin.isatty() and sys.stderr.isatty():
        return click.confirm("send them?", err=True)
    say("nothing was sent: say --yes to send", err=True)
    return False


def _is_done(plan: Plan, work: Resend) -> bool:
    return plan.complete and not work.unfinished
