"""A row is billed as its author meant it, or rejected, or the file is refused: no guesses."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import subprocess
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meter_agent.cli.importing.row import ROW_CHARACTERS_MAX
from meter_agent.sandbox import Sandbox

from .conftest import TOKENS, Importer, Outcome

ORG = ("--event", "tokens", "--map", "customer=org", "--map", "value=n")
"""Options for files with the columns `org` and `n`."""


def table(rows: Sequence[Sequence[object]], **dialect: object) -> str:
    """What `csv.writer` makes of *rows*."""
    text = io.StringIO()
    csv.writer(text, **dialect).writerows(rows)  # type: ignore[arg-type]
    return text.getvalue()


def reasons(outcome: Outcome) -> list[str]:
    """Why each rejected row is not billed."""
    path = Path(outcome.report["rejects"])
    with path.open(newline="") as file:
        if path.suffix == ".csv":
            return [row[0] for row in list(csv.reader(file))[1:]]
        return [json.loads(line)["rejected_because"] for line in file]


# -- where a row of CSV ends -----------------------------------------------------------------------


def test_a_long_cell_with_lines_that_look_like_rows_is_one_cell(importer: Importer) -> None:
    prompt = "x" * 131_073 + "\ncus_victim,999,x"
    text = table([["org", "n", "prompt"], ["cus_1", 5, prompt], ["cus_2", 6, "ok"]])
    assert importer(importer.file("a.csv", text), *ORG).status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6"}}


@pytest.mark.parametrize(
    "bad",
    [
        'cus_2,6,"he said "hello\ncus_victim,999,x',
        'cus_2,6,"he said \\"hello\ncus_victim,999,x"',
        'cus_2,6,"he said \\"\ncus_victim,999,x"',
        'cus_2,6,"he said \\", x"\ncus_victim,999,x',
        'cus_2,6, "never closed\ncus_victim,999,x',
        'cus_2,6,"' + "x" * ROW_CHARACTERS_MAX + "\ncus_victim,999,x",
        "cus_2,6,ten percent\rcus_victim,999,x",
    ],
    ids=["stray", "escaped", "ends", "cell", "open", "long", "return"],
)
def test_nothing_is_billed_from_the_line_on_in_which_a_row_may_end_elsewhere(
    importer: Importer, bad: str
) -> None:
    file = importer.folder / "a.csv"
    file.write_bytes(f"org,n,prompt\ncus_1,5,ok\n{bad}\ncus_3,7,ok\n".encode())
    outcome = importer(file, *ORG)
    assert outcome.status == 3
    assert outcome.books() == {"rows": 1, "recorded": 1, "delivered": 1}
    assert importer.billed() == {"tokens": {"cus_1": "5"}}
    assert "a.csv: line 3: " in outcome.report["ended"]
    assert "--resume" not in outcome.talk
    again = importer(file, *ORG, "--resume")
    assert (again.status, again.report["ended"]) == (3, outcome.report["ended"])
    assert importer(file, *ORG, "--dry-run").status == 1


def test_the_rest_behind_such_a_line_is_imported_as_the_message_says(importer: Importer) -> None:
    text = 'org,n,prompt\ncus_1,5,"a\nb"\ncus_2,6,"a \\"b\\""\ncus_3,7,ok\n'
    outcome = importer(importer.file("a.csv", text), *ORG)
    command = outcome.report["ended"].partition("import that: ")[2]
    subprocess.run(["bash", "-c", command], cwd=importer.folder, check=True, timeout=60)
    rest = importer.folder / "rest.csv"
    assert importer(rest, *ORG).status == 3
    assert importer(rest, *ORG, "--quotes", "backslash").status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6", "cus_3": "7"}}


def test_a_long_line_without_quotes_is_a_rejected_row(importer: Importer) -> None:
    text = f"org,n\ncus_1,5\ncus_2,{'6' * ROW_CHARACTERS_MAX}\ncus_3,7\n"
    outcome = importer(importer.file("a.csv", text), *ORG)
    assert outcome.books() == {"rows": 3, "recorded": 2, "delivered": 2, "rejected": 1}
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_3": "7"}}


@pytest.mark.parametrize(
    ("quotes", "row"),
    [
        ("none", 'cus_1,5,5" disk'),
        ("none", 'cus_1,5,"a'),
        ("backslash", 'cus_1,5,"say \\"hi\\", \\\nx"'),
        ("doubled", 'cus_1,5,"C:\\"'),
        (None, 'cus_1, 5, "a, b"'),
        (None, 'cus_1,5,5" disk'),
        (None, '"cus_1","5","say ""hi""\r\nx,\\""x\\"" "'),
    ],
)
def test_a_dialect_of_quotes_is_read_as_it_is(
    importer: Importer, quotes: str | None, row: str
) -> None:
    options = () if quotes is None else ("--quotes", quotes)
    file = importer.file("a.csv", f"org,n,note\n{row}\ncus_2,6,x\nbad,bad,\n")
    outcome = importer(file, *ORG, *options)
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6"}}
    # What was rejected is read in the same way.
    assert importer(outcome.report["rejects"], *ORG, *options).books() == {"rows": 1, "rejected": 1}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_every_line_end_ends_a_row(importer: Importer, end: str) -> None:
    file = importer.folder / "a.csv"
    file.write_bytes(end.join(["org,n", "cus_1,5", "cus_2,6", ""]).encode())
    assert importer(file, *ORG).status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6"}}


# -- columns ---------------------------------------------------------------------------------------


def test_empty_columns_at_the_end_and_rows_of_commas_are_nothing(importer: Importer) -> None:
    file = importer.file("a.csv", "org,n,,\ncus_1,5,,\n,,,\ncus_2,6\n , \ncus_3,7,\n")
    outcome = importer(file, *ORG)
    assert outcome.books() == {"rows": 3, "recorded": 3, "delivered": 3}
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6", "cus_3": "7"}}


def test_a_cell_in_a_column_without_a_name_at_the_end_rejects_its_row(importer: Importer) -> None:
    outcome = importer(importer.file("a.csv", "org,n,\ncus_1,1,234\n"), *ORG)
    assert (outcome.status, importer.billed()) == (3, {})
    assert reasons(outcome) == ["its cell '234' stands in a column without a name"]


def test_only_the_columns_that_are_used_must_have_one_name_each(importer: Importer) -> None:
    file = importer.file("a.csv", ",org,n,note,note\n0,cus_1,5,a,b\n")
    assert importer(file, *ORG).status == 0
    for name in ("n", "timestamp", "identifier"):
        file = importer.file("b.csv", f"org,n,{name},{name}\ncus_1,5,1,2\n")
        outcome = importer(file, *ORG)
        assert (outcome.status, f"two columns are called '{name}'" in outcome.talk) == (2, True)
    assert importer.billed() == {"tokens": {"cus_1": "5"}}


@pytest.mark.parametrize("column", ["identifier", "timestamp", "event_name"])
def test_a_column_that_is_mapped_is_no_other_field_as_well(
    importer: Importer, stripe: Sandbox, column: str
) -> None:
    file = importer.file("a.csv", f"{column},n\ncus_1,5\ncus_1,5\ncus_2,5\n")
    outcome = importer(file, "--event=tokens", f"--map=customer={column}", "--map=value=n")
    assert outcome.status == 0
    assert importer.billed() == {"tokens": {"cus_1": "10", "cus_2": "5"}}
    assert all(row["identifier"].startswith("import-") for row in stripe.ledger())


def test_a_payload_column_that_is_mapped_is_sent_under_its_new_name_only(
    importer: Importer, stripe: Sandbox
) -> None:
    line = {"event_name": "a", "payload": {"stripe_customer_id": "c", "value": 1, "zone": "eu"}}
    file = importer.file("a.jsonl", json.dumps(line))
    assert importer(file, "--map", "payload.region=payload.zone").status == 0
    assert stripe.ledger()[0]["payload"] == {
        "stripe_customer_id": "c",
        "value": "1",
        "region": "eu",
    }


def test_a_constant_that_cannot_be_billed_is_a_usage_error(importer: Importer) -> None:
    file = importer.file("a.csv", "n\n1\n")
    for options in (
        ("--event=e", "--customer=c", "--value=many"),
        ("--event=e", "--customer=c\x07", "--value=1"),
        ("--event=e", "--customer=c", "--value=1", "--payload=value=2"),
    ):
        outcome = importer(file, *options)
        assert (outcome.status, "no row can be billed" in outcome.talk) == (2, True)
    assert list(importer.state.glob("*")) == []


# -- JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        '{"org":"cus_1","n":5,"n":500}',
        '{"org":"cus_1","n":5,"\\u006e":5}',
        '{"org":"cus_1","n":5,"x":{"y":1,"y":1}}',
        '{"org":"cus_1","n":5,"x":{"y":1},"x.y":2}',
        '{"data":[{"n":5}],"x":{"y":1},"x.y":2}',
    ],
)
def test_a_name_that_stands_twice_in_an_object_rejects_its_row(
    importer: Importer, line: str
) -> None:
    outcome = importer(importer.file("a.jsonl", f'{line}\n{{"org":"cus_2","n":6}}\n'), *ORG)
    assert outcome.books() == {"rows": 2, "recorded": 1, "delivered": 1, "rejected": 1}
    assert "two fields are called" in reasons(outcome)[0]
    assert importer.billed() == {"tokens": {"cus_2": "6"}}


def test_objects_within_an_object_over_several_lines_are_not_rows(importer: Importer) -> None:
    lines = [
        '{"org":"cus_1","n":5}',
        '{"org":"cus_2","n":6,"parts":[',
        '{"org":"cus_3","n":7}',
        "]}",
    ]
    outcome = importer(importer.file("a.jsonl", "\n".join(lines)), *ORG)
    assert outcome.status == 3
    assert "line 2: its object goes on in the next line" in outcome.talk
    assert importer.billed() == {"tokens": {"cus_1": "5"}}


def test_a_torn_line_rejects_itself_alone(importer: Importer) -> None:
    file = importer.file("a.jsonl", '{"org":"cus_1","n"\n{"org":"cus_2","n":6}\n')
    assert importer(file, *ORG).books()["delivered"] == 1


def test_a_list_or_an_object_is_neither_customer_nor_value(importer: Importer) -> None:
    lines = ['{"org":["cus_1"],"n":5}', '{"org":"cus_1","n":[5]}', '{"org":{"id":"c"},"n":5}']
    outcome = importer(importer.file("a.jsonl", "\n".join(lines)), *ORG)
    assert outcome.books() == {"rows": 3, "rejected": 3}


def test_columns_of_parquet_with_one_name_are_not_mixed_up(importer: Importer) -> None:
    columns = [pa.array(["cus_1"]), pa.array([5]), pa.array([500])]
    file = importer.folder / "a.parquet"
    pq.write_table(pa.Table.from_arrays(columns, names=["org", "n", "n"]), file)
    outcome = importer(file, *ORG)
    assert (outcome.status, "two columns are called 'n'" in outcome.talk) == (2, True)
    table = pa.Table.from_arrays([*columns[:2], pa.array([{"n": 500}])], names=["org", "x.n", "x"])
    pq.write_table(table, file)
    outcome = importer(file, "--event=e", "--map=customer=org", "--map=value=x.n")
    assert (outcome.status, importer.billed()) == (2, {})


# -- files that are no rows ------------------------------------------------------------------------


def _shown(argument: str | bytes) -> str:
    return argument if isinstance(argument, str) else "data"


JSON = '{"org":"cus_1","n":5}\r\n{"org":"cus_2","n":6}\r\n'
CSV = "org,n\r\ncus_1,5\r\ncus_2,6\r\n"


@pytest.mark.parametrize(
    ("name", "data", "command"),
    [
        ("a.jsonl", JSON.encode("utf-16"), "iconv -f UTF-16 -t UTF-8 a.jsonl"),
        ("a.jsonl", JSON.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 a.jsonl"),
        ("a.csv", CSV.encode("utf-16"), "iconv -f UTF-16 -t UTF-8 a.csv"),
        ("a.csv", CSV.encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8 a.csv"),
        ("a.csv", CSV.encode("utf-32"), "iconv -f UTF-32 -t UTF-8 a.csv"),
        ("a.csv.gz", gzip.compress(CSV.encode()), "gzip -dc a.csv.gz"),
        ("a.csv", gzip.compress(CSV.encode()), "gzip -dc a.csv"),
        ("a b.jsonl.bz2", bz2.compress(JSON.encode()), "bzip2 -dc 'a b.jsonl.bz2'"),
        ("a.csv.xz", lzma.compress(CSV.encode()), "xz -dc a.csv.xz"),
        ("a.csv", CSV.encode().replace(b"org,n", b"sep=,\r\norg,n"), "tail -n +2 a.csv"),
    ],
    ids=_shown,
)
def test_a_file_in_another_form_is_refused_with_the_command_that_makes_rows_of_it(
    importer: Importer, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, command: str
) -> None:
    monkeypatch.chdir(importer.folder)
    Path(name).write_bytes(data)
    outcome = importer(name, *ORG)
    assert (outcome.status, importer.billed(), outcome.talk.count("\n")) == (2, {}, 1)
    assert f"`{command} | meter-agent import -`" in outcome.talk
    assert list(importer.state.glob("*")) == []
    made = subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=60)
    assert importer("-", *ORG, stdin=made.stdout).status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6"}}


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        ("a.json", '{"data":[{"org":"c","n":5},{"org":"c","n":6}],"more":false}', ".data[]"),
        ("a.json", '{"result":{"items":[{"org":"c","n":5}]}}', ".result.items[]"),
        ("a.json", '{"my rows":[{"org":"c","n":5}]}', '."my rows"[]'),
        ("a.json", json.dumps({"data": [{"org": "c", "n": 5}]}, indent=2), ".data[]"),
        ("a.jsonl", json.dumps({"org": "c", "n": 5}, indent=2), "."),
        ("a.jsonl", '[{"org":"c","n":5}]', ".[]"),
    ],
)
def test_json_around_the_rows_is_refused_with_the_path_to_them(
    importer: Importer, name: str, text: str, path: str
) -> None:
    outcome = importer(importer.file(name, text), *ORG)
    assert (outcome.status, importer.billed(), outcome.talk.count("\n")) == (2, {}, 1)
    assert f"`jq -c {path} " in outcome.talk.replace("'", "")


def test_a_list_within_a_row_is_no_reason_to_refuse_it(importer: Importer) -> None:
    file = importer.file("a.jsonl", '{"org":"c","n":5,"data":[{"role":"user"}]}')
    assert importer(file, *ORG).status == 0
    file = importer.file("b.jsonl", '{"id":1,"messages":[{"role":"user"}]}')
    assert importer(file, "--event=e", "--customer=c", "--value=1").status == 0


@pytest.mark.parametrize(("shown", "delimiter"), [("';'", ";"), (r"'\t'", "\t"), ("'|'", "|")])
def test_another_delimiter_is_named_and_taken(
    importer: Importer, shown: str, delimiter: str
) -> None:
    file = importer.file("a.csv", CSV.replace(",", delimiter))
    outcome = importer(file, *ORG)
    assert (outcome.status, f"--delimiter {shown}" in outcome.talk) == (2, True)
    assert importer(file, *ORG, "--delimiter", shown.strip("'")).status == 0
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6"}}


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.xlsx", b"PK\x03\x04" + b"0" * 26 + b"[Content_Types].xml", "an Excel workbook"),
        ("a.zip", b"PK\x03\x04" + b"0" * 26 + b"usage.csv", "`unzip -p"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a workbook of old Excel"),
        ("a.csv", b"<html><body>Sign in</body></html>", "is HTML or XML"),
        ("a.csv", b"PAR1\x15\x04", "--format parquet"),
        ("a.csv", JSON.encode(), "--format jsonl"),
        ("a.csv", "größe,n\n1,2\n".encode("latin-1"), "iconv -f WINDOWS-1252"),
        ("a.dat", b"\x00\x01\x02\x03", "it is not text"),
    ],
    ids=_shown,
)
def test_what_is_no_text_of_rows_is_refused_by_its_name(
    importer: Importer, name: str, data: bytes, complaint: str
) -> None:
    file = importer.folder / name
    file.write_bytes(data)
    for options in ((), ("--dry-run",)):
        outcome = importer(file, *ORG, *options)
        assert (outcome.status, outcome.talk.count("\n")) == (2, 1)
        assert complaint in outcome.talk
    assert importer.stripe.requests == []


# -- spreadsheets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [("--key", "id"), ("--map", "identifier=id")])
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("1.23457E+17", "looks rounded by a spreadsheet"),
        ('"1,23457E+17"', "looks rounded by a spreadsheet"),
        ("123456789012345000", "may have rounded"),
    ],
)
def test_keys_that_a_spreadsheet_made_equal_do_not_collapse_in_silence(
    importer: Importer, option: tuple[str, str], key: str, said: str
) -> None:
    outcome = importer(importer.file("a.csv", f"id,n\n{key},5\n{key},5\n"), *TOKENS, *option)
    assert outcome.status == 3
    assert outcome.books()["rejected"] >= 1
    assert "repeated" not in outcome.books()
    assert said in reasons(outcome)[-1]


@pytest.mark.parametrize(
    ("value", "delimiter", "decimal", "billed"),
    [
        ("1.234", ";", None, None),
        ("1.234", ";", ".", "1.234"),
        ("1.234", ";", ",", "1234"),
        ("1.234.567,5", ";", ",", "1234567.5"),
        ("1.23", ";", ",", None),
        ("0.125", ";", None, "0.125"),
        ("1.234", ",", None, "1.234"),
        ("1,5", ";", None, None),
        ("1.2E+06", ",", None, None),
        ("1.5e3", ",", None, "1500"),
    ],
)
def test_a_number_that_may_be_two_numbers_is_rejected_until_it_is_said_which(
    importer: Importer, value: str, delimiter: str, decimal: str | None, billed: str | None
) -> None:
    file = importer.file("a.csv", f"org{delimiter}n\ncus_1{delimiter}{value}\n")
    options = () if decimal is None else ("--decimal", decimal)
    outcome = importer(file, *ORG, "--delimiter", delimiter, *options)
    expected = {} if billed is None else {"tokens": {"cus_1": billed}}
    assert (outcome.status, importer.billed()) == (3 if billed is None else 0, expected)


@pytest.mark.parametrize("text", ["nan", "NULL", "#N/A", "undefined", "None", "1.5e+17"])
def test_what_programs_write_for_a_missing_or_a_long_number_is_no_name(
    importer: Importer, text: str
) -> None:
    file = importer.file("a.csv", f"org,n,id\n{text},5,a\ncus_1,6,{text}\ncus_1,6,{text}\n")
    outcome = importer(file, *ORG, "--map", "identifier=id")
    assert (outcome.status, outcome.books()) == (3, {"rows": 3, "rejected": 3})


def test_a_row_in_place_of_a_header_is_not_passed_over(importer: Importer) -> None:
    options = ("--event=e", "--customer=c", "--value=1")
    outcome = importer(importer.file("a.csv", "1001\n1002\n"), *options)
    assert (outcome.status, "looks like a row" in outcome.talk) == (2, True)
    assert importer(importer.file("b.csv", "id\n1001\n1002\n"), *options).status == 0
    assert importer.billed() == {"e": {"c": "2"}}


def test_names_in_quotes_of_another_dialect_are_rejected(importer: Importer) -> None:
    file = importer.file("a.csv", 'org,n\n\'cus_1\',5\n"=""cus_2""",6\n')
    assert importer(file, *ORG).books() == {"rows": 2, "rejected": 2}


