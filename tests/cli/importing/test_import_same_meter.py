"""What may bill a meter twice is refused, and what is to be billed once more is, or is told."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from meter_agent.cli.importing import input_file
from meter_agent.cli.importing.chunks import Chunks
from meter_agent.cli.importing.file_import import CHUNK_ROWS
from meter_agent.cli.importing.journal import Begun, Journal
from meter_agent.sandbox import Sandbox
from tests.cli.processes import started
from tests.patience import PATIENCE_SECONDS

from .conftest import TOKENS, Importer, numbers
from .test_import_exact import ORG, reasons

STRIPE_FORMAT = "event_name,payload_stripe_customer_id,payload_value,kind\ntokens,cus_1,5,tokens\n"
ONE_OF_EACH: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    ((), ("--event", "tokens")),
    (("--event", "tokens"), ()),
    ((), ("--map", "event=kind")),
]


@pytest.mark.parametrize(("first", "second"), ONE_OF_EACH)
def test_a_file_whose_column_may_name_the_same_meter_is_refused(
    importer: Importer, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    file = importer.file("a.csv", STRIPE_FORMAT)
    assert importer(file, *first).status == 0
    outcome = importer(file, *second)
    assert (outcome.status, "may be the same meter" in outcome.talk) == (2, True)
    assert importer.billed() == {"tokens": {"cus_1": "5"}}
    assert importer(file, *second, "--in-addition").status == 0
    assert importer.billed() == {"tokens": {"cus_1": "10"}}


def test_in_addition_to_an_import_with_the_same_options_is_refused(importer: Importer) -> None:
    file = importer.file("a.csv", numbers(3))
    assert importer(file, *TOKENS).status == 0
    outcome = importer(file, *TOKENS, "--in-addition")
    assert outcome.status == 2
    assert "with these options" in outcome.talk
    other = (*TOKENS, "--timezone", "UTC", "--in-addition")
    assert importer(file, *other).status == 0
    assert importer(file, *other).status == 0
    assert importer.billed() == {"tokens": {"cus_1": "12"}}


def test_in_addition_with_identifiers_that_were_sent_is_no_success(importer: Importer) -> None:
    file = importer.file("a.csv", "org,n,identifier\ncus_1,5,r1\n")
    assert importer(file, *ORG).status == 0
    outcome = importer(file, *ORG, "--timezone", "UTC", "--in-addition")
    assert outcome.status == 2
    assert "'r1' was sent on" in outcome.talk
    file = importer.file("b.csv", "org,n,identifier\ncus_1,5,r1\ncus_1,6,r2\n")
    outcome = importer(file, *ORG, "--in-addition")
    assert (outcome.status, len(reasons(outcome))) == (3, 1)
    assert importer.billed() == {"tokens": {"cus_1": "11"}}


def test_a_relative_state_directory_names_its_files_from_everywhere(
    importer: Importer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(importer.folder)
    monkeypatch.setattr(importer, "state", Path("state"))
    outcome = importer(importer.file("a.csv", "n\n1\nmany\n"), *TOKENS)
    assert os.path.isabs(outcome.report["rejects"])
    assert os.path.isabs(outcome.report["journal"])


def test_a_file_that_was_cut_between_two_chunks_is_not_done(
    importer: Importer, stripe: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = importer.file("a.csv", numbers(CHUNK_ROWS + 5000))
    take = Chunks.take

    def cut(chunks: Any, *arguments: Any) -> Any:
        chunk = take(chunks, *arguments)
        if chunk is not None and chunk.first_row == 1:
            # As if nothing behind this chunk had been read ahead.
            chunks._rows = iter(())
            return chunk
        os.truncate(file, 100)
        return chunk

    monkeypatch.setattr(Chunks, "take", cut)
    outcome = importer(file, *TOKENS)
    assert outcome.status == 3
    assert "has changed while it was read" in outcome.report["ended"]


def test_two_imports_that_begin_at_once_do_not_bill_the_same_rows(
    importer: Importer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, grown = importer.file("a.csv", numbers(3)), importer.file("b.csv", numbers(5))
    begin = Journal.begin
    with contextlib.ExitStack() as stack:
        others: list[subprocess.Popen[str]] = []

        def begin_beside_another(journal: Journal, chunk: Begun) -> None:
            others.append(stack.enter_context(started(*importer.command(grown, *TOKENS))))
            give_up_at = time.monotonic() + PATIENCE_SECONDS
            while others[0].poll() is None and not waits_for_a_lock(others[0].pid):
                assert time.monotonic() < give_up_at
                time.sleep(0.01)
            begin(journal, chunk)

        monkeypatch.setattr(Journal, "begin", begin_beside_another)
        assert importer(first, *TOKENS).status == 0
        assert others[0].wait(PATIENCE_SECONDS) == 2
    assert importer.billed() == {"tokens": {"cus_1": "6"}}


def waits_for_a_lock(pid: int) -> bool:
    """Whether the kernel has *pid* wait for a lock of a file."""
    return re.search(rf"-> FLOCK .* {pid} ", Path("/proc/locks").read_text()) is not None


def test_a_file_that_grew_is_gone_on_with_as_the_message_says(
    importer: Importer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = importer.file("a.csv", numbers(CHUNK_ROWS + 3))
    end = Journal.end

    def grow(journal: Journal, *arguments: Any) -> None:
        end(journal, *arguments)
        with file.open("a") as more:
            more.write("7\n")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "end", grow)
        outcome = importer(file, *TOKENS)
    assert (outcome.status, outcome.report["delivered"]) == (3, CHUNK_ROWS)
    found = re.search(r"`(.*) \| meter-agent import -`", outcome.report["ended"])
    assert found is not None
    before = subprocess.run(["sh", "-c", found[1]], capture_output=True, check=True, timeout=60)
    assert importer("-", *TOKENS, "--resume", stdin=before.stdout).status == 0
    assert importer.billed() == {"tokens": {"cus_1": str(sum(range(CHUNK_ROWS + 4)))}}


@pytest.mark.parametrize(
    "saved",
    [
        b"\xef\xbb\xbforg,n\ncus_1,5\ncus_2,6\n",
        b"org,n\r\ncus_1,5\r\ncus_2,6\r\n",
        b"org,n\ncus_1,5\ncus_2,6",
    ],
    ids=["mark", "line ends", "last line"],
)
@pytest.mark.parametrize("block", [1, 3, 1024])
def test_the_same_text_with_other_line_ends_is_refused(
    importer: Importer, monkeypatch: pytest.MonkeyPatch, saved: bytes, block: int
) -> None:
    monkeypatch.setattr(input_file, "_BLOCK_BYTES", block)
    first = importer.file("a.csv", "org,n\ncus_1,5\ncus_2,6\n")
    assert importer(first, *ORG).status == 0
    file = importer.folder / "saved.csv"
    file.write_bytes(saved)
    outcome = importer(file, *ORG)
    assert (outcome.status, "has the same text" in outcome.talk) == (2, True)
    assert importer.billed() == {"tokens": {"cus_1": "5", "cus_2": "6"}}
    assert importer(file, *ORG, "--in-addition").status == 0
    assert importer.billed() == {"tokens": {"cus_1": "10", "cus_2": "12"}}
    changed = importer.file("c.csv", "org,n\ncus_1,5\n\ncus_2,6\n")
    assert importer(changed, *ORG).status == 0
