"""One file from the command line to Stripe: whether it may be imported, and what is told of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

import click

from meter_agent import Config
from meter_agent._event import format_timestamp
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.importing.chunks import Chunks
from meter_agent.cli.importing.file_import import FileImport, Imported
from meter_agent.cli.importing.input_file import InputFile
from meter_agent.cli.importing.journal import Journal, Known, destination_of, known_imports
from meter_agent.cli.importing.options import ImportOptions
from meter_agent.cli.importing.row_mapping import RowMapper
from meter_agent.cli.importing.row_source import Rows, open_rows
from meter_agent.cli.importing.side_file import SideFile, open_rejects
from meter_agent.cli.log_lines import warnings_said
from meter_agent.cli.printing import print_json, printable
from meter_agent.cli.progress import progress

__all__ = ["deliver_file"]

_TO_MEND = "rows that are not billed, and why: {}; mended, it can be imported itself"


def deliver_file(file: InputFile, config: Config, options: ImportOptions) -> ExitCode:
    """Import *file*, or say why not."""
    _make_state_directory(options.state_dir)
    destination = destination_of(config)
    known = list(known_imports(options.state_dir, destination))
    beginnings = file.look_through({each.header["bytes"] for each in known})
    plan = {
        **options.mapping.to_document(),
        "delimiter": options.delimiter,
        "event_source": options.mapping.event_source,
        "keys": [list(config.encoder_keys[0]), {**config.payload_keys}],
    }
    journal = Journal(options.state_dir, file.digest, destination, plan)
    try:
        with journal:
            if journal.done:
                return _tell_earlier(file, journal, options)
            if not journal.exists:
                _check_first_time(file, known, beginnings, options)
            elif not options.resume:
                raise click.UsageError(
                    f"{file.name}: an import of it was broken off behind row {journal.last_row}: "
                    "--resume goes on with it"
                )
            return _deliver(file, config, journal, options)
    except BlockingIOError:
        raise click.UsageError(f"{file.name} is being imported by another process") from None


def _make_state_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.listdir(directory)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise click.UsageError(
            f"no journal can be kept in {directory}: {error.strerror}. Name another directory, one"
            " that stays: --state-dir"
        ) from None


def _tell_earlier(file: InputFile, journal: Journal, options: ImportOptions) -> ExitCode:
    click.echo(
        f"{file.name} was imported before, on {journal.header['started_at']}: nothing was sent. "
        f"What became of it is in {journal.path}",
        err=True,
    )
    ledger = journal.ledger
    rejects = Path(journal.header["rejects"])
    if ledger.rejected + ledger.dead_lettered and rejects.exists():
        click.echo(_TO_MEND.format(rejects), err=True)
    exit_code = ExitCode.OK if ledger.complete else ExitCode.PARTLY
    outcome = Imported(ledger, exit_code, "imported before")
    _print_outcome(file, outcome, journal, options)
    return exit_code


def _check_first_time(
    file: InputFile, known: list[Known], beginnings: dict[int, str], options: ImportOptions
) -> None:
    if options.resume:
        raise click.UsageError(
            f"{file.name}: there is no import of this content and these options to go on with in "
            f"{options.state_dir}"
        )
    if options.in_addition:
        return
    for each in known:
        header = each.header
        same_events = header["plan"]["event_source"] == options.mapping.event_source
        when = f"on {header['started_at']} as {header['file']}"
        if header["content"] == file.digest and same_events:
            raise click.UsageError(
                f"{file.name} was imported {when} with other options, for the same meter. If it is "
                "to be billed once more, say --in-addition"
            )
        if beginnings.get(header["bytes"]) == header["content"] and same_events:
            raise click.UsageError(
                f"{file.name} begins with all that was imported {when}: these rows would be billed "
                "once more. Leave them out or, if that is meant, say --in-addition"
            )


def _deliver(file: InputFile, config: Config, journal: Journal, options: ImportOptions) -> ExitCode:

    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(
            contextlib.closing(open_rows(file, options.file_format, options.delimiter))
        )
        mapper = RowMapper(options.mapping, config.encoder_keys, journal.mark)
        if rows.columns is not None:
            mapper.check_columns(rows.columns)
        path = _rejects_path(journal, rows, options)
        rejects = open_rejects(path, _length(journal, "rejects"), rows, options)
        letters = SideFile(
            journal.path.with_suffix(".uncertain.jsonl"), _length(journal, "letters")
        )
        if not journal.exists:
            journal.start(
                file=file.name,
                bytes=file.size_bytes,
                started_at=format_timestamp(time.time()),
                rejects=str(rejects.path),
            )
        chunks = stack.enter_context(contextlib.closing(Chunks(rows, mapper)))
        shown = stack.enter_context(progress(f"import {file.name}"))
        stack.enter_context(warnings_said(shown.say))
        outcome = FileImport(
            config,
            file=file,
            chunks=chunks,
            journal=journal,
            rejects=rejects,
            letters=letters,
            patience_seconds=options.patience,
            shown=shown,
            total=rows.total,
        ).run()
    if outcome.ended != "done":
        # An import of which nothing may have been sent leaves no journal to go on with.
        further = "--resume goes on" if journal.exists else "nothing was sent, so import it again"
        click.echo(f"{outcome.ended}; {further}", err=True)
    ledger = outcome.ledger
    if ledger.rejected + ledger.dead_lettered:
        click.echo(_TO_MEND.format(rejects.path), err=True)
    if ledger.uncertain and letters.length:
        click.echo(f"events that Stripe may have, as dead letters: {letters.path}", err=True)
    _print_outcome(file, outcome, journal, options)
    return outcome.exit_code


def _length(journal: Journal, name: str) -> int | None:
    return journal.lengths.get(name, 0) if journal.exists else None


def _rejects_path(journal: Journal, rows: Rows, options: ImportOptions) -> Path:
    given = None if options.rejects is None else Path(os.path.abspath(options.rejects))
    if journal.exists:
        noted = Path(journal.header["rejects"])
        if given not in {None, noted}:
            raise click.UsageError(f"--rejects: this import writes to {noted}")
        return noted
    suffix = ".rejects.csv" if rows.format == "csv" else ".rejects.jsonl"
    return given or journal.path.with_suffix(suffix)


def _print_outcome(
    file: InputFile, outcome: Imported, journal: Journal, options: ImportOptions
) -> None:

    if not options.as_json:
        click.echo(printable(f"{file.name}: {outcome.ledger.to_line()}"))
        return
    print_json(
        {
            "file": file.name,
            "dry_run": False,
            **outcome.ledger.to_document(),
            "ended": outcome.ended,
            "identifiers": f"{journal.mark}-",
            "journal": str(journal.path),
            "rejects": journal.header.get("rejects"),
        }
    )
