"""`meter-agent spool`: look after a spool directory, also while agents use it."""

from __future__ import annotations

from pathlib import Path

import click

from meter_agent._runtime import SystemRuntime
from meter_agent.cli import delivery_options
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.files import always_json
from meter_agent.cli.groups import Group, group_help
from meter_agent.cli.printing import counted, print_json, say
from meter_agent.cli.settings import read_settings, spool_directory

__all__ = ["spool"]

_directory = click.argument(
    "directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path)
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON Lines.")


@click.group(cls=Group, name="spool", invoke_without_command=True)
@click.pass_context
def spool(context: click.Context) -> None:
    """Look after a spool directory, also while agents use it.

    DIR is METER_AGENT_SPOOL_DIR, if it is not given.
    """
    group_help(context)


@spool.command(name="ls")
@_directory
@_as_json
@click.pass_context
def ls(context: click.Context, directory: Path | None, as_json: bool) -> None:
    """List the segments: who owns them, and how far their events have come."""
    from meter_agent.cli.spool.listing import list_segments
    from meter_agent.cli.spool.segments import Segments

    segments = Segments(spool_directory(directory))
    list_segments(segments, as_json=as_json)
    context.exit(ExitCode.PARTLY if segments.unread else ExitCode.OK)


@spool.command(name="show")
@click.argument("segment")
@_directory
@_as_json
@click.pass_context
def show(context: click.Context, segment: str, directory: Path | None, as_json: bool) -> None:
    """Print the events of a segment.

    SEGMENT is its name, or enough of its beginning.
    """
    from meter_agent.cli.spool.listing import show_segment
    from meter_agent.cli.spool.segments import Segments

    segments = Segments(spool_directory(directory))
    names = [name for name in segments.names() if name.startswith(segment)]
    if len(names) != 1:
        found = f"{len(names)} segments begin" if names else "no segment begins"
        raise click.UsageError(f"{found} with {segment!r}")
    reading = segments.look(names[0])
    if reading is not None:
        show_segment(reading, as_json=as_json)
    elif not segments.unread:
        say(f"{names[0]} is gone: all of its events have ended", err=True)
    context.exit(ExitCode.PARTLY if segments.unread else ExitCode.OK)


@spool.command(name="verify")
@_directory
@_as_json
@click.pass_context
def verify(context: click.Context, directory: Path | None, as_json: bool) -> None:
    """Read every byte, and say what is damaged.

    Exit code 1 when something is, 3 when a file could not be read or is not of this version.
    """
    from meter_agent.cli.spool.segments import Segments
    from meter_agent.cli.spool.verify import verify_segments

    context.exit(verify_segments(Segments(spool_directory(directory)), as_json=as_json))


@spool.command(name="export")
@_directory
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write to this new file. Default: stdout."
)
@always_json
@click.pass_context
def export(context: click.Context, directory: Path | None, output: Path | None) -> None:
    """Write the events that have not ended as JSON Lines, as they would go over the wire.

    They stay in the spool, and are sent from there.
    """
    from meter_agent.cli.files import opened_output
    from meter_agent.cli.spool.export import export_events
    from meter_agent.cli.spool.segments import Segments

    segments = Segments(spool_directory(directory))
    keys = read_settings(disabled=True).encoder_keys
    with opened_output(output) as file:
        count = export_events(segments, keys, file)
    say(f"{counted(count, 'event')}: still in the spool, and sent from there", err=True)
    if segments.damaged:
        left_out = counted(segments.damaged, "damaged piece")
        say(f"{left_out} left out: see spool verify", err=True)
    context.exit(ExitCode.PARTLY if segments.unread or segments.damaged else ExitCode.OK)


@spool.command(name="replay")
@_directory
@delivery_options.sandbox_url
@delivery_options.patience
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.pass_context
def replay(
    context: click.Context,
    directory: Path | None,
    sandbox_url: str | None,
    patience: float,
    as_json: bool,
) -> None:
    """Adopt what dead processes left, and deliver it.

    Segments of living processes are not touched, nor those for another account, mode or host.
    One of version 1 does not say for whom it is, and is sent. Settings and key are those of the
    environment.
    Ctrl-C ends it at any time: what has not been delivered stays in the spool.

    Exit codes: 3 some events cannot be billed (see dead-letters) or are left alone, 4 the key is
    refused, 5 nothing was delivered for a while.
    """
    from meter_agent._spool_directory import SpoolDirectory
    from meter_agent.cli.log_lines import warnings_said
    from meter_agent.cli.progress import progress
    from meter_agent.cli.spool.replay import replay as deliver

    path = spool_directory(directory)
    config = read_settings(spool_dir=path, sandbox_url=sandbox_url)
    if config.disabled:
        raise click.UsageError("METER_AGENT_DISABLED is on")
    try:
        SpoolDirectory(path, config.spool_bytes, SystemRuntime()).check()
    except OSError as error:
        raise click.UsageError(str(error)) from None
    with progress("replay") as shown, warnings_said(shown.say):
        outcome = deliver(config, patience_seconds=patience, shown=shown)
    if outcome.ended != "done":
        say(f"{outcome.ended}; what is left stays in {path}", err=True)
    if outcome.foreign is not None:
        say(f"left alone: {outcome.foreign}", err=True)
    if as_json:
        print_json(outcome.to_document())
    else:
        say(outcome.to_line())
    context.exit(outcome.exit_code)
