"""`meter-agent dead-letters`: look at what could not be billed, send it again, or close it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from meter_agent import Config
from meter_agent.cli import delivery_options, letter_options
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.files import always_json
from meter_agent.cli.groups import Group, group_help
from meter_agent.cli.printing import counted, print_json, say
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
    """Look at what could not be billed, send it again, or close it.

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
    _end(context, letters)


@dead_letters.command(name="show")
@letter_options.choice
@letter_options.as_json
@click.pass_context
def show(context: click.Context, /, file: Path | None, as_json: bool, **choice: Any) -> None:
    """Print letters with all that they say."""
    from meter_agent.cli.dead_letters.listing import show_letters

    _, letters, resent = _open(context, file, choice)
    show_letters(letters, resent, as_json=as_json)
    _end(context, letters)


@dead_letters.command(name="export")
@letter_options.choice
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write to this new file. Default: stdout."
)
@always_json
@click.pass_context
def export(
    context: click.Context, /, file: Path | None, output: Path | None, **choice: Any
) -> None:
    """Write the events of letters as JSON Lines, as they would have gone over the wire.

    Those that were invalid have the same fields, with what is wrong in them. When that is put
    right, `meter-agent import` bills the file that was written.
    """
    from meter_agent.cli.dead_letters.listing import export_letters
    from meter_agent.cli.files import opened_output

    _, letters, _ = _open(context, file, choice)
    keys = read_settings(disabled=True).encoder_keys
    with opened_output(output) as opened:
        export_letters(letters, keys, opened)
    say(counted(letters.found, "event"), err=True)
    _end(context, letters)


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
    if letters.missing is not None:
        raise click.UsageError(f"{letters.missing}; nothing was sent")
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
    except OSError as error:
        raise _not_taken(path, error) from None
    if work.ended != "done":
        say(f"{work.ended}; run it again to go on", err=True)
    if as_json:
        print_json(work.to_document() | {"stay": plan.to_document()["stay"]})
    else:
        say(work.to_line())
    context.exit(work.exit_code or (ExitCode.OK if _is_done(plan, work) else ExitCode.PARTLY))


@dead_letters.command(name="discard")
@click.argument("identifiers", metavar="IDENTIFIER...", nargs=-1)
@click.option(
    "--line",
    "lines",
    type=int,
    multiple=True,
    help="The letter in this line: invalid events may have no identifier.",
)
@click.option("--because", metavar="TEXT", help="Why. It is noted, and printed by show.")
@click.option("--file", type=click.Path(path_type=Path), help="The file of the letters.")
@click.option("--yes", is_flag=True, help="Changes nothing: nothing is asked.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.pass_context
def discard(
    context: click.Context,
    /,
    *,
    identifiers: tuple[str, ...],
    lines: tuple[int, ...],
    because: str | None,
    file: Path | None,
    yes: bool,  # noqa: ARG001 - the identifiers are the consent
    as_json: bool,
) -> None:
    """Close letters that will not be sent.

    Who names an identifier means it: nothing is asked. That the letters are discarded is noted in
    a file beside the letters, FILE.resent. They stay in FILE, no resend sends them, and status
    counts them no more.

    Exit codes: 2 a letter is not there, or was sent again before, and nothing was changed.
    """
    from meter_agent.cli.dead_letters.discard import NotDiscardedError, discard_letters

    if not identifiers and not lines:
        raise click.UsageError("which letters? Name an IDENTIFIER, or --line")
    path, letters, resent = _open(context, file, {"identifiers": identifiers, "lines": lines})
    try:
        with resent:
            done = discard_letters(letters, resent, because)
    except NotDiscardedError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise _not_taken(path, error) from None
    if as_json:
        print_json(done._asdict())
    else:
        say(done.to_line())


def _not_taken(path: Path, error: OSError) -> click.UsageError:
    if isinstance(error, BlockingIOError):
        return click.UsageError(f"{path}: its letters are being sent by another process")
    return click.UsageError(f"{error.filename or path}: {error.strerror or error}")


def _end(context: click.Context, letters: Letters) -> NoReturn:
    if letters.missing is not None:
        raise click.UsageError(letters.missing)
    if not letters.found and not letters.unread:
        say("no letters", err=True)
    context.exit(ExitCode.PARTLY if letters.unread else ExitCode.OK)


def _open(
    context: click.Context, /, file: Path | None, choice: dict[str, Any]
) -> tuple[Path, Letters, Resent]:
    from meter_agent.cli.dead_letters.letters import Choice, Letters
    from meter_agent.cli.dead_letters.resent import Resent

    path = letter_file(file)
    named = choice.get("identifiers") or choice.get("lines")
    if file is None and not named and not path.exists():
        say(f"no dead letters: there is no {path}", err=True)
        context.exit(ExitCode.OK)
    try:
        return path, Letters(path, Choice(**choice)), Resent(path)
    except OSError as error:
        # `discard` is given an identifier where the others are given a file.
        is_name = isinstance(error, FileNotFoundError) and str(file) == path.name
        hint = "; one letter is chosen by --identifier" if is_name and not named else ""
        raise click.UsageError(f"{path}: {error.strerror}{hint}") from None


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
