"""`meter-agent dead-letters resend`: on a human's word, and never twice."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meter_agent import MeterAgent
from meter_agent.cli.dead_letters.letters import Choice, Letters
from meter_agent.cli.dead_letters.resent import Resent, State
from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS

from .letters import DAY, invalid, letter, write
from .processes import command, first_line, run, started


@pytest.fixture
def stripe() -> Sandbox:
    return Sandbox()


@pytest.fixture(autouse=True)
def url(stripe: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with SandboxServer(stripe) as server:
        monkeypatch.setenv("METER_AGENT_SANDBOX_URL", server.url)
        yield server.url


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "letters.jsonl"


def resend(*arguments: object) -> tuple[int, dict[str, Any], str]:
    outcome = run("dead-letters", "resend", "--json", *arguments)
    assert outcome.stdout, outcome.stderr
    return outcome.returncode, json.loads(outcome.stdout), outcome.stderr


def states(file: Path) -> list[State | None]:
    resent = Resent(file)
    return [resent.state(found) for found in Letters(file, Choice())]


def identifiers(stripe: Sandbox) -> list[str]:
    return [row["identifier"] for row in stripe.ledger(limit=None)]


def test_where_no_letter_was_ever_written_there_is_nothing_to_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METER_AGENT_DEAD_LETTER_FILE", str(tmp_path / "none.jsonl"))
    status, plan, talk = resend("--yes")
    assert (status, "there is no" in talk) == (0, True)
    assert plan == {"to_send": {}, "may_bill_twice": 0, "stay": {}, "unread": 0}


def test_a_letter_goes_out_as_it_was_and_is_noted(file: Path, stripe: Sandbox) -> None:
    written = letter("event-1", "1.50", payload={"region": "eu"}, age_seconds=3 * DAY)
    write(file, written)
    before = file.read_bytes()
    status, report, _ = resend("--yes", file)
    assert status == 0
    assert report["delivered"] == 1
    (row,) = stripe.ledger()
    assert (row["identifier"], row["value"]) == ("event-1", "1.5")
    assert row["timestamp"] == written.event["timestamp"]
    assert row["payload"] == written.event["payload"]
    assert states(file) == [State.DELIVERED]
    assert file.read_bytes() == before


def test_what_was_sent_is_not_sent_a_second_time(file: Path, stripe: Sandbox) -> None:
    write(file, *(letter(f"event-{n}") for n in range(250)))
    assert resend("--yes", file)[0] == 0
    write(file, letter("event-new"))
    status, report, _ = resend("--yes", file)
    assert (status, report["delivered"], report["stay"]) == (0, 1, {"sent_before": 250})
    assert sorted(identifiers(stripe)) == sorted([*(f"event-{n}" for n in range(250)), "event-new"])
    assert stripe.totals()["duplicates"] == 0
    listed = run("dead-letters", "ls", "--line", "1", file).stdout
    assert " delivered " in listed


def test_letters_that_were_moved_to_another_file_keep_their_state(
    file: Path, stripe: Sandbox
) -> None:
    write(file, letter("event-1"), letter("event-2"))
    resend("--yes", "--identifier", "event-2", file)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(reversed(lines)))
    assert states(file) == [State.DELIVERED, None]


def test_without_a_word_it_says_what_it_would_do_and_sends_nothing(
    file: Path, stripe: Sandbox
) -> None:
    write(file, letter("event-1"), letter("event-2", reason="uncertain"), invalid())
    status, plan, talk = resend(file)
    assert status == 2
    assert plan["to_send"] == {"rejected": 1}
    assert plan["stay"] == {"uncertain": 1, "invalid": 1}
    assert talk.splitlines() == [
        "1 letter to be sent: 1 rejected",
        "1 stay: they are uncertain, Stripe may have them: --uncertain sends them all the same",
        "1 stay: they are invalid: mend what is wrong and record them again",
        "nothing was sent: say --yes to send",
    ]
    assert identifiers(stripe) == []
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(("answer", "status", "sent"), [("y", 0, ["event-1"]), ("n", 2, [])])
def test_on_a_terminal_it_asks(
    file: Path, stripe: Sandbox, answer: str, status: int, sent: list[str]
) -> None:
    write(file, letter("event-1"))
    main, terminal = pty.openpty()
    try:
        with subprocess.Popen(
            command("dead-letters", "resend", file),
            stdin=terminal,
            stdout=subprocess.DEVNULL,
            stderr=terminal,
        ) as process:
            talk = b""
            while b"send them? [y/N]" not in talk:
                talk += os.read(main, 1000)
            os.write(main, answer.encode() + b"\n")
            assert process.wait(PATIENCE_SECONDS) == status
    finally:
        os.close(terminal)
        os.close(main)
    assert b"1 letter to be sent" in talk
    assert identifiers(stripe) == sent


def test_dropped_events_are_sent_under_the_identifiers_of_their_letters(
    file: Path, stripe: Sandbox
) -> None:
    agent = MeterAgent(dead_letter_file=file, buffer_events=3, flush_interval_seconds=60.0)
    stripe.add_fault(Fault("status", status=503))
    held = [agent.record("tokens", "cus_1", n) for n in range(1, 10)]
    final = agent.close(0)
    stripe.clear_faults()
    dropped = final.dropped["overflow"] + final.dropped.get("shutdown", 0)
    assert dropped + final.uncertain == len(held)
    status, report, _ = resend("--yes", "--reason", "dropped", file)
    assert (status, report["delivered"]) == (0, dropped)
    letters = [json.loads(line) for line in file.read_text().splitlines()]
    sent = [letter["event"] for letter in letters if letter["reason"] == "dropped"]
    assert identifiers(stripe) == [event["identifier"] for event in sent]
    again, report, _ = resend("--yes", "--reason", "dropped", file)
    assert (again, stripe.totals()["accepted"]) == (0, dropped)


def test_what_could_not_be_sent_again_does_not_become_a_second_letter(
    file: Path, stripe: Sandbox
) -> None:
    write(file, letter("event-1", reason="dropped", attempted_seconds_ago=None))
    before = file.read_bytes()
    stripe.add_fault(Fault("status", status=503, on="session"))
    status, _, _ = resend("--yes", "--patience", "0.3", file)
    assert status != 0
    assert file.read_bytes() == before


def test_uncertain_letters_want_a_word_of_their_own(file: Path, stripe: Sandbox) -> None:
    write(
        file,
        letter("event-1", reason="uncertain"),
        letter("event-2", reason="uncertain", attempted_seconds_ago=2 * DAY),
    )
    status, report, _ = resend("--yes", file)
    assert (status, report["stay"]) == (3, {"uncertain": 2})
    status, report, talk = resend("--yes", "--uncertain", file)
    assert (status, report["delivered"]) == (0, 2)
    assert "1 of them were sent more than 24 hours ago" in talk
    assert sorted(identifiers(stripe)) == ["event-1", "event-2"]


def test_what_stripe_has_is_deduplicated_by_the_identifier(file: Path, stripe: Sandbox) -> None:
    write(file, letter("event-1", 5))
    resend("--yes", file)
    write(file, letter("event-1", 5, reason="uncertain"))
    status, report, _ = resend("--yes", "--uncertain", file)
    assert (status, report["delivered"]) == (0, 1)
    assert stripe.totals()["totals"] == {"tokens": {"cus_1": "5"}}


def test_what_cannot_be_sent_as_it_is_is_told_and_stays(file: Path, stripe: Sandbox) -> None:
    strange = letter("event-5")
    write(
        file,
        invalid(),
        letter("event-2", reason="too_old"),
        letter("event-3", age_seconds=36 * DAY),
    )
    with file.open("a") as end:
        document = json.loads(strange.to_json())
        document["event"]["unit"] = "a field that an agent does not send"
        end.write(json.dumps(document) + "\n")
        del document["event"]["unit"]
        document["event"]["payload"] = {"other_customer": "cus_1", "value": "1"}
        end.write(json.dumps(document) + "\n")
        document["event"] = {"note": "mended by hand"}
        end.write(json.dumps(document) + "\n")
    status, report, _ = resend("--yes", file)
    assert status == 3
    assert report["stay"] == {"invalid": 1, "too_old": 2, "other": 3}
    assert identifiers(stripe) == []


def test_what_is_refused_again_is_a_new_letter_and_the_old_one_is_done(
    file: Path, stripe: Sandbox
) -> None:
    stripe.add_fault(Fault("poison", match={"identifier": "event-2"}))
    write(file, letter("event-1"), letter("event-2"), letter("event-3"))
    status, report, _ = resend("--yes", file)
    assert (status, report["delivered"], report["failed"]) == (3, 2, 1)
    assert states(file) == [State.DELIVERED, State.FAILED, State.DELIVERED, None]
    stripe.clear_faults()
    assert resend("--yes", file)[:2] == (
        0,
        {
            "delivered": 1,
            "failed": 0,
            "not_sent": 0,
            "unknown": 0,
            "ended": "done",
            "stay": {"sent_before": 3},
        },
    )
    assert sorted(identifiers(stripe)) == ["event-1", "event-2", "event-3"]


def test_the_same_letter_twice_in_the_file_is_sent_once(file: Path, stripe: Sandbox) -> None:
    twice = letter("event-1")
    write(file, twice, letter("event-2"), twice)
    status, report, _ = resend("--yes", file)
    assert (status, report["delivered"]) == (0, 2)
    assert stripe.totals()["duplicates"] == 0


def test_nobody_at_the_address_ends_it_with_5_and_all_can_be_sent_later(
    file: Path, stripe: Sandbox
) -> None:
    write(file, letter("event-1"), letter("event-2"))
    status, report, talk = resend(
        "--yes", file, "--sandbox-url", "http://127.0.0.1:9", "--patience", "0.3"
    )
    assert (status, report["not_sent"]) == (5, 2)
    assert "run it again to go on" in talk
    assert states(file) == [State.NOT_SENT, State.NOT_SENT]
    assert resend("--yes", file)[0] == 0
    assert len(identifiers(stripe)) == 2


def test_a_refused_key_ends_it_with_4(file: Path) -> None:
    write(file, letter("event-1"))
    with SandboxServer(Sandbox(api_keys={"sk_test_another"})) as server:
        status, report, _ = resend("--yes", file, "--sandbox-url", server.url)
    assert (status, report["not_sent"]) == (4, 1)


def test_ctrl_c_while_an_answer_is_outstanding_leaves_an_uncertain_letter(
    file: Path, stripe: Sandbox
) -> None:
    stripe.add_fault(Fault("hang", accept=True))
    write(file, letter("event-1"))
    with started("dead-letters", "resend", "--yes", file) as process:
        while not stripe.ledger():
            pass
        process.send_signal(signal.SIGINT)
        output, talk = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in talk
    assert output == "0 delivered, 1 failed again, 0 not sent, 0 unknown\n"
    assert states(file) == [State.FAILED, None]
    stripe.clear_faults()
    assert resend("--yes", file)[1]["stay"] == {"sent_before": 1, "uncertain": 1}
    assert resend("--yes", "--uncertain", file)[0] == 0
    assert stripe.totals()["totals"] == {"tokens": {"cus_1": "1"}}


def test_what_was_killed_in_the_middle_wants_the_word_for_uncertain_ones(
    file: Path, stripe: Sandbox
) -> None:
    stripe.add_fault(Fault("hang", accept=True))
    write(file, letter("event-1"))
    with started("dead-letters", "resend", "--yes", file) as process:
        while not stripe.ledger():
            pass
        process.kill()
    assert states(file) == [State.SENDING]
    stripe.clear_faults()
    status, report, _ = resend("--yes", file)
    assert (status, report["stay"]) == (3, {"half_sent": 1})
    assert resend("--yes", "--uncertain", file)[0] == 0
    assert stripe.totals()["totals"] == {"tokens": {"cus_1": "1"}}


def test_letters_that_were_sent_and_cannot_be_noted_are_told_as_such(
    file: Path, stripe: Sandbox
) -> None:
    # The first note fits, and the one about their end does not.
    write(file, *[letter(f"event-{n}") for n in range(5)])
    script = 'trap "" XFSZ; ulimit -f 1; "$@"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command("dead-letters", "resend", file, "--yes", "--json")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert len(identifiers(stripe)) == 5
    assert done.returncode == 3
    assert json.loads(done.stdout)["delivered"] == 0
    assert "Traceback" not in done.stderr
    assert states(file) == [State.SENDING] * 5


def test_only_one_process_sends_the_letters_of_a_file(file: Path, stripe: Sandbox) -> None:
    stripe.add_fault(Fault("hang"))
    write(file, letter("event-1"))
    with started("dead-letters", "resend", "--yes", file) as process:
        assert first_line(process, process.stderr) == "1 letter to be sent: 1 rejected"
        while not stripe.requests:
            pass
        outcome = run("dead-letters", "resend", "--yes", "--uncertain", file)
    assert outcome.returncode == 2
    assert "being sent by another process" in outcome.stderr


def test_the_spool_of_the_environment_is_left_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METER_AGENT_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("METER_AGENT_STRICT", "true")
    monkeypatch.setenv("METER_AGENT_BUFFER_EVENTS", "1")
    write(file, *(letter(f"event-{n}") for n in range(150)))
    assert resend("--yes", file)[0] == 0
    assert not (tmp_path / "spool").exists()


def test_a_half_line_in_the_notes_costs_nothing_but_itself(file: Path, stripe: Sandbox) -> None:
    write(file, letter("event-1"), letter("event-2"))
    resend("--yes", "--identifier", "event-1", file)
    resent = Resent(file)
    with resent.path.open("a") as end:
        end.write('{"letter": "00')
    _, second = Letters(file, Choice())
    with resent:
        resent.note([second], State.SENDING)
    assert states(file) == [State.DELIVERED, State.SENDING]


def test_notes_that_cannot_be_written_send_nothing(file: Path, stripe: Sandbox) -> None:
    write(file, letter("event-1"))
    Resent(file).path.mkdir()
    outcome = run("dead-letters", "resend", "--yes", file)
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines()[-1].endswith("Is a directory")
    assert identifiers(stripe) == []


def test_a_disabled_agent_cannot_resend(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METER_AGENT_DISABLED", "1")
    write(file, letter("event-1"))
    outcome = run("dead-letters", "resend", "--yes", file)
    assert outcome.returncode == 2
    assert "METER_AGENT_DISABLED is on" in outcome.stderr
