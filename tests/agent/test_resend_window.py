"""What Stripe may have, and what nobody may send again any more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meter_agent import DeadLetter, MeterAgentError
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent, wait_until
from tests.virtual import ShiftedRuntime

WINDOW_SECONDS = 23 * 3600.0


def sent(sandbox: Sandbox) -> list[str]:
    return [name for request in sandbox.requests for name in request.identifiers]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=500, accept=True),
        Fault("status", status=503),
        Fault("reset", when="after"),
        Fault("truncate"),
    ],
    ids=["taken in, answered 500", "503", "lost acknowledgement", "half an answer"],
)
def test_an_event_that_may_have_arrived_goes_to_the_file_after_the_window_and_never_out_again(
    make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path, fault: Fault
) -> None:
    runtime = ShiftedRuntime()
    letters: list[DeadLetter] = []
    path = tmp_path / "letters.jsonl"
    failures: list[MeterAgentError] = []
    in_time: list[str] = []

    def on_error(error: MeterAgentError) -> None:
        failures.append(error)
        if len(failures) == 3:
            in_time.extend(sent(sandbox))
            runtime.advance(WINDOW_SECONDS)

    agent = make_agent(
        runtime=runtime,
        on_error=on_error,
        on_dead_letter=letters.append,
        dead_letter_file=str(path),
        resend_window_seconds=WINDOW_SECONDS,
    )
    sandbox.add_fault(fault)
    agent.record("tokens", "cus_1", 5, identifier="doubtful")
    assert agent.flush(2 * WINDOW_SECONDS)
    assert len(in_time) >= 3
    assert sent(sandbox) == in_time
    sandbox.clear_faults()
    sandbox.advance(WINDOW_SECONDS)
    agent.record("tokens", "cus_1", 7, identifier="sure")
    final = agent.close(20)
    assert sent(sandbox) == [*in_time, "sure"]
    assert (final.uncertain, final.delivered, final.balanced) == (1, 1, True)
    (line,) = [json.loads(text) for text in path.read_text().splitlines()]
    assert (line["reason"], line["uncertain"]) == ("uncertain", True)
    assert line["event"]["identifier"] == "doubtful"
    assert line["attempted_at"] is not None
    assert [letter.uncertain for letter in letters] == [True]


def test_an_event_that_surely_did_not_arrive_is_still_sent_after_the_window(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    runtime = ShiftedRuntime()

    def on_error(_error: MeterAgentError) -> None:
        runtime.advance(WINDOW_SECONDS)
        sandbox.advance(WINDOW_SECONDS)

    sandbox.add_fault(Fault("status", status=429, times=2))
    agent = make_agent(runtime=runtime, on_error=on_error)
    agent.record("tokens", "cus_1", 5)
    assert agent.flush(4 * WINDOW_SECONDS)  # on the clock that is set ahead while it waits
    assert (agent.stats().delivered, agent.stats().uncertain) == (1, 0)
    assert sandbox.totals()["accepted"] == 1


def test_the_next_process_does_not_take_a_refusal_for_plain_when_the_last_one_had_no_answer(
    make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path
) -> None:
    letters: list[DeadLetter] = []
    spool = str(tmp_path / "spool")
    sandbox.add_fault(Fault("status", status=504, accept=True))
    agent = make_agent(spool_dir=spool)
    agent.record("tokens", "cus_1", 7, identifier="billed")
    assert wait_until(agent, lambda: agent.stats().retries > 0)
    assert agent.close(0).buffered == 1
    sandbox.clear_faults()
    sandbox.add_fault(Fault("status", status=400, code="archived_meter"))
    later = make_agent(spool_dir=spool, on_dead_letter=letters.append)
    later.record("tokens", "cus_1", 3, identifier="not billed")
    assert wait_until(later, lambda: len(letters) == 2)
    later.close(20)
    assert {letter.event["identifier"]: letter.reason for letter in letters} == {
        "billed": "uncertain",
        "not billed": "rejected",
    }