def test_a_name_with_a_backslash_is_rejected_until_it_is_said_what_that_is(
    importer: Importer,
) -> None:
    file = importer.file("a.csv", "org,n\n\\N,5\nc\\\\1,6\n")
    assert importer(file, *ORG).books() == {"rows": 2, "rejected": 2}
    assert importer(file, *ORG, "--quotes", "backslash").status == 0
    assert importer.billed() == {"tokens": {"N": "5", "c\\1": "6"}}


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d %H:%M:%S UTC",
        "%Y-%m-%d %H:%M:%SGMT",
        "%Y-%m-%dt%H:%M:%Sz",
        "%Y-%m-%d %H:%M:%S +0000 UTC",
        "%Y-%m-%d %H:%M:%S +0000",
        "%Y-%m-%d %H:%M:%S.250+00:00",
        "%Y%m%dT%H%M%SZ",
    ],
)
def test_a_time_may_be_written_as_programs_write_it(
    importer: Importer, stripe: Sandbox, form: str
) -> None:
    at = (datetime.now(UTC) - timedelta(hours=1)).replace(microsecond=0)
    file = importer.file("a.csv", f"n,t\n1,{at.strftime(form)}\n")
    assert importer(file, *TOKENS, "--map", "timestamp=t").status == 0
    told = datetime.fromisoformat(stripe.ledger()[0]["timestamp"])
    assert told.replace(microsecond=0) == at


@pytest.mark.parametrize("time", ["2026-11-30 +0200 UTC", "30.11.2026 12:00", "20261130", "12:00Z"])
def test_a_text_that_is_no_certain_time_is_rejected(importer: Importer, time: str) -> None:
    file = importer.file("a.csv", f"n,t\n1,{time}\n")
    assert importer(file, *TOKENS, "--map", "timestamp=t").books() == {"rows": 1, "rejected": 1}


def test_a_host_without_time_zones_names_the_package(
    importer: Importer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = importer.file("a.csv", "n\n1\n")
    monkeypatch.setitem(__import__("sys").modules, "tzdata", None)
    zoneinfo.reset_tzpath(to=[])
    zoneinfo.ZoneInfo.clear_cache()
    try:
        outcome = importer(file, *TOKENS, "--timezone", "Europe/Berlin")
        assert (outcome.status, "pip install tzdata" in outcome.talk) == (2, True)
        assert importer(file, *TOKENS, "--timezone", "UTC").status == 0
    finally:
        zoneinfo.reset_tzpath()
