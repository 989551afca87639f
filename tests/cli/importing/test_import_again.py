"""A file that has a history, and commands that do not fit it; Ctrl-C, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from meter_agent import MeterAgent
from meter_agent.cli.importing import file_import
from meter_agent.sandbox import Fault, Sandbox

from ..processes import run
from ..stalling import Stalling
from .conftest import TOKENS, Importer, numbers


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_import, "CHUNK_ROWS", 100)


@pytest.fixture
def stripe() -> Stalling:
    return Stalling()


# -- Ctrl-C ----------------------------------------------------------------------------------------


def test_what_ctrl_c_tells_has_been_written_and_is_not_sent_again(
    importer: Importer, stripe: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = importer.file("a.csv", numbers(250))
    flush = MeterAgent.flush

    def interrupted(agent: MeterAgent, timeout: float | None = None) -> bool:
        if agent.stats().recorded > 100:
            raise KeyboardInterrupt
        return flush(agent, timeout)

    with monkeypatch.context() as pressed:
        pressed.setattr(MeterAgent, "flush", interrupted)
        outcome = importer(file, *TOKENS)
    assert outcome.status == 130
    assert outcome.books() == {"rows": 200, "recorded": 200, "delivered": 200}
    (written,) = json.loads(run("status", "--json", "--state-dir", importer.state).stdout)[
        "imports"
    ]
    assert (written["last_row"], written["ledger"]["delivered"]) == (200, 200)
    assert importer(file, *TOKENS, "--resume").books()["delivered"] == 250
    assert importer.billed() == {"tokens": {"cus_1": str(sum(range(1, 251)))}}
    assert stripe.totals()["duplicates"] == 0


def test_what_is_told_of_a_chunk_in_doubt_has_been_written(
    importer: Importer, stripe: Stalling
) -> None:
    file = importer.file("a.csv", numbers(250))
    stripe.stall_at = 100
    outcome = importer(file, *TOKENS, "--patience", "2")
    assert outcome.status == 5
    (written,) = json.loads(run("status", "--json", "--state-dir", importer.state).stdout)[
        "imports"
    ]
    assert written["last_row"] == 100
    told = {name: outcome.report[name] for name in written["ledger"]}
    assert (written["ledger"], told["rows"]) == (told, 200)


# -- a command that does not fit -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_wrong_command_for_a_file_of_before_is_not_told_to_bill_it_once_more(
    importer: Importer, suffix: str
) -> None:
    text = {"csv": "n,m\n4,x\n6,x\n", "jsonl": '{"n":4,"m":"x"}\n{"n":6,"m":"x"}\n'}[suffix]
    file = importer.file(f"a.{suffix}", text)
    assert importer(file, *TOKENS).status == 0
    grown = importer.file(f"b.{suffix}", text + text.splitlines()[-1] + "\n")
    for again in (file, grown):
        for column in ("none", "m"):
            outcome = importer(again, "--event=tokens", "--customer=cus_1", f"--map=value={column}")
            assert (outcome.status, outcome.talk.count("\n")) == (2, 1)
            assert "--in-addition" not in outcome.talk
            assert repr(column) in outcome.talk or "value='x' is invalid" in outcome.talk
    assert importer.billed() == {"tokens": {"cus_1": "10"}}


def test_a_resume_with_other_options_names_them(importer: Importer, stripe: Sandbox) -> None:
    file = importer.file("a.csv", numbers(250))
    stripe.add_fault(Fault("hang", accept=True))
    assert importer(file, *TOKENS, "--patience", "2").status == 5
    stripe.clear_faults()
    outcome = importer(file, *TOKENS, "--resume", "--timezone", "UTC", "--payload", "a=b")
    assert outcome.status == 2
    assert "had other options (payload_constants: {}, timezone: null)" in outcome.talk
    assert importer(file, *TOKENS, "--resume").status == 0
    assert importer.billed() == {"tokens": {"cus_1": str(sum(range(1, 251)))}}


# -- identifiers of before -------------------------------------------------------------------------

USAGE = "request_id,org,in_tokens,out_tokens\nreq_1,cus_1,60,6\nreq_2,cus_1,40,4\n"


def meter(event: str, *options: str) -> tuple[str, ...]:
    return ("--event", event, "--map", f"value={event}_tokens", "--map", "customer=org", *options)


IDENTIFIER = ("--map", "identifier=request_id")
KEY = ("--key", "request_id")


def test_identifiers_of_one_meter_are_not_lost_at_another(
    importer: Importer, stripe: Sandbox
) -> None:
    file = importer.file("a.csv", USAGE)
    assert importer(file, *meter("in", *IDENTIFIER)).status == 0
    outcome = importer(file, *meter("out", *IDENTIFIER))
    assert (outcome.status, outcome.talk.count("\n")) == (2, 1)
    assert "--key COLUMN in place of" in outcome.talk
    assert importer.billed() == {"in": {"cus_1": "100"}}
    assert importer(file, *meter("out", *KEY)).status == 0
    assert importer.billed() == {"in": {"cus_1": "100"}, "out": {"cus_1": "10"}}
    assert stripe.totals()["duplicates"] == 0


def test_an_identifier_of_two_meters_in_one_file_is_told_the_way_out(importer: Importer) -> None:
    file = importer.file("a.csv", "id,event_name,n\nr1,in,5\nr1,out,6\n")
    options = ("--customer", "c", "--map", "value=n")
    outcome = importer(file, *options, "--map", "identifier=id")
    assert outcome.books() == {"rows": 2, "recorded": 1, "delivered": 1, "rejected": 1}
    assert "With --key in place of" in Path(outcome.report["rejects"]).read_text()
    rest = outcome.report["rejects"]
    assert importer(rest, *options, "--key", "id").status == 0
    assert importer.billed() == {"in": {"c": "5"}, "out": {"c": "6"}}


def test_identifiers_of_another_file_with_other_usage_are_rejected_rows(
    importer: Importer, stripe: Sandbox
) -> None:
    assert importer(importer.file("a.csv", USAGE), *meter("in", *IDENTIFIER)).status == 0
    more = importer.file("b.csv", USAGE.replace("req_2,cus_1,40", "req_2,cus_1,41") + "req_3,c,1,1")
    outcome = importer(more, *meter("in", *IDENTIFIER))
    assert outcome.books() == {"rows": 3, "recorded": 2, "delivered": 2, "rejected": 1}
    text = Path(outcome.report["rejects"]).read_text()
    assert "identifier 'req_2' was sent on " in text
    assert "a.csv with other usage" in text
    assert importer.billed() == {"in": {"cus_1": "100", "c": "1"}}
    assert stripe.totals()["duplicates"] == 1


def test_a_key_with_other_usage_is_rejected_in_the_next_file_too(importer: Importer) -> None:
    assert importer(importer.file("a.csv", USAGE), *meter("in", *KEY)).status == 0
    more = importer.file("b.csv", USAGE.replace(",60,", ",61,"))
    outcome = importer(more, *meter("in", *KEY))
    assert outcome.books() == {"rows": 2, "recorded": 1, "delivered": 1, "rejected": 1}


def test_an_identifier_that_stripe_refused_may_be_sent_with_other_usage(
    importer: Importer, stripe: Sandbox
) -> None:
    stripe.add_fault(Fault("poison", match={"payload.value": "40"}))
    file = importer.file("a.csv", USAGE)
    assert importer(file, *meter("in", *IDENTIFIER)).books()["dead_lettered"] == 1
    rest = importer.file("b.csv", "request_id,org,in_tokens\nreq_2,cus_1,39\n")
    assert importer(rest, *meter("in", *IDENTIFIER)).status == 0
    assert importer.billed() == {"in": {"cus_1": "99"}}


def test_identifiers_are_forgotten_when_stripe_has_forgotten_them(
    importer: Importer, stripe: Sandbox
) -> None:
    file = importer.file("a.csv", USAGE)
    assert importer(file, *meter("in", *IDENTIFIER)).status == 0
    (path,) = importer.state.glob("identifiers-*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE used SET at = at - 26 * 3600")
    stripe.advance(26 * 3600)
    assert importer(file, *meter("out", *IDENTIFIER)).status == 0
    assert importer.billed() == {"in": {"cus_1": "100"}, "out": {"cus_1": "10"}}


def test_a_list_of_identifiers_that_is_damaged_ends_it_before_anything_is_sent(
    importer: Importer, stripe: Sandbox
) -> None:
    file = importer.file("a.csv", USAGE)
    assert importer(file, *meter("in", *IDENTIFIER)).status == 0
    (path,) = importer.state.glob("identifiers-*.sqlite")
    path.write_bytes(b"nonsense" * 1000)
    outcome = importer(file, *meter("out", *IDENTIFIER))
    assert (outcome.status, f"{path}: file is not a database" in outcome.talk) == (2, True)
    assert importer.billed() == {"in": {"cus_1": "100"}}
