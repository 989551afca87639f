"""`meter-agent import`: usage from files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meter_agent.cli import delivery_options
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.importing.csv_dialect import QUOTES, CsvDialect
from meter_agent.cli.pairs import parse_pairs
from meter_agent.cli.settings import read_settings

if TYPE_CHECKING:
    from meter_agent.cli.importing.input_file import InputFile

__all__ = ["import_files"]

_FORMATS = ("csv", "jsonl", "parquet")


@click.command(name="import")
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--event", help="The event name of every row.")
@click.option("--customer", help="The customer of every row.")
@click.option("--value", help="The value of every row.")
@click.option(
    "--map",
    "columns",
    multiple=True,
    metavar="FIELD=COLUMN",
    help="Where a field is: event, customer, value, timestamp, identifier, or payload.KEY.",
)
@click.option(
    "--payload", "payload", multiple=True, metavar="KEY=TEXT", help="A payload key of every row."
)
@click.option(
    "--key",
    multiple=True,
    metavar="COLUMN",
    help="What names a row in every file that it may stand in; identifiers derive from it.",
)
@click.option(
    "--timezone", metavar="ZONE", help="Of timestamps that name none, such as UTC, Europe/Berlin."
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(_FORMATS),
    help="Default: by the name of the file or, for stdin, by its beginning.",
)
@click.option(
    "--delimiter", default=",", show_default=True, help="Between the cells of CSV; tab is one, too."
)
@click.option(
    "--quotes",
    type=click.Choice(QUOTES),
    help="A quote within a quoted cell of CSV: doubled (RFC 4180, the default) or behind a "
    "backslash; none: quotes are text.",
)
@click.option(
    "--decimal",
    type=click.Choice([".", ","]),
    help="Before the decimals of values. Default: a point; 1.234 in a file with another delimiter "
    "than a comma is rejected.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Look at every row, print totals and rejected rows, send nothing.",
)
@click.option("--resume", is_flag=True, help="Go on with an import that was broken off.")
@click.option(
    "--in-addition",
    is_flag=True,
    help="Also when an earlier import had the same rows: they are billed once more.",
)
@click.option(
    "--rejects",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the rows that are not billed to this new file. Default: a file beside the journal.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where journals are kept. Default: ~/.local/state/meter-agent/imports.",
)
@delivery_options.sandbox_url
@delivery_options.patience
@click.option("--json", "as_json", is_flag=True, help="Print JSON Lines.")
@click.pass_context
def import_files(
    context: click.Context,
    /,
    *,
    files: tuple[Path, ...],
    event: str | None,
    customer: str | None,
    value: str | None,
    columns: tuple[str, ...],
    payload: tuple[str, ...],
    key: tuple[str, ...],
    timezone: str | None,
    file_format: str | None,
    delimiter: str,
    quotes: str | None,
    decimal: str | None,
    dry_run: bool,
    resume: bool,
    in_addition: bool,
    rejects: Path | None,
    state_dir: Path | None,
    sandbox_url: str | None,
    patience: float,
    as_json: bool,
) -> None:
    """Bill usage from files: CSV with a header, JSON Lines, Parquet; - is standard input.

    A field that no option names is looked for where Stripe's own import format has it: event_name,
    timestamp, identifier, payload.stripe_customer_id, payload.value (in CSV
    payload_stripe_customer_id, payload_value). A row without a timestamp is billed as of now.

    Rows that cannot be billed are written to --rejects with the reason; mended, that file can be
    imported itself. Each file is known by its content: the same file again sends nothing. An import
    that was broken off, be it by kill -9, goes on with --resume.

    Exit codes: 1 a dry run found rows that would be rejected, 3 some rows are not billed, 4 the key
    is refused, 5 nothing was delivered for a while, 130 Ctrl-C.
    """
    from meter_agent.cli.importing.delivering import deliver_file
    from meter_agent.cli.importing.dry_run import rehearse_file
    from meter_agent.cli.importing.journal import state_directory
    from meter_agent.cli.importing.options import ImportOptions
    from meter_agent.cli.importing.row_mapping import RowMapping

    dialect = CsvDialect.parse(delimiter, quotes)
    if rejects is not None and len(files) > 1:
        raise click.UsageError("--rejects: name one FILE at a time, each needs a file of its own")
    mapping = RowMapping.parse(
        parse_pairs("--map", columns),
        {"event": event, "customer": customer, "value": value},
        parse_pairs("--payload", payload),
        key=key,
        timezone=timezone,
        decimal=decimal,
    )
    options = ImportOptions(
        mapping=mapping,
        file_format=file_format,
        dialect=dialect,
        resume=resume,
        in_addition=in_addition,
        rejects=rejects,
        # A dry run notes nothing, so it needs no home directory.
        state_dir=Path(os.devnull) if dry_run else state_directory(state_dir),
        patience=patience,
        as_json=as_json,
    )
    config = read_settings(sandbox_url=sandbox_url, disabled=True if dry_run else None)
    if config.disabled and not dry_run:
        raise click.UsageError("METER_AGENT_DISABLED is on")
    worst = ExitCode.OK
    for path in files:
        with _opened(path) as file, _told_in_one_line():
            work = rehearse_file if dry_run else deliver_file
            status = work(file, config, options)
        worst = max(worst, status)
        if status not in {ExitCode.OK, ExitCode.BAD, ExitCode.PARTLY}:
            break
    context.exit(worst)


def _opened(path: Path) -> InputFile:
    from meter_agent.cli.importing.input_file import InputFile

    try:
        return InputFile(None if str(path) == "-" else path)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror or error}") from None


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise click.ClickException(f"the list of identifiers failed: {error}") from None
