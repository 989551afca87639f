"""The same usage is billed once: twice the same file, broken off, killed, resumed, grown."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meter_agent import Config
from meter_agent._event import format_timestamp
from meter_agent.cli.importing import file_import
from meter_agent.cli.importing.journal import destination_of
from meter_agent.sandbox import Fault, Sandbox
from tests.patience import PATIENCE_SECONDS

from ..processes import run, started
from ..stalling import Stalling
from .conftest import TOKENS, Importer, numbers

DAY = 86_400.0


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For imports in this process; others have chunks of 10 000 rows."""
    monkeypatch.setattr(file_import, "CHUNK_ROWS", 100)


def total(count: int, first: int = 1) -> dict[str, dict[str, str]]:
    return {"tokens": {"cus_1": str(sum(range(first, first + count)))}}


@pytest.fixture
def stripe() -> Stalling:
    return Stalling()


@pytest.fixture
def killed(importer: Importer, stripe: Stalling) -> Callable[..., Path]:
    """Have an import of 250 rows killed while its second hundred is without an answer."""

    def kill(*options: object, count: int = 250) -> Path:
        file = importer.file("a.csv", numbers(count))
        stripe.stall_at = 100
        code = (
            "import sys; from meter_agent.cli.importing import file_import\n"
            "file_import.CHUNK_ROWS = 100\n"
            f"sys.argv[1:] = {importer.command(file, *(options or TOKENS))!r}\n"
            "from meter_agent.__main__ import main; main()"
        )
        with started_code(code) as process:
            stripe.wait_until_stalled()
            process.kill()
        stripe.go_on()
        return file

    return kill


