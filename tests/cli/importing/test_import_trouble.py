"""Imports in bad weather, and rows that cannot be billed: the books are exact all the same."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from meter_agent.cli.importing import chunks, file_import
from meter_agent.cli.importing.chunks import Chunks
from meter_agent.cli.importing.journal import Journal
from meter_agent.cli.importing.row import ROW_CHARACTERS_MAX
from meter_agent.cli.importing.side_file import SideFile
from meter_agent.sandbox import Fault, Sandbox
from tests.patience import PATIENCE_SECONDS

from ..processes import run
from .conftest import TOKENS, Importer, Outcome, numbers


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_import, "CHUNK_ROWS", 300)


def total(count: int, *without: int) -> dict[str, dict[str, str]]:
    return {"tokens": {"cus_1": str(sum(range(1, count + 1)) - sum(without))}}


def rejects(outcome: Outcome) -> list[list[str]]:
    with Path(outcome.report["rejects"]).open(newline="") as file:
        return list(csv.reader(file))


# -- bad weather -----------------------------------------------------------------------------------


def test_rate_limits_and_cut_connections_change_no_total(
    importer: Importer, stripe: Sandbox
) -> None:
    for fault in (
        Fault("status", status=429, probability=0.2),
        Fault("status", status=503, accept=True, probability=0.2),
        Fault("reset", when="after", probability=0.2),
        Fault("truncate", probability=0.1),
        Fault("revoke", probability=0.1),
    ):
        stripe.add_fault(fault)
    outcome = importer(importer.file("a.csv", numbers(2500)), *TOKENS)
    assert outcome.status == 0
    assert re.search(r"^2500/2500 settled: [\d,]+/s  0:00:00 left  del", outcome.talk, re.MULTILINE)
    assert outcome.books() == {"rows": 2500, "recorded": 2500, "delivered": 2500}
    assert importer.billed() == total(2500)
    assert stripe.totals()["duplicates"] > 0


def test_a_bad_row_in_a_batch_takes_no_other_with_it(importer: Importer, stripe: Sandbox) -> None:
    stripe.add_fault(Fault("poison", match={"payload.value": "7"}, message="Not this one."))
    stripe.add_fault(Fault("poison", match={"payload.value": "350"}, code="no_meter"))
    outcome = importer(importer.file("a.csv", numbers(700)), *TOKENS)
    assert outcome.status == 3
    assert outcome.books() == {
        "rows": 700,
        "recorded": 700,
        "delivered": 698,
        "dead_lettered": 2,
    }
    assert importer.billed() == total(700, 7, 350)
    header, first, second = rejects(outcome)
    assert header == ["rejected_because", "n"]
    assert first[1] == "7"
    assert first[0].startswith("Stripe refused it: HTTP 400")
    assert "Not this one." in first[0]
    assert (second[1], "(no_meter)" in second[0]) == ("350", True)
    # Who asks again is told where they are; and mended, here by others, they are billed from there.
    again = importer(importer.folder / "a.csv", *TOKENS)
    assert (again.status, again.report["ended"]) == (3, "imported before")
    told = f"and why: {outcome.report['rejects']}; mended, it can be imported itself"
    assert (told in outcome.talk, told in again.talk) == (True, True)
    stripe.clear_faults()
    assert importer(outcome.report["rejects"], *TOKENS).status == 0
    assert importer.billed() == total(700)


def test_a_refused_key_ends_it_with_4_and_nothing_is_left_behind(
    importer: Importer, stripe: Sandbox
) -> None:
    stripe.add_fault(Fault("status", on="session", status=401))
    file = importer.file("a.csv", numbers(10))
    outcome = importer(file, *TOKENS)
    assert outcome.status == 4
    assert "the key is refused" in outcome.talk
    assert "nothing was sent, so import it again\n" in outcome.talk
    assert outcome.talk.endswith("`meter-agent doctor` tells what is wrong, and what mends it\n")
    assert list(importer.state.iterdir()) == []
    stripe.clear_faults()
    assert importer(file, *TOKENS).status == 0
    assert importer.billed() == total(10)


def test_a_server_that_takes_nothing_ends_it_with_5_and_resume_goes_on(
    importer: Importer, stripe: Sandbox
) -> None:
    file = importer.file("a.csv", numbers(400))
    stripe.add_fault(Fault("hang", accept=True))
    outcome = importer(file, *TOKENS, "--patience", "2")
    assert outcome.status == 5
    assert outcome.books() == {"rows": 300, "recorded": 300, "uncertain": 300}
    assert re.search("nothing was delivered for 2 s.*; --resume goes on\n", outcome.talk)
    stripe.clear_faults()
    assert importer(file, *TOKENS, "--resume").books()["delivered"] == 400
    assert importer.billed() == total(400)


def test_a_place_where_no_journal_can_be_kept_is_told_before_anything_is_sent(
    importer: Importer,
) -> None:
    file = importer.file("a.csv", numbers(10))
    for place in ("/proc/self/task", importer.file("taken", "") / "below"):
        importer.state = Path(place)
        outcome = importer(file, *TOKENS)
        assert outcome.status == 2
        assert f"no journal can be kept in {place}: " in outcome.talk
        assert "--state-dir" in outcome.talk
    assert importer.billed() == {}


def test_nobody_at_the_address_stops_behind_the_first_file(importer: Importer) -> None:
    importer.url = "http://127.0.0.1:1"
    files = [importer.file(f"{n}.csv", numbers(n)) for n in (1, 2)]
    outcome = importer(*files, *TOKENS, "--patience", "0.2")
    assert (outcome.status, len(outcome.lines)) == (5, 1)


def test_a_file_that_changes_while_it_is_read_is_not_gone_on_with(
    importer: Importer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = importer.file("a.csv", numbers(700))
    take = Chunks.take

    def write_and_take(*arguments: Any, **options: Any) -> Any:
        if importer.billed():
            with file.open("a") as end:
                end.write("1000\n")
        return take(*arguments, **options)

    monkeypatch.setattr(Chunks, "take", write_and_take)
    outcome = importer(file, *TOKENS)
    assert outcome.status == 3
    assert "has grown while it was read" in outcome.talk
    assert outcome.books() == {"rows": 300, "recorded": 300, "delivered": 300}
    assert importer.billed() == total(300)


# -- rows that cannot be billed --------------------------------------------------------------------


def test_each_bad_row_is_told_with_its_reason(importer: Importer) -> None:
    now = int(time.time())
    lines = [
        b"c,n,t",
        b"cus_1,1,%d" % now,
        b"cus_1,many,%d" % now,
        b"cus_1,2,%d" % (now - 36 * 86_400),
        b"cus_1,3,%d" % (now * 1000),
        b",4,%d" % now,
        b"cus_1,5",
        b"cus_\xff,7,%d" % now,
        b"cus_1,8,",
        b"cus_1,9," + b"9" * ROW_CHARACTERS_MAX,
        b"cus_1,10,%d" % now,
    ]
    file = importer.folder / "a.csv"
    file.write_bytes(b"\n".join(lines))
    fields = {"customer": "c", "value": "n", "timestamp": "t"}
    outcome = importer(file, "--event=tokens", *(f"--map={f}={c}" for f, c in fields.items()))
    assert outcome.books() == {"rows": 10, "recorded": 2, "delivered": 2, "rejected": 8}
    assert importer.billed() == {"tokens": {"cus_1": "11"}}
    path = Path(outcome.report["rejects"])
    with path.open(newline="", errors="surrogateescape") as written:
        told = list(csv.reader(written))[1:]
    reasons = [row[0] for row in told]
    for reason, said in zip(
        reasons,
        (
            "value='many' is invalid",
            "more than 35 days old",
            "is it in seconds?",
            "its 'c' is empty, which is the customer",
            "it has 2 cells, and the header has 3",
            "it has U+DCFF",
            "its 't' is empty, which is the timestamp",
            "the line is longer than",
        ),
        strict=True,
    ):
        assert said in reason
    assert b"cus_\xff,7," in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_json_lines_that_are_none_are_told(importer: Importer) -> None:
    lines = [
        '{"n": 1}',
        "{n: 2}",
        "[3]",
        '{"m": 4}',
        '{"n": NaN}',
        '{"n": true}',
        '{"n": {"n": 5}}',
        "",
        '{"n": "6"}',
        "[" * 100_000,
        '{"n": "' + "7" * ROW_CHARACTERS_MAX + '"}',
        '{"n": 8.000000000001}',
        '{"n": 9.00000000000000000001}',
    ]
    outcome = importer(importer.file("a.jsonl", "\n".join(lines)), *TOKENS)
    assert outcome.books() == {"rows": 12, "recorded": 3, "delivered": 3, "rejected": 9}
    assert importer.billed() == {"tokens": {"cus_1": "15.000000000001"}}
    written = Path(outcome.report["rejects"]).read_text().splitlines()
    told = [json.loads(line) for line in written]
    assert "unreadable" in told[0]
    assert told[2] == {"rejected_because": "its 'n' is empty, which is the value", "m": 4}
    assert "must be a number such as" in told[4]["rejected_because"]
    assert "must be exact in 15 digits" in told[-1]["rejected_because"]
    assert written[-1].endswith('"n": 9.00000000000000000001}')


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rejected_rows_are_importable_when_they_are_mended(
    importer: Importer, stripe: Sandbox, suffix: str
) -> None:
    stripe.set_meters(["other"])
    text = 'n,note\n1,"a,b"\nx2,c\n' if suffix == "csv" else '{"n":1}\n{"n":"x2","d":0.10}\n'
    outcome = importer(importer.file(f"a.{suffix}", text), *TOKENS)
    assert outcome.books() == {"rows": 2, "recorded": 1, "dead_lettered": 1, "rejected": 1}
    # Not mended, the same rows are rejected again, with one reason each.
    once_more = importer(outcome.report["rejects"], *TOKENS)
    assert once_more.books() == outcome.books()
    stripe.set_meters(None)
    mended = Path(once_more.report["rejects"]).read_text().replace("x2", "2")
    assert mended.count("rejected_because") == (1 if suffix == "csv" else 2)
    assert "0.10" in mended or suffix == "csv"
    outcome = importer(importer.file(f"mended.{suffix}", mended), *TOKENS)
    assert outcome.status == 0
    assert importer.billed() == {"tokens": {"cus_1": "3"}}


def test_the_file_of_rejects_is_named_and_must_be_new(importer: Importer) -> None:
    file = importer.file("a.csv", "n\nx\n")
    wanted = importer.folder / "bad.csv"
    wanted.write_text("mine\n")
    outcome = importer(file, *TOKENS, "--rejects", wanted)
    assert (outcome.status, wanted.read_text()) == (2, "mine\n")
    wanted.unlink()
    assert importer(file, *TOKENS, "--rejects", wanted).status == 3
    assert wanted.read_text().splitlines()[0] == "rejected_because,n"
    two = importer(file, file, *TOKENS, "--rejects", wanted)
    assert (two.status, "one FILE at a time" in two.talk) == (2, True)


def test_after_a_crash_no_rejected_row_stands_there_twice(
    importer: Importer, stripe: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = importer.file("a.csv", "n\n" + "x\n1\n" * 300)
    end = Journal.end
    ends = 0

    def crash(*arguments: Any) -> None:
        nonlocal ends
        ends += 1
        if ends == 2:
            raise OSError("the machine went down")
        end(*arguments)

    with monkeypatch.context() as crashing:
        crashing.setattr(Journal, "end", crash)
        assert importer(file, *TOKENS).status == 3
    outcome = importer(file, *TOKENS, "--resume")
    assert outcome.books() == {"rows": 600, "recorded": 300, "delivered": 300, "rejected": 300}
    assert len(rejects(outcome)) == 301
    assert importer.billed() == {"tokens": {"cus_1": "300"}}


def test_a_resume_writes_to_the_rejects_of_before_or_to_others(
    importer: Importer, stripe: Sandbox
) -> None:
    file = importer.file("a.csv", "n\nx\n" + "1\n" * 400 + "y\n")
    bad, other = importer.folder / "bad.csv", importer.folder / "other.csv"
    stripe.add_fault(Fault("hang"))
    assert importer(file, *TOKENS, "--rejects", bad, "--patience", "2").status == 5
    assert importer(file, *TOKENS, "--resume", "--patience", "2").report["rejects"] == str(bad)
    stripe.clear_faults()
    outcome = importer(file, *TOKENS, "--resume", "--rejects", other)
    assert outcome.books() == {"rows": 402, "recorded": 400, "delivered": 400, "rejected": 2}
    assert importer.billed() == {"tokens": {"cus_1": "400"}}
    written = [path.read_text() for path in (bad, other) if path.exists()]
    assert sum(text.count("is invalid") for text in written) == 2
    assert all(f"and why: {path}" in outcome.talk for path in (bad, other) if path.exists())


def test_rejects_that_cannot_be_written_are_told_before_anything_is_sent(
    importer: Importer,
) -> None:
    file = importer.file("a.csv", numbers(2))
    pipe = importer.folder / "pipe"
    os.mkfifo(pipe)
    for path in ("/no/dir/x.csv", "/proc/x.csv", pipe, importer.folder):
        outcome = importer(file, *TOKENS, "--rejects", path)
        assert (outcome.status, outcome.talk.count("\n")) == (2, 1)
    assert importer.stripe.requests == []


@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_with_another_path_for_the_rejects_it_begins(
    importer: Importer, options: tuple[str, ...]
) -> None:
    file = importer.file("a.csv", numbers(2))
    assert importer(file, *TOKENS, "--rejects", "/no/dir/x.csv").status == 2
    assert json.loads(run("status", "--json", "--state-dir", importer.state).stdout)
    other = importer.folder / "other.csv"
    outcome = importer(file, *TOKENS, "--rejects", other, *options)
    assert outcome.books() == {"rows": 2, "recorded": 2, "delivered": 2}
    assert outcome.report["rejects"] == str(other)
    assert importer(file, *TOKENS).report["ended"] == "imported before"


def test_rejects_that_become_unwritable_end_it_and_another_path_goes_on(
    importer: Importer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = importer.file("a.csv", "n\n1\nx\n2\n")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "bad.csv")

    with monkeypatch.context() as crashing:
        crashing.setattr(SideFile, "append", full)
        outcome = importer(file, *TOKENS, "--rejects", importer.folder / "bad.csv")
    assert (outcome.status, outcome.report["delivered"]) == (3, 0)
    assert "No space left on device: 'bad.csv'; --resume goes on" in outcome.talk
    other = importer.folder / "other.csv"
    outcome = importer(file, *TOKENS, "--resume", "--rejects", other)
    assert outcome.books() == {"rows": 3, "recorded": 2, "delivered": 2, "rejected": 1}
    assert importer.billed() == {"tokens": {"cus_1": "3"}}
    assert other.read_text().count("\n") == 2


# -- size ------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_file(importer: Importer) -> None:
    measured = {rows: peak_of_dry_run(importer, rows) for rows in (10_000, 40_000)}
    # 30 000 rows more that were held in memory would take 20 MiB.
    assert measured[40_000] - measured[10_000] < 8 * 1024


def test_long_rows_make_short_chunks(importer: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_CHARACTERS_MAX", 100)
    file = importer.file("a.csv", "n,note\n" + f"1,{'x' * 60}\n" * 8)
    assert importer(file, *TOKENS).status == 0
    noted = [json.loads(line) for line in importer.journal().read_text().splitlines()]
    assert [note["ended"] for note in noted if "ended" in note] == [2, 4, 6, 8]


def peak_of_dry_run(importer: Importer, rows: int) -> int:
    """The peak of resident memory in KiB, of a process that looks at every row of a file."""
    lines = (f"req-{n},cus_{n % 97},{n}\n" for n in range(rows))
    file = importer.file(f"{rows}.csv", "id,c,n\n" + "".join(lines))
    options = ("--event", "e", "--map", "customer=c", "--map", "value=n")
    code = (
        "import resource, sys\n"
        f"sys.argv[1:] = {importer.command(file, *options, '--dry-run')!r}\n"
        "from meter_agent.__main__ import main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    *_, summary, peak = done.stdout.splitlines()
    assert f"{rows} rows: {rows} would be sent" in summary
    return int(peak)
