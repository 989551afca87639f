"""The dead-letter file: whole lines, private, bounded, and no trouble of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meter_agent import DeadLetter, _dead_letters
from meter_agent._dead_letters import DeadLetterFile
from meter_agent._log import EventLog
from meter_agent._runtime import SystemRuntime
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent, wait_until
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


@pytest.mark.parametrize("torn", [b'{"event":{"identifier":"torn"', b"{", "\u20ac".encode()[:1]])
def test_a_line_that_its_writer_did_not_finish_does_not_take_the_next_one_with_it(
    tmp_path: Path, torn: bytes
) -> None:
    path = tmp_path / "letters.jsonl"
    path.write_bytes(b"{}\n" + torn)
    letters = make_file(path)
    letters.write(make_letter("first"))
    letters.write(make_letter("second"))
    whole, unfinished, *after = path.read_bytes().splitlines()
    assert (whole, unfinished) == (b"{}", torn)
    assert [json.loads(line)["event"]["identifier"] for line in after] == ["first", "second"]


def test_a_file_that_may_be_written_and_not_read_still_takes_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse_to_read(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, mode)

    path = tmp_path / "letters.jsonl"
    monkeypatch.setattr(os, "open", refuse_to_read)
    make_file(path).write(make_letter("kept"))
    monkeypatch.undo()
    assert json.loads(path.read_text())["event"]["identifier"] == "kept"


def test_an_announcement_names_the_event_and_not_its_payload(
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_file(None).announce(make_letter())
    (line,) = caplog.records
    assert events_of(caplog) == ["meter_agent.event_dead_lettered"]
    assert line.__dict__["identifier"] == "id-1"
    assert "payload" not in line.__dict__


@pytest.mark.parametrize("read", [False, True], ids=["nobody reads", "somebody reads"])
def test_a_fifo_is_no_dead_letter_file_and_holds_nobody_up(tmp_path: Path, read: bool) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if read else None
    letters = make_file(path)
    letters.write(make_letter())
    assert letters.failures == 1
    (problem,) = letters.problems().values()
    assert str(path) in problem
    if reader is not None:
        assert "not a regular file" in problem
        assert os.read(reader, 100) == b""
        os.close(reader)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/tty", "/proc/self/mem/x", "/"])
def test_what_is_no_regular_file_is_not_written_to(path: str) -> None:
    letters = make_file(Path(path))
    letters.write(make_letter())
    assert letters.failures == 1


def test_a_letter_that_can_be_written_again_ends_the_problem(tmp_path: Path) -> None:
    path = tmp_path / "a" / "letters.jsonl"
    letters = make_file(path)
    letters.write(make_letter())
    assert list(letters.problems()) == ["dead_letters_fail"]
    path.parent.mkdir()
    letters.write(make_letter())
    assert (letters.problems(), letters.failures) == ({}, 1)


class Hangs:
    """Opens no file before it is let, as a mount whose server is gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self._open = os.open
        monkeypatch.setattr(os, "open", self._open_late)

    def _open_late(self, path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("letters.jsonl"):
            assert self.answers.wait(60)
        return self._open(path, *arguments, **options)


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hangs]:
    hangs = Hangs(monkeypatch)
    yield hangs
    hangs.answers.set()
    for thread in threading.enumerate():
        if thread.name == "meter-agent-letters":
            thread.join(60)


@pytest.mark.parametrize("place", ["fifo", "mount"])
def test_a_dead_letter_file_that_never_answers_leaves_close_its_limit_and_is_told(
    make_agent: MakeAgent,
    sandbox: Sandbox,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    place: str,
) -> None:
    path = tmp_path / "letters.jsonl"
    if place == "fifo":
        os.mkfifo(path)
    else:
        request.getfixturevalue("hangs")
    # Three batches that Stripe may have: each of their events becomes a letter at the end.
    sandbox.add_fault(Fault("hang", accept=True))
    agent = make_agent(dead_letter_file=path, batch_size=10, max_in_flight=3)
    for n in range(30):
        assert agent.record("tokens", "cus_1", n)
    assert wait_until(agent, lambda: agent.stats().in_flight_requests == 3)
    began = time.monotonic()
    final = agent.close(0.5)
    assert time.monotonic() - began < 20, "far from the minute for which it hangs"
    assert final.balanced
    assert (final.uncertain, final.dead_letter_failures) == (30, 30)
    assert "letters.jsonl" in agent.health().problems["dead_letters_fail"]


def test_close_writes_a_hundred_letters_with_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside threads that compute, each system call takes up to a switch interval of each."""
    calls: list[int] = []
    real = os.write

    def counting(descriptor: int, data: bytes) -> int:
        calls.append(data.count(b"\n"))
        return real(descriptor, data)

    path = tmp_path / "letters.jsonl"
    letters = make_file(path)
    monkeypatch.setattr(os, "write", counting)
    letters.write_until(time.monotonic() + 60, [make_letter(f"id-{n}") for n in range(250)])
    assert calls == [100, 100, 50]
    assert [json.loads(line)["event"]["identifier"] for line in path.read_text().splitlines()] == [
        f"id-{n}" for n in range(250)
    ]
    assert letters.failures == 0
