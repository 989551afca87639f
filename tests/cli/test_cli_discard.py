"""`meter-agent dead-letters discard`: letters that will not be sent are closed, and stay closed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meter_agent.cli.dead_letters.letters import Choice, Letters
from meter_agent.cli.dead_letters.resent import Resent, State
from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS

from .letters import invalid, letter, write
from .processes import command, run


@pytest.fixture
def stripe() -> Sandbox:
    return Sandbox()


@pytest.fixture(autouse=True)
def host(stripe: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with SandboxServer(stripe) as server:
        monkeypatch.setenv("METER_AGENT_SANDBOX_URL", server.url)
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "letters.jsonl",
        letter("event-1"),
        letter("event-2", reason="uncertain"),
        invalid(),
        letter("event-4"),
    )


def discard(file: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run("dead-letters", "discard", "--file", file, *arguments)


def states(file: Path) -> list[State | None]:
    resent = Resent(file)
    return [resent.state(found) for found in Letters(file, Choice())]


def shown(file: Path) -> list[dict[str, Any]]:
    output = run("dead-letters", "show", "--json", file).stdout
    return [json.loads(line) for line in output.splitlines()]


def test_nothing_is_asked_and_the_letters_stay_in_the_file(file: Path) -> None:
    written = file.read_bytes()
    outcome = discard(file, "event-1", "event-2", "--because", "billed by hand")
    assert (outcome.returncode, outcome.stdout) == (0, "2 letters discarded\n")
    assert file.read_bytes() == written
    assert states(file) == [State.DISCARDED, State.DISCARDED, None, None]
    assert [each.get("because") for each in shown(file)[:3]] == ["billed by hand"] * 2 + [None]
    assert run("dead-letters", "ls", file).stdout.count("  discarded  ") == 2


def test_a_discarded_letter_is_never_sent(file: Path, stripe: Sandbox) -> None:
    assert discard(file, "event-1", "event-2", "--yes").returncode == 0
    outcome = run("dead-letters", "resend", file, "--uncertain", "--yes", "--json")
    assert outcome.returncode == 3  # the invalid one stays
    assert [row["identifier"] for row in stripe.ledger()] == ["event-4"]
    assert json.loads(outcome.stdout)["stay"] == {"discarded": 2, "invalid": 1}


def test_status_counts_discarded_letters_no_more(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METER_AGENT_DEAD_LETTER_FILE", str(file))
    assert run("status").returncode == 1
    assert run("dead-letters", "discard", "event-1", "event-2", "event-4").returncode == 0
    assert run("dead-letters", "discard", "--line", 3).returncode == 0
    outcome = run("status", "--json")
    assert outcome.returncode == 0
    told = json.loads(outcome.stdout)["dead_letters"]
    assert (told["open"], told["discarded"]) == (0, 4)


def test_where_one_identifier_is_unknown_nothing_is_changed(file: Path) -> None:
    outcome = discard(file, "event-1", "nope")
    assert outcome.returncode == 2
    assert "no letter with the identifier 'nope'; nothing was changed" in outcome.stderr
    assert states(file) == [None] * 4


@pytest.mark.parametrize("arguments", [[], ["--line", 9], ["--because", "x"]])
def test_letters_must_be_named(file: Path, arguments: list[object]) -> None:
    assert discard(file, *arguments).returncode == 2
    assert states(file) == [None] * 4


def test_a_file_that_is_not_there_has_no_such_letter(tmp_path: Path) -> None:
    assert discard(tmp_path / "none.jsonl", "event-1").returncode == 2
    assert not (tmp_path / "none.jsonl.resent").exists()


def test_discarding_again_changes_nothing(file: Path) -> None:
    assert discard(file, "event-1", "--because", "first").returncode == 0
    noted = Resent(file).path.read_bytes()
    outcome = discard(file, "event-1", "--because", "second")
    assert outcome.stdout == "0 letters discarded, 1 discarded before\n"
    assert outcome.returncode == 0
    assert Resent(file).path.read_bytes() == noted


def test_what_was_delivered_cannot_be_discarded(file: Path) -> None:
    assert run("dead-letters", "resend", file, "--identifier", "event-1", "--yes").returncode == 0
    outcome = discard(file, "event-4", "event-1")
    assert outcome.returncode == 2
    assert "'event-1': sent again before" in outcome.stderr
    assert states(file)[3] is None


def test_of_an_event_that_failed_again_the_newer_letter_is_discarded(
    file: Path, stripe: Sandbox
) -> None:
    stripe.set_meters(["seats"])
    assert run("dead-letters", "resend", file, "--identifier", "event-1", "--yes").returncode == 3
    assert discard(file, "event-1").stdout == "1 letter discarded\n"
    assert states(file) == [State.FAILED, None, None, None, State.DISCARDED]


def test_while_a_resend_runs_nothing_is_discarded(file: Path) -> None:
    with Resent(file) as resent:
        outcome = discard(file, "event-1")
        assert resent.path.read_bytes() == b""
    assert outcome.returncode == 2
    assert "by another process" in outcome.stderr


def test_a_full_disk_discards_all_or_nothing(file: Path) -> None:
    write(file, *[letter(f"more-{n}") for n in range(40)])
    names = [f"more-{n}" for n in range(40)]
    script = 'trap "" XFSZ; ulimit -f 2; "$@"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command("dead-letters", "discard", "--file", file, *names)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert set(states(file)) == {None}
    assert Resent(file).path.read_bytes() == b""


def test_a_note_that_was_torn_by_a_crash_does_not_count(file: Path) -> None:
    assert discard(file, "event-1", "event-2").returncode == 0
    path = Resent(file).path
    path.write_bytes(path.read_bytes()[:-20])
    assert states(file)[:2] == [State.DISCARDED, None]
    assert discard(file, "event-2").returncode == 0
    assert states(file)[:2] == [State.DISCARDED, State.DISCARDED]


def test_an_identifier_can_be_named_as_it_is_printed(file: Path) -> None:
    file.write_text(file.read_text().replace("event-4", "event-\\u202e4"))
    assert discard(file, "event-\\u202e4").returncode == 0
    assert states(file)[3] is State.DISCARDED
