"""What can be imported: formats, columns, and Stripe's own schema as it is."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meter_agent.sandbox import Sandbox
from tests.patience import PATIENCE_SECONDS

from ..processes import run
from .conftest import TOKENS, Importer

HOUR_AGO = int(time.time()) - 3600


def rows(stripe: Sandbox) -> list[tuple[str, str, str]]:
    return sorted((row["event_name"], row["customer"], row["value"]) for row in stripe.ledger())


def test_the_example_of_the_trace_is_billed_as_of_now(importer: Importer) -> None:
    trace = importer.file(
        "trace.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,8\n",
    )
    began = time.time()
    outcome = importer(
        trace, "--event", "output_tokens", "--customer", "cus_1", "--map", "value=GeneratedTokens"
    )
    assert outcome.status == 0
    assert outcome.books() == {"rows": 2, "recorded": 2, "delivered": 2}
    assert importer.billed() == {"output_tokens": {"cus_1": "18"}}
    for row in importer.stripe.ledger():
        assert datetime.fromisoformat(row["timestamp"]).timestamp() == pytest.approx(began, abs=30)


def test_stripes_json_lines_are_taken_as_they_are(importer: Importer, stripe: Sandbox) -> None:
    lines = [
        {
            "identifier": "123456",
            "timestamp": HOUR_AGO,
            "event_name": "ai_search_api",
            "payload": {"value": 200, "stripe_customer_id": "cus_123", "model": "large"},
        },
        {
            "timestamp": HOUR_AGO,
            "event_name": "ai_search_api",
            "extra_key": "test",
            "payload": {"value": 500, "stripe_customer_id": "cus_123"},
        },
    ]
    file = importer.file("usage.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert importer(file).books() == {"rows": 2, "recorded": 2, "delivered": 2}
    first, second = sorted(stripe.ledger(), key=lambda row: row["value"])
    assert (first["identifier"], first["payload"]["model"]) == ("123456", "large")
    assert first["timestamp"] == datetime.fromtimestamp(HOUR_AGO, UTC).strftime(
        "%Y-%m-%dT%H:%M:%S.000Z"
    )
    assert second["identifier"].startswith("import-")
    assert "extra_key" not in second["payload"]


def test_stripes_csv_is_taken_as_it_is(importer: Importer, stripe: Sandbox) -> None:
    file = importer.file(
        "usage.csv",
        "timestamp,event_name,payload_stripe_customer_id,payload_value,payload_region\n"
        f"{HOUR_AGO},ai_search_api,cus_1,400,eu\n"
        f"{HOUR_AGO},cpu_usage,cus_2,600.5,\n",
    )
    assert importer(file).status == 0
    assert rows(stripe) == [("ai_search_api", "cus_1", "400"), ("cpu_usage", "cus_2", "600.5")]
    payloads = [row["payload"].get("region") for row in stripe.ledger()]
    assert sorted(payloads, key=str) == [None, "eu"]


def test_a_payload_column_of_another_schema_is_not_sent(
    importer: Importer, stripe: Sandbox
) -> None:
    file = importer.file("a.csv", "n,payload_bytes,region\n1,77,eu\n")
    importer(file, *TOKENS, "--map", "payload.region=region", "--payload", "plan=pro")
    assert stripe.ledger()[0]["payload"] == {
        "stripe_customer_id": "cus_1",
        "value": "1",
        "region": "eu",
        "plan": "pro",
    }


def test_each_field_can_be_mapped(importer: Importer, stripe: Sandbox) -> None:
    at = datetime.now(UTC) - timedelta(hours=2)
    file = importer.file(
        "a.csv",
        "meter,org,amount,when,id\n"
        f"tokens,cus_7,1e3,{at:%Y-%m-%dT%H:%M:%S}+00:00,order-1\n"
        f"tokens,cus_7,-1.5,{at.timestamp():.3f},order-2\n",
    )
    fields = {"event": "meter", "customer": "org", "value": "amount", "timestamp": "when"}
    options = [f"--map={field}={column}" for field, column in fields.items()]
    assert importer(file, *options, "--map", "identifier=id").status == 0
    assert rows(stripe) == [("tokens", "cus_7", "-1.5"), ("tokens", "cus_7", "1000")]
    assert {row["identifier"] for row in stripe.ledger()} == {"order-1", "order-2"}


def test_a_time_without_a_zone_wants_one(importer: Importer, stripe: Sandbox) -> None:
    at = datetime.now(UTC) - timedelta(hours=5)
    file = importer.file("a.csv", f"n,when\n1,{at:%Y-%m-%d %H:%M:%S}\n")
    arguments = (file, *TOKENS, "--map", "timestamp=when")
    outcome = importer(*arguments, "--dry-run")
    assert outcome.status == 1
    reason = outcome.lines[0]["rejected"]["reason"]
    assert reason.endswith("names no time zone: add Z or an offset, or give --timezone")
    assert importer(*arguments, "--timezone", "Etc/GMT+1").status == 0
    told = datetime.fromisoformat(stripe.ledger()[0]["timestamp"])
    assert told == at.replace(microsecond=0) + timedelta(hours=1)


def test_json_numbers_keep_every_digit_and_paths_lead_into_objects(
    importer: Importer, stripe: Sandbox
) -> None:
    text = '{"usage": {"out": 0.100000000001, "in": {"n": 12345678901234.5}}}\n'
    file = importer.file("a.ndjson", text)
    options = ("--event", "tokens", "--customer", "cus_1")
    importer(file, *options, "--map", "value=usage.out")
    importer(file, *options, "--map", "value=usage.in.n", "--in-addition")
    assert sorted(row["value"] for row in stripe.ledger()) == [
        "0.100000000001",
        "12345678901234.5",
    ]


def parquet(path: Path) -> Path:
    at = datetime.now(UTC) - timedelta(hours=1)
    table = pa.table(
        {
            "org": ["cus_1", "cus_2", None],
            "usage": [{"tokens": 5}, {"tokens": 7}, {"tokens": 9}],
            "cost": [Decimal("1.25"), Decimal("2.50"), Decimal("3.75")],
            "at": pa.array([at, at, at], pa.timestamp("us", tz="UTC")),
        }
    )
    pq.write_table(table, path)
    return path


def test_parquet_is_read_with_its_types(importer: Importer, stripe: Sandbox) -> None:
    file = parquet(importer.folder / "a.parquet")
    options = ("--event", "cost", "--map", "customer=org", "--map", "timestamp=at")
    outcome = importer(file, *options, "--map", "value=cost")
    assert outcome.status == 3
    assert outcome.books() == {"rows": 3, "recorded": 2, "delivered": 2, "rejected": 1}
    assert rows(stripe) == [("cost", "cus_1", "1.25"), ("cost", "cus_2", "2.5")]
    (rejected,) = map(json.loads, Path(outcome.report["rejects"]).read_text().splitlines())
    assert rejected["rejected_because"] == "its 'org' is empty, which is the customer"
    assert rejected["usage"] == {"tokens": 9}
    nested = importer(file, "--event", "t", "--customer", "c", "--map", "value=usage.tokens")
    assert (nested.status, importer.billed()["t"]) == (0, {"c": "21"})


def test_the_beginning_of_a_stream_tells_its_format(importer: Importer) -> None:
    line = '{"event_name": "a", "payload": {"stripe_customer_id": "c", "value": "1"}}'
    assert importer("-", stdin=b"\xef\xbb\xbf" + line.encode()).status == 0
    assert importer("-", *TOKENS, stdin=b"n\n4\n").status == 0
    data = parquet(importer.folder / "a.parquet").read_bytes()
    options = ("--event", "p", "--map", "customer=org", "--map", "value=usage.tokens")
    assert importer("-", *options, stdin=data).status == 3
    assert importer.billed() == {
        "a": {"c": "1"},
        "tokens": {"cus_1": "4"},
        "p": {"cus_1": "5", "cus_2": "7"},
    }


def test_the_same_stream_again_bills_nothing(importer: Importer) -> None:
    for _ in range(2):
        assert importer("-", *TOKENS, stdin=b"n\n4\n").status == 0
    assert importer.billed() == {"tokens": {"cus_1": "4"}}


def test_several_files_are_imported_one_after_the_other(importer: Importer) -> None:
    files = [importer.file(f"{n}.csv", f"n\n{n}\n") for n in (1, 2, 3)]
    outcome = importer(*files, *TOKENS)
    assert [line["file"] for line in outcome.lines] == [str(file) for file in files]
    assert importer.billed() == {"tokens": {"cus_1": "6"}}


def test_another_delimiter_and_quotes(importer: Importer) -> None:
    file = importer.file("a.csv", '"n";"note"\n"1";"a;b\nc"\n\n2;""\n')
    assert importer(file, *TOKENS, "--delimiter", ";").books()["delivered"] == 2


@pytest.mark.parametrize(
    ("text", "options", "complaint"),
    [
        ("n\n1\n", ["--map", "value=m"], "there is no column 'm'; there are: n"),
        ("n\n1\n", ["--map", "values=n"], "--map values: there is no such field"),
        ("n\n1\n", ["--map", "value=n", "--value", "1"], "only one of the two"),
        ("n\n1\n", ["--map", "value=n"], "where is the customer? Give --customer or --map"),
        ("n\n1\n", [*TOKENS, "--key", "id"], "there is no column 'id'"),
        ("n\n1\n", [*TOKENS, "--key", "n", "--map", "identifier=n"], "only one of the two"),
        ("n\n1\n", [*TOKENS, "--timezone", "Mars/Olympus"], "there is no such zone"),
        ("n\n1\n", [*TOKENS, "--delimiter", ";;"], "must be one character"),
        ("n\n1\n", [*TOKENS, "--map", "payload.a=n", "--payload", "a=1"], "is given twice"),
        ("n,n\n1,2\n", TOKENS, "two columns are called 'n'"),
        ("", TOKENS, "is empty: it has no header"),
        ("[]", [*TOKENS, "--format", "jsonl"], "is one JSON array"),
        ("n\n1\n", [*TOKENS, "--format", "parquet"], "is no Parquet file"),
        ("n\n1\n", [*TOKENS, "--resume"], "there is no import of this content"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_and_leaves_nothing(
    importer: Importer, text: str, options: list[str], complaint: str
) -> None:
    options = options if "--event" in options else [*options, "--event", "tokens"]
    outcome = importer(importer.file("a.csv", text), *options)
    assert outcome.status == 2
    assert complaint in outcome.talk
    assert outcome.talk.count("\n") == 1
    assert list(importer.state.glob("*")) == []


def test_a_file_that_is_not_there_is_a_usage_error(importer: Importer) -> None:
    outcome = importer(importer.folder / "none.csv", *TOKENS)
    assert (outcome.status, outcome.lines) == (2, [])
    assert "No such file" in outcome.talk


def test_a_file_without_rows_is_imported_at_once(importer: Importer) -> None:
    for _ in range(2):
        outcome = importer(importer.file("a.csv", "n\n"), *TOKENS)
        assert (outcome.status, outcome.books()) == (0, {})
    assert list(importer.state.glob("*")) == []


def test_without_pyarrow_the_extra_is_named_and_other_formats_work(importer: Importer) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None; sys.argv[1:] = {!r}\n"
        "from meter_agent.__main__ import main; main()"
    )
    csv = importer.file("a.csv", "n\n1\n")
    other = parquet(importer.folder / "a.parquet")
    outcomes = [run_code(code.format(importer.command(file, *TOKENS))) for file in (csv, other)]
    assert [status for status, _ in outcomes] == [0, 2]
    assert "pip install 'meter-agent[parquet]'" in outcomes[1][1]


def run_code(code: str) -> tuple[int, str]:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_dry_run_tells_exact_totals_and_each_rejected_row(importer: Importer) -> None:
    file = importer.file(
        "a.csv",
        "org,n\ncus_1,0.000000000001\ncus_1,99999999999999\ncus_2,x\ncus_2,5\n,7\n",
    )
    options = ("--event", "tokens", "--map", "customer=org", "--map", "value=n", "--dry-run")
    outcome = importer(file, *options)
    assert outcome.status == 1
    rejected = [line["rejected"] for line in outcome.lines if "rejected" in line][:2]
    assert [(each["row"], each["line"]) for each in rejected] == [(3, 4), (5, 6)]
    assert "value='x' is invalid" in rejected[0]["reason"]
    totals = [line["total"] for line in outcome.lines if "total" in line]
    assert [(each["customer"], each["events"], each["value"]) for each in totals] == [
        ("cus_1", 2, "99999999999999.000000000001"),
        ("cus_2", 1, "5"),
    ]
    assert outcome.report["rejected"] == 2
    assert importer.stripe.requests == []
    assert not importer.state.exists()


def test_a_dry_run_for_people_is_a_table_and_needs_no_key(importer: Importer) -> None:
    file = importer.file("a.csv", "n\n5\nx\n")
    outcome = run("import", file, *TOKENS, "--dry-run")
    assert outcome.returncode == 1
    assert outcome.stderr == ""
    first, header, total, last = outcome.stdout.splitlines()
    assert first.startswith("rejected line 3: value='x' is invalid")
    assert header.split() == ["EVENT", "CUSTOMER", "EVENTS", "VALUE"]
    assert total.split() == ["tokens", "cus_1", "1", "5"]
    assert last == f"{file}: 2 rows: 1 would be sent, 1 rejected, 0 repeated"
