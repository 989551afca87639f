"""The dead-letter file: whole lines, private, bounded, and no trouble of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from meter_agent import DeadLetter, _dead_letters
from meter_agent._dead_letters import DeadLetterFile
from meter_agent._log import EventLog
from meter_agent._runtime import SystemRuntime
from tests.log_lines import events_of
from tests.virtual import VirtualRuntime


def make_letter(identifier: str = "id-1", reason: str = "rejected") -> DeadLetter:
    return DeadLetter(
        event={"event_name": "tokens", "identifier": identifier, "payload": {"value": "1"}},
        reason=reason,
        message="no such meter",
        code="no_meter",
        request_id="req_1",
        recorded_at="2026-11-21T00:00:00.000Z",
        attempted_at="2026-11-21T00:00:01.000Z",
        settled_at="2026-11-21T00:00:02.000Z",
    )


def make_file(path: Path | None) -> DeadLetterFile:
    return DeadLetterFile(path, log=EventLog(VirtualRuntime()))


def test_a_letter_is_one_line_of_json_with_everything_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    make_file(path).write(make_letter())
    assert json.loads(path.read_text()) == {
        "event": {"event_name": "tokens", "identifier": "id-1", "payload": {"value": "1"}},
        "reason": "rejected",
        "message": "no such meter",
        "code": "no_meter",
        "request_id": "req_1",
        "recorded_at": "2026-11-21T00:00:00.000Z",
        "attempted_at": "2026-11-21T00:00:01.000Z",
        "settled_at": "2026-11-21T00:00:02.000Z",
        "uncertain": False,
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_an_uncertain_letter_says_so() -> None:
    assert make_letter(reason="uncertain").uncertain
    assert not make_letter().uncertain


def test_the_file_is_opened_anew_so_that_it_may_be_rotated(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    letters = make_file(path)
    letters.write(make_letter("a"))
    path.rename(tmp_path / "letters.1")
    letters.write(make_letter("b"))
    assert '"b"' in path.read_text()


def write_many(path: Path, mark: str) -> None:
    letters = DeadLetterFile(path, log=EventLog(SystemRuntime()))
    for n in range(200):
        letters.write(make_letter(f"{mark}-{n}"))


def test_several_processes_share_one_file_without_mixing_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, mark)) for mark in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    seen = {json.loads(line)["event"]["identifier"] for line in path.read_text().splitlines()}
    assert seen == {f"{mark}-{n}" for mark in "abc" for n in range(200)}


def test_a_file_that_cannot_be_written_is_logged_once_and_never_raises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    letters = make_file(tmp_path / "missing" / "letters.jsonl")
    for _ in range(10):
        letters.write(make_letter())
    assert events_of(caplog) == ["meter_agent.dead_letters_unwritable"]


def test_the_file_stops_growing_at_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_dead_letters, "FILE_BYTES_MAX", 1000)
    path = tmp_path / "letters.jsonl"
    letters = make_file(path)
    for _ in range(10):
        letters.write(make_letter())
    assert 0 < path.stat().st_size <= 1000
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert "limit of 1000 bytes" in caplog.records[0].__dict__["error"]


def test_a_full_disk_leaves_the_next_line_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.write
    calls: list[int] = []

    def short_once(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        return real(descriptor, data[:10] if len(calls) == 1 else data)

    monkeypatch.setattr(os, "write", short_once)
    path = tmp_path / "letters.jsonl"
    letters = make_file(path)
    letters.write(make_letter("lost"))
    letters.write(make_letter("kept"))
    assert "disk is full" in caplog.records[0].__dict__["error"]
    assert json.loads(path.read_text().splitlines()[1])["event"]["identifier"] == "kept"


def test_an_announcement_names_the_event_and_not_its_payload(
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_file(None).announce(make_letter())
    (line,) = caplog.records
    assert events_of(caplog) == ["meter_agent.event_dead_lettered"]
    assert line.__dict__["identifier"] == "id-1"
    assert "payload" not in line.__dict__
