"""The directory of the spool is removed under a running agent: what is mapped is written anew."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from meter_agent._health import Problem
from meter_agent._ledger import Outcome
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent, wait_until
from tests.spool.spools import (
    MEBIBYTE,
    Spool,
    as_version_1,
    heir_of,
    left_by_a_dead_process,
    segments,
    take,
    take_all,
    values,
)
from tests.virtual import VirtualRuntime


def test_what_waits_and_what_is_on_its_way_keeps_identifier_and_mark_in_a_new_file(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    path = tmp_path / "spool"
    spool = Spool(path, runtime)
    for n in range(300):
        assert spool.record("tokens", "cus_1", n)
    ended, uncertain = take(spool.buffer), take(spool.buffer)
    assert spool.buffer.begin_attempt(uncertain, uncertain.open)
    shutil.rmtree(path)
    runtime.advance(31.0)
    spool.buffer.tend()
    assert len(segments(path)) == 2
    assert spool.buffer.problems().keys() == {Problem.SPOOL_DELETED}
    # What happens from now on is in the new files.
    assert spool.buffer.settle(ended, ended.open, Outcome.DELIVERED)
    assert spool.record("tokens", "cus_1", 300)
    identifiers = {event.identifier for event in uncertain.open}
    spool.die()
    heir = heir_of(path, runtime)
    again = take(heir.buffer)
    assert {event.identifier for event in again.open} == identifiers
    assert len(again.attempted) == 100
    assert heir.buffer.settle(again, again.open, Outcome.DELIVERED)
    assert values(take_all(heir.buffer)) == list(range(200, 301))
    assert segments(path) == []
    runtime.advance(601.0)
    assert spool.buffer.problems() == {}


@pytest.mark.parametrize("version", [1, 2])
def test_what_was_recovered_is_written_anew_too(
    tmp_path: Path, runtime: VirtualRuntime, version: int
) -> None:
    path = tmp_path / "spool"
    segment = left_by_a_dead_process(path, runtime)
    if version == 1:
        as_version_1(segment)
    heir = heir_of(path, runtime)
    shutil.rmtree(path)
    runtime.advance(31.0)
    heir.buffer.tend()
    heir.die()
    again = heir_of(path, runtime)
    assert values(take_all(again.buffer)) == list(range(10))
    assert segments(path) == []


def test_events_survive_an_outage_in_which_the_directory_is_removed_and_the_agent_ends(
    make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "spool"
    sandbox.add_fault(Fault("status", status=503))
    agent = make_agent(spool_dir=path)
    for _ in range(600):
        assert agent.record("tokens", "cus_1", 1)
    assert wait_until(agent, lambda: agent.stats().retries > 0)
    shutil.rmtree(path)
    for _ in range(600):
        assert agent.record("tokens", "cus_1", 1)
    final = agent.close(0)
    assert final.balanced
    assert (final.buffered, dict(final.dropped), final.uncertain) == (1200, {}, 0)
    sandbox.clear_faults()
    heir = make_agent(spool_dir=path)
    assert wait_until(heir, lambda: heir.stats().delivered == 1200)
    assert heir.close(20).recovered == 1200
    assert set(Counter(row["identifier"] for row in sandbox.ledger(limit=None)).values()) == {1}


def test_what_cannot_be_written_anew_stays_mapped_and_is_tried_again(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    path = tmp_path / "spool"
    spool = Spool(path, runtime, bytes_max=MEBIBYTE)
    for n in range(10):
        assert spool.record("tokens", "cus_1", n)
    shutil.rmtree(path)
    path.write_text("in its place")
    for _ in range(2):
        runtime.advance(31.0)
        spool.buffer.tend()
        assert Problem.SPOOL_DELETED in spool.buffer.problems()
        assert len(spool.buffer) == 10
    path.unlink()
    runtime.advance(31.0)
    spool.buffer.tend()
    spool.die()
    assert values(take_all(heir_of(path, runtime).buffer)) == list(range(10))


def test_what_was_moved_away_is_not_written_a_second_time(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    path, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    spool = Spool(path, runtime)
    for n in range(10):
        assert spool.record("tokens", "cus_1", n)
    path.rename(elsewhere)
    runtime.advance(31.0)
    spool.buffer.tend()
    spool.die()
    assert values(take_all(heir_of(elsewhere, runtime).buffer)) == list(range(10))
    assert take_all(heir_of(path, runtime).buffer) == {}
