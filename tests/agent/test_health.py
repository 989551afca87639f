"""What health endpoints are told, and what no probe may act on."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import meter_agent
from meter_agent import Health, MeterAgentError
from meter_agent._health import NEARLY_FULL, OLD_EVENT_SECONDS, Problem
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent
from tests.docs.test_docs import reference
from tests.virtual import ShiftedRuntime, VirtualRuntime

WELL = Health(alive=True, ready=True, problems={})


class Failure:
    """An *on_error* that can be waited for."""

    def __init__(self) -> None:
        self._told = threading.Event()

    def __call__(self, _error: MeterAgentError) -> None:
        self._told.set()

    def wait(self) -> None:
        assert self._told.wait(20)


def test_an_agent_that_has_done_nothing_or_has_delivered_is_well(make_agent: MakeAgent) -> None:
    agent = make_agent()
    assert agent.health() == WELL
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert agent.health() == WELL


def test_the_health_of_the_default_agent_is_that_of_the_agent_and_builds_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert meter_agent.health() == WELL
    assert meter_agent._default._default.agent is None
    agent = meter_agent.configure(sandbox_url="http://127.0.0.1:1")
    agent.close()
    assert meter_agent.health() == agent.health() != WELL


@pytest.mark.parametrize(
    ("fault", "problem", "words"),
    [
        (Fault("status", status=503), Problem.REQUESTS_FAIL, "503"),
        (Fault("reset"), Problem.REQUESTS_FAIL, "127.0.0.1"),
        (Fault("status", on="session", status=401), Problem.KEY_REFUSED, "401"),
        (Fault("status", on="any", status=403), Problem.KEY_REFUSED, "403"),
    ],
)
def test_a_failing_stripe_degrades_until_it_is_well_again_and_kills_no_service(
    make_agent: MakeAgent, sandbox: Sandbox, fault: Fault, problem: Problem, words: str
) -> None:
    sandbox.add_fault(fault)
    failure = Failure()
    agent = make_agent(on_error=failure)
    agent.record("tokens", "cus_1")
    failure.wait()
    health = agent.health()
    assert (health.alive, health.ready, health.degraded) == (True, True, True)
    assert list(health.problems) == [problem]
    assert words in health.problems[problem]
    sandbox.clear_faults()
    assert agent.flush(20)
    assert agent.health() == WELL


def test_an_event_that_waits_too_long_is_a_problem_and_no_reason_to_restart(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("status", status=503))
    runtime, failure = ShiftedRuntime(), Failure()
    agent = make_agent(runtime=runtime, on_error=failure)
    agent.record("tokens", "cus_1")
    failure.wait()
    assert Problem.OLD_EVENTS not in agent.health().problems
    runtime.advance(OLD_EVENT_SECONDS + 1)
    health = agent.health()
    assert Problem.OLD_EVENTS in health.problems
    assert (health.alive, health.ready) == (True, True)


def test_a_buffer_is_nearly_full_above_its_mark_and_not_at_it(
    make_agent: MakeAgent, runtime: VirtualRuntime
) -> None:
    agent = make_agent(runtime=runtime, buffer_events=10)
    for _ in range(int(10 * NEARLY_FULL)):
        assert agent.record("tokens", "cus_1")
    assert agent.health() == WELL
    assert agent.record("tokens", "cus_1")
    health = agent.health()
    assert health.problems == {"nearly_full": "the buffer is 90% full"}
    assert (health.alive, health.ready) == (True, True)


def test_a_spool_is_nearly_full_by_the_bytes_of_all_processes(
    make_agent: MakeAgent, runtime: VirtualRuntime, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"spool_dir": tmp_path, "spool_bytes": 1024 * 1024}
    agent, other = (make_agent(runtime=runtime, **settings) for _ in range(2))
    assert other.health() == WELL
    while agent.record("tokens", "cus_1"):
        pass
    assert "the spool is" in other.health().problems["nearly_full"]


def test_a_spool_that_cannot_be_written_is_a_problem_until_it_is_mended(
    make_agent: MakeAgent, runtime: VirtualRuntime, tmp_path: Path
) -> None:
    tmp_path.chmod(0o770)
    agent = make_agent(runtime=runtime, spool_dir=tmp_path)
    agent.record("tokens", "cus_1")
    assert list(agent.health().problems) == ["spool_fails"]
    runtime.advance(6.0)
    assert list(agent.health().problems) == ["spool_fails"]  # the event is still in memory
    tmp_path.chmod(0o700)
    agent._pipeline._buffer.tend()
    assert agent.health() == WELL


def test_a_spool_that_is_gone_is_no_error_of_the_health_endpoint(
    make_agent: MakeAgent, runtime: VirtualRuntime, tmp_path: Path
) -> None:
    agent = make_agent(runtime=runtime, spool_dir=tmp_path / "not" / "there")
    assert agent.health() == WELL


def test_a_closed_agent_is_not_ready_but_its_process_may_end_in_peace(
    make_agent: MakeAgent,
) -> None:
    agent = make_agent()
    agent.close()
    health = agent.health()
    assert (health.alive, health.ready, list(health.problems)) == (True, False, ["closed"])


def test_an_agent_that_is_disabled_on_purpose_is_well(make_agent: MakeAgent) -> None:
    agent = make_agent(disabled=True)
    assert not agent.record("tokens", "cus_1")
    assert agent.health() == WELL


def test_a_default_agent_without_a_key_is_alive_and_not_ready() -> None:
    assert not meter_agent.record("tokens", "cus_1")
    health = meter_agent.health()
    assert (health.alive, health.ready, list(health.problems)) == (True, False, ["not_configured"])


def test_an_agent_that_can_start_no_thread_is_dead_while_events_wait(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent()

    def refuse(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(agent._runtime, "start_thread", refuse)
        agent.record("tokens", "cus_1")
        health = agent.health()
        assert not health.alive
        assert health.problems == {"nobody_sends": "1 events wait, and no thread can send"}
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert agent.health() == WELL


def test_an_agent_whose_senders_die_one_after_the_other_is_dead_while_events_wait(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent = make_agent()
    flusher = agent._pipeline._flusher
    deaths = threading.Semaphore(0)
    tell, open_work = flusher._on_death, flusher._open_work

    def die() -> Any:
        raise MemoryError("injected")

    def told(error: BaseException) -> None:
        tell(error)
        deaths.release()

    monkeypatch.setattr(flusher, "_open_work", die)
    monkeypatch.setattr(flusher, "_on_death", told)
    agent.record("tokens", "cus_1")
    for _ in range(2):
        assert deaths.acquire(timeout=20)
    assert not agent.health().alive
    monkeypatch.setattr(flusher, "_open_work", open_work)
    assert agent.flush(20)
    assert agent.health() == WELL


def test_one_death_of_a_sender_is_mended_and_no_sign_of_illness(
    make_agent: MakeAgent, runtime: VirtualRuntime
) -> None:
    agent = make_agent(runtime=runtime)
    agent.record("tokens", "cus_1")
    agent._pipeline._flusher._deaths.add()
    assert agent.health() == WELL


def test_a_forked_child_does_not_inherit_the_illness_of_its_parent(
    make_agent: MakeAgent, runtime: VirtualRuntime
) -> None:
    agent = make_agent(runtime=runtime, buffer_events=1)
    agent.record("tokens", "cus_1")
    assert agent.health().degraded
    runtime.pid += 1
    assert agent.health() == WELL


def test_what_an_endpoint_answers_is_json(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.close()
    assert json.loads(json.dumps(agent.health().as_dict())) == {
        "alive": True,
        "ready": False,
        "degraded": True,
        "problems": {"closed": "the agent was closed, and what is recorded now is dropped"},
    }


@pytest.mark.parametrize("problem", Problem)
def test_every_problem_is_documented(problem: Problem) -> None:
    assert f"| `{problem.value}` |" in reference("health.md")
