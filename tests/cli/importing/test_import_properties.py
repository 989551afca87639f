"""Whatever a program writes as CSV or JSON Lines comes out as it was meant, or is told."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import tempfile
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meter_agent import Config
from meter_agent.cli.importing.chunks import Chunks
from meter_agent.cli.importing.csv_dialect import CsvDialect
from meter_agent.cli.importing.input_file import InputFile
from meter_agent.cli.importing.row import UnreadableError
from meter_agent.cli.importing.row_mapper import RowMapper
from meter_agent.cli.importing.row_mapping import RowMapping
from meter_agent.cli.importing.row_source import open_rows

from .conftest import Importer

BLANKS = " \t\r\n"
DELIMITERS = (",", ";", "\t", "|")
COLUMNS = ("note", "org", "n", "id", "more")
FIELDS = {"customer": "org", "value": "n", "identifier": "id"}


class Usage(NamedTuple):
    """What the author of a file means by a row."""

    note: str
    customer: str
    value: Decimal
    identifier: str
    more: str


def characters(*extra: str) -> st.SearchStrategy[str]:
    marks = st.sampled_from([*"\"'\\,;\t|\n\r ab1=.E+\x00\ufeff\u00a0", *extra])
    return marks | st.characters(exclude_categories=["Cs"])


names = st.text("abcxyz019_-", min_size=1, max_size=6) | st.text(
    characters(), min_size=1, max_size=8
)
notes = st.lists(
    st.text(characters(), max_size=6)
    | st.sampled_from(["\ncus_victim,999,x", '"\n', '\\"', '",', "\r", '\\""', "\\\n"]),
    max_size=4,
).map("".join)
values = st.integers(-(10**9), 10**9).map(Decimal) | st.decimals(
    -1000, 1000, places=3, allow_nan=False
)
usages = st.builds(Usage, notes, names, values, names, notes)
tables = st.lists(usages, min_size=1, max_size=6)


def as_csv(table: list[Usage], **dialect: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows([COLUMNS, *table])
    return text.getvalue().encode()


def as_json(table: list[Usage], *, ensure_ascii: bool) -> bytes:
    lines = [
        json.dumps(
            {**dict(zip(COLUMNS, usage, strict=True)), "n": str(usage.value)},
            ensure_ascii=ensure_ascii,
        )
        for usage in table
    ]
    return "\n".join(lines).encode()


def read(data: bytes, suffix: str, dialect: CsvDialect) -> tuple[dict[int, Usage], int]:
    """The usage of each row that is billed, by its place; and how many rows were read."""
    mapping = RowMapping.parse(FIELDS, {"event": "e"}, {}, key=(), timezone=None, decimal=".")
    found: dict[int, Usage] = {}
    last = 0
    with contextlib.ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"a{suffix}"
        path.write_bytes(data)
        source = stack.enter_context(InputFile(path))
        rows = stack.enter_context(contextlib.closing(open_rows(source, None, dialect)))
        mapper = RowMapper(mapping, Config(disabled=True).encoder_keys, "m", dialect)
        mapper.check_columns(rows)
        chunks = stack.enter_context(contextlib.closing(Chunks(rows, mapper)))
        with contextlib.suppress(UnreadableError):
            while (chunk := chunks.take(1e9, 100)) is not None:
                last = chunk.last_row
                for mapped in chunk.events:
                    cells = mapped.row.cells
                    found[mapped.row.number - 1] = Usage(
                        cells["note"],
                        mapped.event.customer_id,
                        Decimal(str(mapped.event.value)),
                        str(mapped.event.identifier),
                        cells["more"],
                    )
    return found, last


def assert_meant(found: dict[int, Usage], last: int, table: list[Usage]) -> None:
    assert last <= len(table)
    for place, usage in found.items():
        meant = table[place]
        assert (usage.customer, usage.identifier) == (
            meant.customer.strip(BLANKS),
            meant.identifier.strip(BLANKS),
        )
        assert usage.value == meant.value
        # Without a word about its quotes, a backslash may be text or not.
        if "\\" not in usage.more:
            assert usage.more.strip(BLANKS) == meant.more.strip(BLANKS)


@settings(max_examples=150)
@given(
    table=tables,
    delimiter=st.sampled_from(DELIMITERS),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    said=st.sampled_from([None, "doubled"]),
)
def test_a_row_of_csv_is_what_its_writer_meant_or_is_not_billed(
    table: list[Usage], delimiter: str, quoting: int, end: str, said: str | None
) -> None:
    data = as_csv(table, delimiter=delimiter, quoting=quoting, lineterminator=end)
    assert_meant(*read(data, ".csv", CsvDialect(delimiter, said)), table)


@settings(max_examples=150)
@given(
    table=tables,
    delimiter=st.sampled_from(DELIMITERS),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    said=st.sampled_from([None, "backslash"]),
)
def test_a_row_with_escaped_quotes_is_what_its_writer_meant_or_is_not_billed(
    table: list[Usage], delimiter: str, quoting: int, said: str | None
) -> None:
    data = as_csv(table, delimiter=delimiter, quoting=quoting, doublequote=False, escapechar="\\")
    assert_meant(*read(data, ".csv", CsvDialect(delimiter, said)), table)


@settings(max_examples=150)
@given(table=tables, ensure_ascii=st.booleans())
def test_a_row_of_json_is_what_its_writer_meant_or_is_not_billed(
    table: list[Usage], ensure_ascii: bool
) -> None:
    found, last = read(as_json(table, ensure_ascii=ensure_ascii), ".jsonl", CsvDialect())
    assert last == len(table)
    assert_meant(found, last, table)


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(table=tables, suffix=st.sampled_from(["csv", "jsonl"]))
def test_what_is_billed_is_what_the_file_has_without_its_rejects_once(
    importer: Importer, table: list[Usage], suffix: str
) -> None:
    number = next(PLACES)
    importer.state = importer.folder / f"state-{number}"
    importer.stripe.reset()
    file = importer.folder / f"{number}.{suffix}"
    file.write_bytes(as_csv(table) if suffix == "csv" else as_json(table, ensure_ascii=False))
    options = ("--event", "e", "--map", "customer=org", "--map", "value=n", "--quotes", "doubled")
    first = importer(file, *options)
    counts = first.books()
    assert first.status == (3 if "rejected" in counts else 0)
    assert counts["rows"] == len(table)
    _check_totals(importer, table, first.report["rejects"], suffix)
    billed = importer.billed()
    assert importer(file, *options).report["ended"] == "imported before"
    assert importer.billed() == billed


PLACES = itertools.count()


def _check_totals(importer: Importer, table: list[Usage], rejects: str, suffix: str) -> None:
    rejected = _read_rejects(Path(rejects), suffix)
    expected: dict[str, Decimal] = defaultdict(Decimal)
    for usage in table:
        if (usage.customer.strip(BLANKS), usage.value) in rejected:
            rejected.remove((usage.customer.strip(BLANKS), usage.value))
        else:
            expected[usage.customer.strip(BLANKS)] += usage.value
    assert rejected == []
    found = importer.billed().get("e", {})
    assert {customer: Decimal(value) for customer, value in found.items()} == dict(expected)


def _read_rejects(path: Path, suffix: str) -> list[tuple[str, Decimal]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows: Any = csv.DictReader(file) if suffix == "csv" else map(json.loads, file)
        return [(row["org"].strip(BLANKS), Decimal(row["n"])) for row in rows]
