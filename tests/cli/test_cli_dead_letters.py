"""`meter-agent dead-letters ls`, `show` and `export` as a user runs them."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from meter_agent.cli.dead_letters.letters import Choice, Letters

from .letters import invalid, letter, write
from .processes import run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "letters.jsonl",
        letter("event-1", 5),
        letter("event-2", 6, reason="uncertain"),
        invalid(),
        letter("event-4", 7, reason="too_old"),
    )


def rows(output: str) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


def test_ls_tells_reason_time_and_identifier_of_each_letter(file: Path) -> None:
    outcome = run("dead-letters", "ls", file)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    heading, *lines = outcome.stdout.splitlines()
    assert heading.split()[:3] == ["LINE", "REASON", "SETTLED"]
    assert [line.split()[1] for line in lines] == ["rejected", "uncertain", "invalid", "too_old"]
    assert "event-1" in lines[0]
    assert "No meter has this event name" in lines[0]
    assert "value='twelve' is invalid" in lines[2]


def test_ls_json_is_the_letters_with_their_place_and_state(file: Path) -> None:
    written = rows(file.read_text())
    listed = rows(run("dead-letters", "ls", "--json", file).stdout)
    assert [row.pop("line") for row in listed] == [1, 2, 3, 4]
    assert {row.pop("resent") for row in listed} == {None}
    assert listed == written


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (["--reason", "uncertain"], [2]),
        (["--reason", "uncertain", "--reason", "invalid"], [2, 3]),
        (["--identifier", "event-4"], [4]),
        (["--identifier", "event-4", "--reason", "rejected"], []),
        (["--line", "3"], [3]),
    ],
)
def test_letters_can_be_chosen(file: Path, options: list[str], lines: list[int]) -> None:
    listed = rows(run("dead-letters", "ls", "--json", *options, file).stdout)
    assert [row["line"] for row in listed] == lines


def test_show_prints_all_that_a_letter_says(file: Path) -> None:
    outcome = run("dead-letters", "show", "--identifier", "event-1", file)
    assert outcome.returncode == 0
    shown = dict(line.split(": ", 1) for line in outcome.stdout.splitlines() if line)
    (written, *_) = rows(file.read_text())
    assert json.loads(shown["event"]) == written["event"]
    assert (shown["reason"], shown["request_id"]) == ("rejected", "req_1")


@pytest.mark.parametrize("listing", ["ls", "show", "export", "resend"])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--identifier", "nope"], "no letter with the identifier 'nope'"),
        (["--identifier", "event-1", "--identifier", "nope"], "with the identifier 'nope'"),
        (["--identifier", "event-4", "--reason", "rejected"], "no letter of the reason rejected"),
        (["--line", "9"], "no letter in line 9"),
    ],
)
def test_a_letter_that_is_named_and_not_there_is_an_error(
    file: Path, listing: str, options: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METER_AGENT_SANDBOX_URL", "http://127.0.0.1:9")
    outcome = run("dead-letters", listing, *options, file)
    assert outcome.returncode == 2
    assert complaint in outcome.stderr.splitlines()[-1]


@pytest.mark.parametrize("listing", ["ls", "show", "export"])
def test_a_letter_of_a_file_that_is_not_there_is_an_error(listing: str, tmp_path: Path) -> None:
    for arguments in (["nope"], ["--identifier", "event-1"]):
        outcome = run("dead-letters", listing, *arguments, env=_environ(tmp_path))
        assert (outcome.returncode, outcome.stderr.count("\n")) == (2, 1)


def test_that_nothing_is_listed_is_said(file: Path) -> None:
    file.write_text("")
    for listing in ("ls", "show"):
        outcome = run("dead-letters", listing, file)
        assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "no letters\n")


def _environ(directory: Path) -> dict[str, str]:
    return {**os.environ, "METER_AGENT_DEAD_LETTER_FILE": str(directory / "none.jsonl")}


def test_an_export_has_one_shape_which_import_reads(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "events.jsonl"
    assert run("dead-letters", "export", "--json", file, "--output", output).returncode == 0
    events = rows(output.read_text())
    assert {frozenset(event) for event in events} == {
        frozenset({"event_name", "identifier", "timestamp", "payload"})
    }
    assert {frozenset(event["payload"]) for event in events} == {
        frozenset({"stripe_customer_id", "value"})
    }
    assert events[2]["payload"] == {"stripe_customer_id": "cus_1", "value": "twelve"}

    output.write_text(output.read_text().replace("twelve", "12"))
    outcome = run("import", "--dry-run", output)
    assert outcome.returncode == 0, outcome.stdout
    assert "4 would be sent" in outcome.stdout


def test_an_invalid_event_is_exported_with_the_keys_of_the_settings(tmp_path: Path) -> None:
    file = write(tmp_path / "letters.jsonl", invalid())
    environ = {**os.environ, "METER_AGENT_CUSTOMER_KEY": "org", "METER_AGENT_VALUE_KEY": "n"}
    (event,) = rows(run("dead-letters", "export", file, env=environ).stdout)
    assert event["payload"] == {"org": "cus_1", "n": "twelve"}


def test_export_writes_the_events_alone(file: Path) -> None:
    outcome = run("dead-letters", "export", "--reason", "rejected", file)
    assert rows(outcome.stdout) == [rows(file.read_text())[0]["event"]]
    assert outcome.stderr == "1 event\n"


def test_the_file_is_that_of_the_environment_if_none_is_named(file: Path, tmp_path: Path) -> None:
    named = {"METER_AGENT_DEAD_LETTER_FILE": str(file)}
    assert len(run("dead-letters", "ls", env=os.environ | named).stdout.splitlines()) == 5
    file.rename(tmp_path / "dead-letters.jsonl")
    spool = {"METER_AGENT_SPOOL_DIR": str(tmp_path)}
    assert len(run("dead-letters", "ls", env=os.environ | spool).stdout.splitlines()) == 5


def test_an_agent_that_never_wrote_a_letter_has_none(tmp_path: Path) -> None:
    environ = os.environ | {"METER_AGENT_SPOOL_DIR": str(tmp_path)}
    outcome = run("dead-letters", "ls", env=environ)
    assert (outcome.returncode, outcome.stdout) == (0, "")
    assert outcome.stderr == f"no dead letters: there is no {tmp_path}/dead-letters.jsonl\n"


@pytest.mark.parametrize("command", ["ls", "show", "export", "resend"])
def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path, command: str) -> None:
    environ = os.environ | {"METER_AGENT_SANDBOX_URL": "http://127.0.0.1:9"}
    outcome = run("dead-letters", command, tmp_path / "none", env=environ)
    assert outcome.returncode == 2
    assert outcome.stderr.endswith("none: No such file or directory\n")


@pytest.mark.parametrize("command", ["ls", "show", "export", "resend"])
def test_an_identifier_in_the_place_of_the_file_is_told_its_option(
    tmp_path: Path, command: str
) -> None:
    write(tmp_path / "dead-letters.jsonl", letter("event-1"))
    environ = os.environ | {
        "METER_AGENT_SANDBOX_URL": "http://127.0.0.1:9",
        "METER_AGENT_SPOOL_DIR": str(tmp_path),
    }
    outcome = run("dead-letters", command, "event-1", env=environ)
    assert outcome.returncode == 2
    assert outcome.stderr.endswith("; one letter is chosen by --identifier\n")


def test_what_is_no_file_is_a_usage_error_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        outcome = run("dead-letters", "ls", path)
        assert outcome.returncode == 2
        assert outcome.stderr == f"meter-agent dead-letters ls: {path}: it is not a regular file\n"


def test_without_a_file_it_is_said_how_to_name_one() -> None:
    outcome = run("dead-letters", "ls")
    assert outcome.returncode == 2
    assert "METER_AGENT_DEAD_LETTER_FILE" in outcome.stderr


def test_lines_that_are_no_letters_are_told_and_the_others_are_listed(file: Path) -> None:
    with file.open("ab") as end:
        end.write(b'{"event": {"cut of\n\xff\n[1]\n{"event": 1, "reason": "rejected"}\n')
        end.write(b"[" * 3_000_000 + b"\n")
    write(file, letter("event-9"))
    outcome = run("dead-letters", "ls", "--json", file)
    assert outcome.returncode == 3
    assert [row["line"] for row in rows(outcome.stdout)] == [1, 2, 3, 4, 10]
    assert outcome.stderr.splitlines() == [
        f"line {n} of {file} is no dead letter" for n in range(5, 10)
    ]


def test_an_empty_line_is_passed_over_in_silence(file: Path) -> None:
    with file.open("ab") as end:
        end.write(b"\n")
    write(file, letter("event-9"))
    outcome = run("dead-letters", "ls", "--json", file)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert [row["line"] for row in rows(outcome.stdout)] == [1, 2, 3, 4, 6]


def test_what_could_move_the_cursor_is_escaped(tmp_path: Path) -> None:
    file = write(tmp_path / "letters", letter("event-1", payload={"note": "a\u0007b"}))
    file.write_text(file.read_text().replace("event-1", "event-\\u202e1"))
    for command in ("ls", "show"):
        outcome = run("dead-letters", command, file)
        assert outcome.returncode == 0
        assert outcome.stdout.isascii()


def test_a_large_file_is_read_in_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "letters.jsonl", *[letter(f"event-{n}") for n in range(100)])
    path.write_bytes(path.read_bytes() * 200 + b"x" * 20_000_000)
    tracemalloc.start()
    try:
        letters = Letters(path, Choice(reasons=("rejected",)))
        assert sum(1 for _ in letters) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert letters.unread == 1
    assert peak < 5_000_000


def test_what_is_appended_meanwhile_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "letters.jsonl", letter("event-1"), letter("event-2"))
    seen = []
    for found in Letters(path, Choice()):
        seen.append(found.identifier)
        write(path, letter("event-3"))
    assert seen == ["event-1", "event-2"]
