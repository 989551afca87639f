"""One file from the command line to Stripe: whether it may be imported, and what is told of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from meter_agent import Config
from meter_agent._event import format_timestamp
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.importing.chunks import Chunks
from meter_agent.cli.importing.file_import import FileImport, Imported
from meter_agent.cli.importing.input_file import InputFile
from meter_agent.cli.importing.journal import (
    Journal,
    Known,
    StartLock,
    destination_of,
    known_imports,
)
from meter_agent.cli.importing.options import ImportOptions
from meter_agent.cli.importing.row import Rows
from meter_agent.cli.importing.row_mapper import RowError, RowMapper
from meter_agent.cli.importing.row_source import open_rows
from meter_agent.cli.importing.side_file import RejectsFile, SideFile, open_rejects
from meter_agent.cli.importing.used_identifiers import UsedIdentifiers
from meter_agent.cli.log_lines import warnings_said
from meter_agent.cli.printing import print_json, say
from meter_agent.cli.progress import progress

__all__ = ["deliver_file"]

_TRIED_ROWS = 100
_TO_MEND = "rows that are not billed, and why: {}; mended, it can be imported itself"


def deliver_file(file: InputFile, config: Config, options: ImportOptions) -> ExitCode:
    """Import *file*, or say why not."""
    _make_state_directory(options.state_dir)
    destination = destination_of(config)
    with StartLock(options.state_dir) as start:
        return _start(file, config, options, destination, start)


def _start(
    file: InputFile, config: Config, options: ImportOptions, destination: str, start: StartLock
) -> ExitCode:
    known = list(known_imports(options.state_dir, destination))
    beginnings = file.look_through({each.header["bytes"] for each in known})
    plan = {
        **options.mapping.to_document(),
        "delimiter": options.dialect.delimiter,
        "quotes": options.dialect.quotes,
        "event_source": options.mapping.event_source,
        "keys": [list(config.encoder_keys[0]), {**config.payload_keys}],
    }
    journal = Journal(options.state_dir, file.digest, destination, plan, start)
    try:
        # The command is judged before the history of the file: a wrong one must not be told how to
        # bill the file once more.
        with journal, _opened_source(file, config, journal.mark, options) as source:
            if journal.done and options.in_addition and not journal.header.get("in_addition"):
                raise click.UsageError(
                    f"{file.name} was imported on {journal.header['started_at']} with these options"
                    ": its identifiers would be the same, and Stripe counts them once. "
                    "--in-addition is for a file with other options, or one that has grown"
                )
            if journal.done:
                return _tell_earlier(file, journal, options)
            if not journal.exists:
                _check_first_time(source, known, beginnings, journal)
            elif not options.resume:
                raise click.UsageError(
                    f"{file.name}: an import of it was broken off behind row {journal.last_row}: "
                    "--resume goes on with it"
                )
            if journal.exists:
                start.release()
            return _deliver(source, journal)
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


@dataclass(frozen=True)
class _Source:
    """A file whose rows can be read and mapped as the command says."""

    file: InputFile
    config: Config
    options: ImportOptions
    rows: Rows
    mapper: RowMapper

    def first_problem(self) -> str | None:
        """Return why the first rows cannot be billed; None: at least one can. Reads them."""
        problem = None
        for row in itertools.islice(self.rows, _TRIED_ROWS):
            try:
                self.mapper.map(row, time.time())
            except RowError as error:
                problem = problem or f"{self.rows.unit} {row.line}: {error}"
            else:
                return None
        return problem


@contextlib.contextmanager
def _opened_source(
    file: InputFile, config: Config, mark: str, options: ImportOptions
) -> Iterator[_Source]:
    rows = open_rows(file, options.file_format, options.dialect)
    with contextlib.closing(rows):
        mapper = RowMapper(options.mapping, config.encoder_keys, mark, options.dialect)
        mapper.check_columns(rows)
        yield _Source(file, config, options, rows, mapper)


def _tell_earlier(file: InputFile, journal: Journal, options: ImportOptions) -> ExitCode:
    say(
        f"{file.name} was imported before, on {journal.header['started_at']}: nothing was sent. "
        f"What became of it is in {journal.path}",
        err=True,
    )
    ledger = journal.ledger
    if ledger.rejected + ledger.dead_lettered:
        _say_rejects(journal)
    exit_code = ExitCode.OK if ledger.complete else ExitCode.PARTLY
    outcome = Imported(ledger, exit_code, "imported before")
    _print_outcome(file, outcome, journal, options)
    return exit_code


def _say_rejects(journal: Journal) -> None:
    for path in journal.rejects:
        if Path(path).exists():
            say(_TO_MEND.format(path), err=True)


def _check_first_time(
    source: _Source, known: list[Known], beginnings: dict[int, str], journal: Journal
) -> None:
    file, options = source.file, source.options
    same_meter = [
        each
        for each in known
        if _may_bill_same(each.header["plan"]["event_source"], options.mapping.event_source)
    ]
    if options.resume and not journal.header:
        for each in same_meter:
            if each.header["content"] == file.digest:
                differing = _differences(each.header["plan"], journal.plan)
                raise click.UsageError(
                    f"{file.name}: its import of {each.header['started_at']} had other options "
                    f"({differing}); --resume goes on with the same ones only"
                )
        raise click.UsageError(
            f"{file.name}: there is no import of this content and these options to go on with in "
            f"{options.state_dir}"
        )
    if options.in_addition:
        return
    for each in same_meter:
        header = each.header
        when = f"on {header['started_at']} as {header['file']}"
        if header["content"] == file.digest:
            _check_rows(source)
            raise click.UsageError(
                f"{file.name} was imported {when} with other options, {_meter(each, journal)}. If "
                "it is to be billed once more, say --in-addition"
            )
        if header.get("text") == file.text_digest:
            _check_rows(source)
            raise click.UsageError(
                f"{file.name} has the same text as what was imported {when}, saved with other line "
                "ends. If it is to be billed once more, say --in-addition"
            )
        if beginnings.get(header["bytes"]) == header["content"]:
            _check_rows(source)
            raise click.UsageError(
                f"{file.name} begins with all that was imported {when}: these rows would be billed "
                "once more. Leave them out or, if that is meant, say --in-addition"
            )


def _may_bill_same(before: str, now: str) -> bool:
    # Which meters a column names, only its rows tell.
    return before == now or not (before.startswith("event=") and now.startswith("event="))


def _meter(known: Known, journal: Journal) -> str:
    before, now = known.header["plan"]["event_source"], journal.plan["event_source"]
    if before == now:
        return "for the same meter"
    return f"for what may be the same meter ({before} then, {now} now)"


def _check_rows(source: _Source) -> None:
    problem = source.first_problem()
    if problem is not None:
        raise click.UsageError(
            f"{source.file.name}: none of its first rows can be billed so; {problem}"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = sorted(before.keys() | now.keys())
    return ", ".join(
        f"{name}: {json.dumps(before.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    )


def _deliver(source: _Source, journal: Journal) -> ExitCode:
    file, options, rows = source.file, source.options, source.rows
    with contextlib.ExitStack() as stack:
        rejects, letters = _open_side_files(source, journal)
        chunks = stack.enter_context(contextlib.closing(Chunks(rows, source.mapper)))
        used = UsedIdentifiers(
            options.state_dir / f"identifiers-{journal.destination[:16]}.sqlite", file.name
        )
        stack.callback(used.close)
        shown = stack.enter_context(progress(f"import {file.name}"))
        stack.enter_context(warnings_said(shown.say))
        outcome = FileImport(
            source.config,
            file=file,
            chunks=chunks,
            journal=journal,
            rejects=rejects,
            letters=letters,
            used=used,
            in_addition=options.in_addition,
            patience_seconds=options.patience,
            shown=shown,
            total=rows.total,
        ).run()
    if outcome.ended != "done":
        say(f"{outcome.ended}{_further(outcome, journal)}", err=True)
    ledger = outcome.ledger
    if ledger.rejected + ledger.dead_lettered:
        _say_rejects(journal)
    if ledger.uncertain and letters.length:
        say(f"events that Stripe may have, as dead letters: {letters.path}", err=True)
    _print_outcome(file, outcome, journal, options)
    return outcome.exit_code


def _further(outcome: Imported, journal: Journal) -> str:
    if not outcome.can_go_on:
        return ""
    # An import of which nothing may have been sent leaves no journal to go on with.
    return "; --resume goes on" if journal.exists else "; nothing was sent, so import it again"


def _open_side_files(source: _Source, journal: Journal) -> tuple[RejectsFile, SideFile]:
    path = _rejects_path(journal, source.rows, source.options)
    is_new = not journal.exists or str(path) != journal.rejects[-1]
    if not journal.exists:
        journal.start(
            file=source.file.name,
            bytes=source.file.size_bytes,
            text=source.file.text_digest,
            started_at=format_timestamp(time.time()),
            in_addition=source.options.in_addition,
            rejects=str(path),
        )
    # Before anything is sent: what is rejected later must find its place.
    try:
        length = None if is_new else journal.lengths.get("rejects", 0)
        rejects = open_rejects(path, length, source.rows, source.options)
        length = journal.lengths.get("letters", 0) if journal.exists else None
        letters = SideFile(journal.path.with_suffix(".uncertain.jsonl"), length)
    except OSError as error:
        # With another path it can begin, be it with --resume.
        journal.keep()
        reason = error.strerror or str(error)
        raise click.UsageError(
            f"{error.filename or path}: {reason}; nothing was sent. Name another file: --rejects"
        ) from None
    if is_new and journal.exists:
        journal.change_rejects(str(path))
    return rejects, letters


def _rejects_path(journal: Journal, rows: Rows, options: ImportOptions) -> Path:
    if options.rejects is not None:
        return Path(os.path.abspath(options.rejects))
    if journal.exists:
        return Path(journal.rejects[-1])
    suffix = ".rejects.csv" if rows.format == "csv" else ".rejects.jsonl"
    return journal.path.with_suffix(suffix)


def _print_outcome(
    file: InputFile, outcome: Imported, journal: Journal, options: ImportOptions
) -> None:
    if not options.as_json:
        say(f"{file.name}: {outcome.ledger.to_line()}")
        return
    print_json(
        {
            "file": file.name,
            "dry_run": False,
            **outcome.ledger.to_document(),
            "ended": outcome.ended,
            "identifiers": f"{journal.mark}-",
            "journal": str(journal.path),
            "rejects": journal.rejects[-1] if journal.rejects else None,
        }
    )