def started_code(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def notes(importer: Importer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in importer.journal().read_text().splitlines()]


def age_attempts(importer: Importer, seconds: float) -> None:
    """Have every chunk begun earlier."""
    changed = notes(importer)
    for note in changed:
        if "begun" in note:
            note["begun"]["at"] -= seconds
    importer.journal().write_text("".join(json.dumps(note) + "\n" for note in changed))


# -- the same file again ---------------------------------------------------------------------------


def test_the_same_file_again_sends_nothing_also_after_a_day(
    importer: Importer, stripe: Sandbox
) -> None:
    file = importer.file("a.csv", numbers(250))
    first = importer(file, *TOKENS)
    requests = len(stripe.requests)
    stripe.advance(2 * DAY)
    copy = importer.file("copy of a.csv", file.read_text())
    for again in (file, copy):
        outcome = importer(again, *TOKENS)
        assert (outcome.status, outcome.books()) == (0, first.books())
        assert "was imported before" in outcome.talk
    assert len(stripe.requests) == requests
    assert importer.billed() == total(250)


def test_identical_rows_of_one_file_all_count(importer: Importer) -> None:
    assert importer(importer.file("a.csv", "n\n5\n5\n5\n"), *TOKENS).status == 0
    assert importer.billed() == {"tokens": {"cus_1": "15"}}


def test_without_its_journal_the_same_file_is_billed_once_within_a_day(
    importer: Importer, stripe: Sandbox
) -> None:
    file = importer.file("a.csv", numbers(250))
    importer(file, *TOKENS)
    importer.journal().unlink()
    assert importer(file, *TOKENS).books()["delivered"] == 250
    assert importer.billed() == total(250)
    assert stripe.totals()["duplicates"] == 250


def test_one_file_may_bill_two_meters(importer: Importer) -> None:
    file = importer.file("a.csv", "i,o\n4,1\n6,2\n")
    for event, column in (("input", "i"), ("output", "o")):
        options = ("--event", event, "--customer", "c", "--map", f"value={column}")
        assert importer(file, *options).status == 0
    assert importer.billed() == {"input": {"c": "10"}, "output": {"c": "3"}}


def test_other_options_for_the_same_meter_are_refused_unless_it_is_meant(
    importer: Importer,
) -> None:
    file = importer.file("a.csv", "n,m\n4,1\n6,2\n")
    importer(file, *TOKENS)
    other = ("--event", "tokens", "--customer", "cus_1", "--map", "value=m")
    outcome = importer(file, *other)
    assert outcome.status == 2
    assert "was imported on" in outcome.talk
    assert "with other options, for the same meter" in outcome.talk
    assert importer.billed() == {"tokens": {"cus_1": "10"}}
    assert importer(file, *other, "--in-addition").status == 0
    assert importer.billed() == {"tokens": {"cus_1": "13"}}


def test_rows_that_were_all_rejected_keep_nobody_from_trying_again(importer: Importer) -> None:
    file = importer.file("a.jsonl", '{"n": 4}\n{"n": 6}\n')
    wrong = importer(file, "--event", "tokens", "--customer", "cus_1", "--map", "value=m")
    assert wrong.books() == {"rows": 2, "rejected": 2}
    assert importer(file, *TOKENS).status == 0
    assert importer.billed() == {"tokens": {"cus_1": "10"}}


def test_a_file_that_has_grown_is_refused_unless_it_is_meant(importer: Importer) -> None:
    importer(importer.file("monday.csv", numbers(3)), *TOKENS)
    grown = importer.file("tuesday.csv", numbers(5))
    outcome = importer(grown, *TOKENS)
    assert outcome.status == 2
    assert "monday.csv: these rows would be billed once more" in outcome.talk
    assert importer.billed() == total(3)
    assert importer(importer.file("rest.csv", numbers(2, first=4)), *TOKENS).status == 0
    assert importer.billed() == total(5)


def test_a_trial_in_the_sandbox_does_not_keep_the_file_from_stripe(
    importer: Importer, stripe: Sandbox
) -> None:
    def destination(**settings: Any) -> str:
        return destination_of(Config(**settings))

    live = destination(api_key="rk_live_a")
    assert live == destination(api_key="sk_live_another_key_of_the_account")
    others = [
        destination(api_key="sk_test_a"),
        destination(sandbox_url="http://127.0.0.1:1"),
        destination(sandbox_url="http://127.0.0.1:2"),
        destination(api_key="rk_live_a", stripe_account="acct_1"),
    ]
    assert len({live, *others}) == 5


# -- keys and identifiers --------------------------------------------------------------------------


def test_a_key_names_a_row_in_every_file(importer: Importer, stripe: Sandbox) -> None:
    first = importer.file("a.csv", "id,n\nr1,1\nr2,2\n")
    second = importer.file("b.csv", "n,id,new\n2,r2,\n4,r3,\n")
    for file in (first, second):
        assert importer(file, *TOKENS, "--key", "id").status == 0
    assert importer.billed() == {"tokens": {"cus_1": "7"}}
    assert stripe.totals()["duplicates"] == 1


def test_a_key_bills_each_meter_of_its_row(importer: Importer) -> None:
    file = importer.file("a.csv", "id,n\nr1,1\n")
    for event in ("a", "b"):
        options = ("--event", event, "--customer", "c", "--map", "value=n", "--key", "id")
        importer(file, *options)
    assert importer.billed() == {"a": {"c": "1"}, "b": {"c": "1"}}


def test_a_key_that_comes_again_is_told_and_never_lost_in_silence(
    importer: Importer, stripe: Sandbox
) -> None:
    rows = [f"r{n},{n}" for n in range(1, 251)]
    file = importer.file("a.csv", "id,n\n" + "\n".join([*rows, "r7,7", "r8,9", ",5"]) + "\n")
    outcome = importer(file, *TOKENS, "--key", "id")
    assert outcome.status == 3
    assert outcome.books() == {
        "rows": 253,
        "recorded": 250,
        "delivered": 250,
        "rejected": 2,
        "repeated": 1,
    }
    assert importer.billed() == total(250)
    assert stripe.totals()["duplicates"] == 0
    rejects = Path(outcome.report["rejects"]).read_text()
    assert "row 8 has the same identifier" in rejects
    assert "its 'id' is empty, which is its key" in rejects


# -- broken off ------------------------------------------------------------------------------------


def test_kill_minus_9_and_resume_bill_every_row_once(
    importer: Importer, stripe: Stalling, killed: Callable[..., Path]
) -> None:
    file = killed()
    refused = importer(file, *TOKENS)
    assert refused.status == 2
    assert "broken off behind row 100: --resume goes on" in refused.talk
    outcome = importer(file, *TOKENS, "--resume")
    assert outcome.status == 0
    assert outcome.books() == {"rows": 250, "recorded": 250, "delivered": 250}
    assert importer.billed() == total(250)
    # Those in doubt came again under their identifiers, with the time of before.
    assert stripe.totals()["duplicates"] == 100
    assert importer(file, *TOKENS, "--resume").report["ended"] == "imported before"


def test_rows_in_doubt_keep_their_time(
    importer: Importer, stripe: Stalling, killed: Callable[..., Path]
) -> None:
    file = killed()
    age_attempts(importer, 3600)
    stripe.reset()
    importer(file, *TOKENS, "--resume")
    (begun,) = [note["begun"]["at"] for note in notes(importer) if "begun" in note][1:2]
    times = {int(row["identifier"].split("-")[2]): row["timestamp"] for row in stripe.ledger()}
    assert {times[row] for row in range(101, 201)} == {format_timestamp(begun)}
    assert times[201] > times[200]


def test_resumed_after_a_day_nothing_in_doubt_is_sent_and_a_human_gets_it(
    importer: Importer, stripe: Stalling, killed: Callable[..., Path]
) -> None:
    file = killed()
    age_attempts(importer, DAY)
    stripe.advance(DAY)
    outcome = importer(file, *TOKENS, "--resume")
    assert outcome.status == 3
    assert outcome.books() == {"rows": 250, "recorded": 250, "delivered": 150, "uncertain": 100}
    assert stripe.totals()["duplicates"] == 0
    assert importer.billed() == total(250)
    (letters,) = importer.state.glob("*.uncertain.jsonl")
    told = [json.loads(line) for line in letters.read_text().splitlines()]
    assert [letter["reason"] for letter in told] == ["uncertain"] * 100
    identifiers = {row["identifier"] for row in stripe.ledger()}
    assert all(letter["event"]["identifier"] in identifiers for letter in told)
    listed = run("dead-letters", "ls", letters)
    assert listed.stdout.count(" uncertain ") == 100


def test_what_is_in_doubt_is_not_tried_for_longer_than_its_window(
    importer: Importer, stripe: Stalling, killed: Callable[..., Path]
) -> None:
    file = killed(count=200)
    age_attempts(importer, 82_800 - 2.5)
    stripe.add_fault(Fault("status", status=503, accept=True))
    outcome = importer(file, *TOKENS, "--resume")
    assert outcome.status == 3
    assert outcome.books() == {"rows": 200, "recorded": 200, "delivered": 100, "uncertain": 100}
    assert importer.billed() == total(200)


def test_a_row_in_doubt_that_became_too_old_is_uncertain(
    importer: Importer, stripe: Stalling, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    old, young = now - 35 * DAY - 3600, now - 10_000
    file = importer.file("a.csv", f"n,t\n1,{old}\n2,{young}\n")
    options = (*TOKENS, "--map", "timestamp=t")
    stripe.stall_at = 0
    with monkeypatch.context() as two_hours_ago:
        two_hours_ago.setattr(time, "time", lambda: now - 7200)
        stripe.advance(-7200)
        assert importer(file, *options, "--patience", "2").status == 5
        stripe.advance(7200)
    stripe.go_on()
    outcome = importer(file, *options, "--resume")
    assert outcome.books() == {"rows": 2, "recorded": 2, "delivered": 1, "uncertain": 1}
    assert importer.billed() == total(2)


def test_ctrl_c_ends_it_cleanly_and_resume_goes_on(importer: Importer, stripe: Stalling) -> None:
    file = importer.file("a.csv", numbers(12_000))
    stripe.stall_at = 11_000
    command = importer.command(file, *TOKENS, "--json")
    with started(*command) as process:
        stripe.wait_until_stalled()
        process.send_signal(signal.SIGINT)
        output, talk = process.communicate(timeout=PATIENCE_SECONDS)
    report = json.loads(output)
    assert process.returncode == 130
    assert "interrupted; --resume goes on" in talk
    assert "Traceback" not in talk
    assert report["rows"] == report["recorded"] == 12_000
    assert report["delivered"] + report["uncertain"] + report["not_sent"] == 12_000
    assert report["uncertain"] > 0
    stripe.go_on()
    outcome = importer(file, *TOKENS, "--resume")
    assert (outcome.status, outcome.books()["delivered"]) == (0, 12_000)
    assert importer.billed() == total(12_000)


def test_a_torn_note_at_the_end_of_the_journal_does_not_count(
    importer: Importer, killed: Callable[..., Path]
) -> None:
    file = killed()
    with importer.journal().open("a") as journal:
        journal.write('{"ended":200,"led')
    assert importer(file, *TOKENS, "--resume").books()["delivered"] == 250
    assert importer.billed() == total(250)


def test_a_damaged_journal_is_told(importer: Importer, killed: Callable[..., Path]) -> None:
    file = killed()
    with importer.journal().open("a") as journal:
        journal.write("nonsense\n")
    outcome = importer(file, *TOKENS, "--resume")
    assert outcome.status == 2
    assert "is damaged" in outcome.talk


def test_only_one_process_imports_a_file_at_a_time(importer: Importer, stripe: Stalling) -> None:
    file = importer.file("a.csv", numbers(150))
    stripe.stall_at = 0
    with started(*importer.command(file, *TOKENS)):
        stripe.wait_until_stalled()
        outcome = importer(file, *TOKENS)
    assert outcome.status == 2
    assert "is being imported by another process" in outcome.talk
