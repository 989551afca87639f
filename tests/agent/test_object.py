"""An agent is a good object: collected, copied, printed, subclassed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import json
import pickle
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

import meter_agent
from meter_agent import (
    Config,
    Health,
    MeterAgent,
    Stats,
    _lifecycle,
)
from meter_agent._agent import build
from meter_agent.sandbox import Sandbox, SandboxAdapter
from meter_agent.testing import recording
from tests.conftest import FAST, MakeAgent, sender_threads


def test_an_agent_that_is_collected_sends_what_it_holds_and_leaves_nothing(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = build(
        Config(**(FAST | {"flush_interval_seconds": 60.0})),
        open_adapter=lambda: SandboxAdapter(sandbox),
    )
    agent.record("tokens", "cus_1")
    (thread,) = sender_threads()[-1:]
    reference = weakref.ref(agent)
    del agent
    gc.collect()
    assert reference() is None
    thread.join(20)
    assert sandbox.totals()["accepted"] == 1
    assert not _lifecycle._state.pipelines


def test_a_thousand_agents_leave_no_hook_thread_or_reference_behind() -> None:
    threads = threading.active_count()
    references = []
    for _ in range(1000):
        agent = MeterAgent(Config(**FAST))
        references.append(weakref.ref(agent))
        agent.close()
    del agent
    gc.collect()
    assert not any(reference() for reference in references)
    assert threading.active_count() == threads
    assert not _lifecycle._state.pipelines


def test_who_keeps_only_the_record_method_keeps_the_agent(
    sandbox: Sandbox, make_agent: MakeAgent
) -> None:
    record = build(Config(**FAST), open_adapter=lambda: SandboxAdapter(sandbox)).record
    gc.collect()
    assert record("tokens", "cus_1")


def test_a_subclass_may_extend_record(sandbox: Sandbox) -> None:
    class Counting(MeterAgent):
        calls = 0

        def record(self, *event: Any, **options: Any) -> bool:
            self.calls += 1
            return super().record(*event, **options)

    agent = Counting(Config(disabled=True))
    assert not agent.record("tokens", "cus_1")
    assert agent.calls == 1
    assert agent.stats().dropped == {"disabled": 1}


def test_stats_can_be_copied_and_pickled(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.record("tokens", "cus_1")
    agent.close(20)
    stats = agent.stats()
    assert pickle.loads(pickle.dumps(stats)) == copy.deepcopy(stats) == stats
    assert stats.last_success_at is not None
    assert stats.oldest_event_age_seconds is None


def test_the_repr_shows_the_ledger(make_agent: MakeAgent) -> None:
    agent = make_agent(flush_interval_seconds=60.0)
    agent.record("tokens", "cus_1")
    assert repr(agent) == "<MeterAgent recorded=1 delivered=0 buffered=1 in_flight=0>"
    assert agent.stats().oldest_event_age_seconds is not None


def test_an_event_is_sent_although_its_agent_was_retired_while_it_was_recorded(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent()
    agent._pipeline.retire()
    assert agent._pipeline not in _lifecycle._state.pipelines
    assert agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert sandbox.totals()["accepted"] == 1


@pytest.mark.parametrize("kind", ["memory", "spool", "strict", "default", "testing"])
def test_a_wrong_call_of_record_is_named_so(kind: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        record: Any = meter_agent.record
        if kind == "testing":
            stack.enter_context(recording())
            record = meter_agent.get_agent().record
        elif kind != "default":
            spool_dir = tmp_path if kind == "spool" else None
            agent = MeterAgent(Config(**FAST), spool_dir=spool_dir, strict=kind == "strict")
            record = stack.enter_context(agent).record
        for arguments, options, said in (
            ((), {}, "2 required positional arguments: 'event_name' and 'customer_id'"),
            (("tokens",), {}, "1 required positional argument: 'customer_id'"),
            (("tokens", "cus_1", 1, 2), {}, "takes from 2 to 3 positional arguments but 4"),
            (("tokens", "cus_1"), {"identifer": "x"}, "unexpected keyword argument 'identifer'"),
        ):
            with pytest.raises(TypeError, match=rf"^record\(\) .*{said}"):
                record(*arguments, **options)


def test_statistics_and_health_cannot_be_changed_and_can_be_hashed() -> None:
    given = {"overflow": 1}
    stats, health = Stats(dropped=given), Health(problems={"closed": "it is"})
    given["overflow"] = 2
    changed: Any
    for value, changed in ((stats, stats.dropped), (health, health.problems)):
        with pytest.raises(TypeError, match="cannot be changed"):
            changed["overflow"] = 5
        assert hash(value) == hash(copy.deepcopy(value)) == hash(pickle.loads(pickle.dumps(value)))
    assert stats.dropped == {"overflow": 1}
    assert json.loads(json.dumps(dataclasses.asdict(stats)))["dropped"] == {"overflow": 1}
    assert hash(Stats()) == hash(Stats())
