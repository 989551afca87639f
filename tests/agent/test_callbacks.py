"""Callbacks of the application may do what they like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import meter_agent
from meter_agent import Config, ConfigError, DeadLetter, MeterAgent, MeterAgentError, _lifecycle
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent, billed, sender_threads, wait_until
from tests.log_lines import events_of


@pytest.mark.parametrize("raised", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_a_callback_that_raises_harms_nobody(
    make_agent: MakeAgent,
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    raised: BaseException,
) -> None:
    calls: list[object] = []

    def fail(argument: object) -> None:
        calls.append(argument)
        raise raised

    sandbox.add_fault(Fault("status", status=503, times=1))
    agent = make_agent(on_dead_letter=fail, on_error=fail)
    agent.record("tokens", "cus_1", True)
    agent.record("tokens", "cus_1", 1)
    assert agent.flush(20)
    assert (agent.stats().delivered, agent.stats().dead_lettered) == (1, 1)
    assert len(calls) == 2
    assert "meter_agent.callback_failed" in events_of(caplog)
    assert "meter_agent.sender_died" not in events_of(caplog)


async def nobody_awaits(*_arguments: object) -> None: ...


@pytest.mark.parametrize("name", ["on_dead_letter", "on_error", "on_drop"])
@pytest.mark.parametrize("callback", [nobody_awaits, 5, "print"])
@pytest.mark.parametrize("make", [MeterAgent, meter_agent.configure])
def test_a_callback_that_would_never_run_is_refused_where_the_agent_is_built(
    make: Callable[..., MeterAgent], callback: object, name: str
) -> None:
    callbacks: dict[str, Any] = {name: callback}
    with pytest.raises(ConfigError, match=f"{name}=.*: must be a function"):
        make(sandbox_url="http://127.0.0.1:9", **callbacks)


@pytest.mark.parametrize("config", [{"api_key": "rk_live_12345678"}, "rk_live_12345678", Config])
@pytest.mark.parametrize("make", [MeterAgent, meter_agent.configure])
def test_settings_that_are_no_config_are_refused_without_showing_a_key(
    make: Callable[..., MeterAgent], config: Any
) -> None:
    with pytest.raises(ConfigError, match="must be a Config") as caught:
        make(config)
    assert "12345678" not in str(caught.value)


def test_a_callback_may_record_flush_and_close(make_agent: MakeAgent, sandbox: Sandbox) -> None:
    agent: MeterAgent
    seen: list[object] = []

    def on_dead_letter(letter: DeadLetter) -> None:
        seen.append(agent.record("letters", "cus_1"))
        seen.append(agent.flush(20))
        seen.append(agent.close(20))

    agent = make_agent(on_dead_letter=on_dead_letter)
    agent.record("tokens", "cus_1", True)
    agent.flush(20)
    final = agent.close(20)
    assert seen[0] is True
    assert seen[1] is False, "flush() in a sender thread does not wait for itself"
    assert final.dead_lettered == 1
    assert final.delivered == 1
    assert billed(sandbox) == {"letters": {"cus_1": "1"}}


def test_a_callback_that_closes_at_every_failure_makes_no_storm(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent: MeterAgent

    def on_error(_error: MeterAgentError) -> None:
        agent.close(0.3)

    sandbox.add_fault(Fault("status", status=503))
    agent = make_agent(on_error=on_error, retry_base_seconds=0.5, retry_max_seconds=30.0)
    agent.record("tokens", "cus_1")
    assert wait_until(agent, lambda: agent.stats().requests > 0)
    assert not agent.flush()
    assert len(sandbox.requests) < 20
    assert agent.close(0.1).uncertain == 1


def test_an_agent_closed_by_a_callback_ends_its_threads(make_agent: MakeAgent) -> None:
    agent: MeterAgent
    agent = make_agent(on_dead_letter=lambda _letter: agent.close(20))
    agent.record("tokens", "cus_1", True)
    assert agent.flush(20)
    for thread in sender_threads():
        thread.join(20)
    assert not sender_threads()
    assert agent._pipeline not in _lifecycle._state.pipelines


def leave(_agent: MeterAgent) -> None:
    raise SystemExit(3)


ACTIONS: dict[str, Callable[[MeterAgent], object]] = {
    "raises": leave,
    "records": lambda agent: agent.record("from_callback", "cus_1"),
    "flushes": lambda agent: agent.flush(20),
    "closes": lambda agent: agent.close(20),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("callback", ["on_dead_letter", "on_error"])
def test_whatever_a_callback_does_each_letter_is_told_once_and_every_other_event_is_billed(
    make_agent: MakeAgent, sandbox: Sandbox, callback: str, action: str
) -> None:
    agent: MeterAgent
    letters: Counter[str] = Counter()

    def on_dead_letter(letter: DeadLetter) -> None:
        letters[letter.event["identifier"]] += 1
        if callback == "on_dead_letter":
            ACTIONS[action](agent)

    def on_error(_error: MeterAgentError) -> None:
        if callback == "on_error":
            ACTIONS[action](agent)

    sandbox.add_fault(Fault("poison", match={"customer": "cus_bad"}))
    # Not an ambiguous answer, behind which nothing becomes a plain dead letter.
    sandbox.add_fault(Fault("status", status=429, times=2))
    agent = make_agent(on_dead_letter=on_dead_letter, on_error=on_error, max_in_flight=2)
    for n in range(100):
        agent.record("tokens", "cus_bad" if n % 10 == 5 else "cus_good", identifier=f"id-{n}")
    assert agent.flush(20)
    final = agent.close(20)
    assert letters == {f"id-{n}": 1 for n in range(5, 100, 10)}
    assert billed(sandbox)["tokens"] == {"cus_good": "90"}
    assert (final.dead_lettered, final.dropped_total, final.uncertain) == (10, 0, 0)
    assert final.balanced
    calls = 10 if callback == "on_dead_letter" else 2
    assert final.recorded == 100 + (calls if action == "records" else 0)
    assert final.delivered == final.recorded - 10
