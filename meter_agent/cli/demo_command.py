"""`meter-agent demo`: a real trace through the agent into a sandbox that misbehaves."""

from __future__ import annotations

from pathlib import Path

import click

from meter_agent.cli.extras import missing_extra

__all__ = ["demo"]


@click.command
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="CSV with TIMESTAMP, ContextTokens and GeneratedTokens. Default: a slice of 2 500 rows.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Draws the faults and poison events."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=8.0,
    show_default=True,
    help="Play the trace in this time; 0: as fast as it goes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def demo(
    context: click.Context, trace: Path | None, seed: int, seconds: float, as_json: bool
) -> None:
    """Replay a real trace into a sandbox with faults, and compare the books.

    Input and output tokens of each request become events of two meters. The sandbox runs as a
    process of its own, loses acknowledgements, answers 503, ends sessions early and refuses about
    one event in 3 000. Exit code 1 when the two sides differ.
    """
    complaint = missing_extra("sandbox")
    if complaint is not None:
        raise click.UsageError(complaint)
    from meter_agent.cli.demo.display import print_report, watch
    from meter_agent.cli.demo.play import play
    from meter_agent.cli.demo.server import SandboxProcessError
    from meter_agent.cli.demo.trace import TraceError, read_trace, shipped_trace

    try:
        rows = shipped_trace() if trace is None else read_trace(trace)
    except TraceError as error:
        raise click.UsageError(str(error)) from None
    try:
        with watch() as viewer:
            report = play(rows, seed=seed, seconds=seconds, viewer=viewer)
    except SandboxProcessError as error:
        raise click.ClickException(str(error)) from None
    print_report(report, as_json=as_json)
    context.exit(0 if report.balanced else 1)
