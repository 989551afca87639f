"""Rows that have two readings are not billed by one of them, and plain files are read."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meter_agent.cli.importing.parquet_rows import ParquetRows
from meter_agent.sandbox import Sandbox

from .conftest import Importer
from .test_import_exact import ORG, reasons


def test_a_row_with_more_cells_than_the_header_is_rejected_even_if_they_are_empty(
    importer: Importer,
) -> None:
    file = importer.file("a.csv", "org,n,note\ncus_1,1,234,\ncus_2,6,\n")
    outcome = importer(file, *ORG)
    assert (outcome.status, importer.billed()) == (3, {"tokens": {"cus_2": "6"}})
    assert reasons(outcome) == ["it has 4 cells, and the header has 3"]


def test_the_header_once_more_is_no_row_to_bill(importer: Importer) -> None:
    file = importer.file("a.csv", "at,n\n1,x\nat,n\n2,y\n")
    outcome = importer(file, "--event=tokens", "--customer=cus_1", "--value=1")
    assert (outcome.status, importer.billed()) == (3, {"tokens": {"cus_1": "2"}})
    assert reasons(outcome) == ["it is the header once more"]


def test_a_quoted_cell_of_several_lines_between_tabs_wants_its_quotes_named(
    importer: Importer,
) -> None:
    text = 'org\tn\tnote\ncus_1\t5\t"a"\ncus_2\t6\t"b\ncus_3\t7\tc"\n'
    file, options = importer.file("a.tsv", text), (*ORG, "--delimiter", "tab")
    outcome = importer(file, *options)
    assert (outcome.status, importer.billed()) == (3, {"tokens": {"cus_1": "5"}})
    assert "a.tsv: line 3: " in outcome.report["ended"]
    assert "--quotes doubled or --quotes none" in outcome.report["ended"]
    text = "org\tn\tnote\n" + text.partition('"a"\n')[2]
    rest = importer.file("rest.tsv", text)
    assert importer(rest, *options, "--quotes", "none").status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6", "cus_3": "7"}}


def test_a_field_that_stands_under_both_of_its_names_rejects_its_row(importer: Importer) -> None:
    fields = {"event_name": "tokens", "payload": {"stripe_customer_id": "cus_1", "value": 5}}
    rows = [
        {**fields, "payload_value": 500},
        {**fields, "payload_stripe_customer_id": "cus_2"},
        {**fields, "payload_model": "a", "payload.model": "b"},
        fields,
    ]
    outcome = importer(importer.file("a.jsonl", "\n".join(map(json.dumps, rows))))
    assert (outcome.status, importer.billed()) == (3, {"tokens": {"cus_1": "5"}})
    names = ("value", "stripe_customer_id", "model")
    assert reasons(outcome) == [
        f"it has both 'payload.{name}' and 'payload_{name}'; which one is meant?" for name in names
    ]


def test_an_option_for_every_row_wins_over_a_column_of_payload(
    importer: Importer, stripe: Sandbox
) -> None:
    header = "event_name,payload_stripe_customer_id,payload_value,payload_model"
    file = importer.file("a.csv", f"{header}\ntokens,cus_1,5,b\n")
    assert importer(file, "--payload", "model=a").status == 0
    assert [row["payload"]["model"] for row in stripe.ledger()] == ["a"]


@pytest.mark.parametrize(
    "key",
    ["1.23457e+17", "1234567890123456800", "9007199254740994", "1234567890123450000", "5.0"],
)
def test_rows_whose_numeric_key_may_be_rounded_do_not_collapse(
    importer: Importer, key: str
) -> None:
    row = f'{{"id":{key},"org":"cus_1","n":5}}\n'
    outcome = importer(importer.file("a.jsonl", row * 2), *ORG, "--key", "id")
    assert outcome.status == 3
    assert "repeated" not in outcome.books()


def test_a_key_of_all_its_digits_that_comes_again_is_repeated(importer: Importer) -> None:
    for key in ("1234567890123456789", "1764526272123456", "42"):
        row = f'{{"id":{key},"org":"cus_1","n":5}}\n'
        outcome = importer(importer.file("a.jsonl", row * 2), *ORG, "--key", "id")
        assert (outcome.status, outcome.report["repeated"]) == (0, 1)


def test_a_number_of_six_digits_that_awk_rounded_is_rejected(importer: Importer) -> None:
    file = importer.file("a.csv", "org,n\ncus_1,1.23457e+06\ncus_2,1.5e+06\n")
    outcome = importer(file, *ORG)
    assert (outcome.status, importer.billed()) == (3, {"tokens": {"cus_2": "1500000"}})


def test_lines_of_json_with_a_comma_behind_each_are_told_a_command_that_works(
    importer: Importer,
) -> None:
    text = '{"org":"cus_1","n":5},\r\n{"org":"cus_2","n":6},\r\n{"org":"cus_3","n":7}\r\n'
    outcome = importer(importer.file("a.json", text), *ORG)
    assert (outcome.status, importer.billed()) == (2, {})
    found = re.search(r"`(.*) \| meter-agent import -`", outcome.talk)
    assert found is not None
    lines = subprocess.run(["sh", "-c", found[1]], capture_output=True, check=True, timeout=60)
    assert importer("-", *ORG, stdin=lines.stdout).status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6", "cus_3": "7"}}


def test_a_comma_behind_a_whole_object_further_down_rejects_that_row_alone(
    importer: Importer,
) -> None:
    text = '{"org":"cus_1","n":5}\n{"org":"cus_2","n":6},\n{"org":"cus_3","n":7}\n'
    outcome = importer(importer.file("a.jsonl", text), *ORG)
    assert (outcome.status, importer.billed()) == (3, {"tokens": {"cus_1": "5", "cus_3": "7"}})
    assert outcome.report["ended"] == "done"


@pytest.mark.parametrize("column", ["ORCID", "PAR1", "FEA1", "BZhours", "%PDF pages"])
def test_a_header_that_begins_like_another_format_is_a_header(
    importer: Importer, column: str
) -> None:
    assert importer(importer.file("a", f"{column},org,n\n1,cus_1,5\n"), *ORG).status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5"}}


def test_a_file_whose_name_is_no_text_is_imported_with_a_key(importer: Importer) -> None:
    file = importer.folder / "caf\udce9.csv"
    file.write_text("org,n,id\ncus_1,5,r1\n")
    assert importer(file, *ORG, "--key", "id").status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5"}}


def test_parquet_with_nanoseconds_is_read(importer: Importer, stripe: Sandbox) -> None:
    now = datetime.now(UTC) - timedelta(hours=1)
    nanoseconds = [int(now.timestamp()) * 10**9 + 123_456_789] * 2
    times = pa.array(nanoseconds, pa.timestamp("ns", "UTC"))
    table = pa.table(
        {
            "org": ["cus_1", "cus_2"],
            "n": [5, 6],
            "at": times,
            "spans": pa.array([[1], [2]], pa.list_(pa.duration("ns"))),
            "inner": pa.StructArray.from_arrays([times], ["at"]),
        }
    )
    pq.write_table(table, importer.folder / "a.parquet")
    options = ("--map", "timestamp=inner.at")
    assert importer(importer.folder / "a.parquet", *ORG, *options).status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6"}}
    assert {row["timestamp"][:19] for row in stripe.ledger()} == {now.isoformat()[:19]}


def test_text_that_parquet_has_as_bytes_is_text(importer: Importer) -> None:
    orgs = pa.array([b"cus_1", b"cus_\xff"], pa.binary())
    pq.write_table(pa.table({"org": orgs, "n": [5, 6]}), importer.folder / "a.parquet")
    assert importer(importer.folder / "a.parquet", *ORG).status == 3
    assert importer.billed() == {"tokens": {"cus_1": "5"}}


def test_a_whole_number_is_a_key_in_parquet_whatever_its_type(importer: Importer) -> None:
    keys = pa.array([Decimal(7), Decimal(8)], pa.decimal128(38, 0))
    table = pa.table({"org": ["cus_1", "cus_2"], "n": [5, 6], "id": keys})
    pq.write_table(table, importer.folder / "a.parquet")
    assert importer(importer.folder / "a.parquet", *ORG, "--key", "id").status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6"}}


def test_a_time_that_no_calendar_has_ends_the_reading_of_parquet(importer: Importer) -> None:
    times = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"org": ["cus_1"], "n": [5], "at": times}), importer.folder / "a")
    outcome = importer(importer.folder / "a", *ORG)
    assert (outcome.status, importer.billed()) == (3, {})
    assert "behind row 0" in outcome.report["ended"]


def test_long_rows_of_parquet_tell_their_size_and_are_few_at_a_time(importer: Importer) -> None:
    from meter_agent.cli.importing.input_file import InputFile

    rows = 5000
    table = pa.table({"org": ["cus_1"] * rows, "prompt": ["x" * 100_000] * rows})
    pq.write_table(table, importer.folder / "a.parquet")
    with InputFile(importer.folder / "a.parquet") as file:
        before = pa.total_allocated_bytes()
        reader = ParquetRows(file, file.reopen())
        row = next(iter(reader))
        assert 100_000 <= row.size < 200_000
        assert pa.total_allocated_bytes() - before < 64 * 1024 * 1024
        reader.close()


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_quoted_header_names_its_delimiter_too(importer: Importer, delimiter: str) -> None:
    text = '"org"~"n"\n"cus_1"~"5"\n'.replace("~", delimiter)
    file = importer.file("a.csv", text)
    outcome = importer(file, *ORG)
    assert (outcome.status, importer.billed()) == (2, {})
    given = shlex.split(outcome.talk.rpartition("--delimiter ")[2])[0]
    assert importer(file, *ORG, "--delimiter", given).status == 0


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('cus_1\t5\t"half', "--quotes doubled or --quotes none"),
        ('cus_1\t5\t"a" b', "--quotes none"),
        ("cus_1\t5\ta\rb", "a carriage return outside of quotes"),
    ],
)
def test_a_row_that_cannot_be_read_names_the_option_that_may_help(
    importer: Importer, row: str, told: str
) -> None:
    file = importer.folder / "a.tsv"
    file.write_bytes(f"org\tn\tnote\n{row}\ncus_2\t6\tx\n".encode())
    outcome = importer(file, *ORG, "--delimiter", "tab")
    assert (outcome.status, importer.billed()) == (3, {})
    assert told in outcome.report["ended"]


def test_an_unreadable_row_among_the_rejects_is_not_billed_as_it_is(importer: Importer) -> None:
    options = ("--event=tokens", "--customer=cus_1", "--value=1")
    outcome = importer(importer.file("a.jsonl", '{"a":1}\n{"a": tru\n{"a":2}\n'), *options)
    assert outcome.books()["rejected"] == 1
    again = importer(outcome.report["rejects"], *options)
    assert again.books() == {"rows": 1, "rejected": 1}
    assert importer.billed() == {"tokens": {"cus_1": "2"}}


def test_a_column_that_happens_to_be_called_identifier_loses_no_row_in_silence(
    importer: Importer,
) -> None:
    text = "identifier,org,n\nmodel-1,cus_1,5\nmodel-1,cus_1,5\n"
    outcome = importer(importer.file("a.csv", text), *ORG)
    assert (outcome.status, importer.billed()) == (3, {"tokens": {"cus_1": "5"}})
    (reason,) = reasons(outcome)
    assert "row 1 has the same identifier 'model-1' and says the same" in reason
    named = ("--map", "identifier=identifier")
    mapped = importer(importer.file("b.csv", text.replace("-1", "-2")), *ORG, *named)
    assert (mapped.status, mapped.report["repeated"]) == (0, 1)
