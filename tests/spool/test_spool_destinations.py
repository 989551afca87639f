"""Events are sent to the destination that they were recorded for, and to no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meter_agent import Config, ConfigError, MeterAgent
from meter_agent._connection import destination_in, open_stream
from meter_agent._destination import NOT_SAID, Destination, mode_of_key
from meter_agent._health import Problem
from meter_agent._ledger import Traffic
from meter_agent.sandbox import Sandbox
from tests.conftest import MakeAgent, wait_until
from tests.spool.spools import (
    Spool,
    as_version_1,
    heir_of,
    left_by_a_dead_process,
    segments,
    take_all,
    values,
)
from tests.virtual import VirtualRuntime

HERE = Destination("meter-events.stripe.com", "live", "acct_1", "ctx_1")
OTHERS = {
    "host": HERE._replace(host="127.0.0.1"),
    "mode": HERE._replace(mode="test"),
    "account": HERE._replace(account="acct_2"),
    "no account": HERE._replace(account=None),
    "context": HERE._replace(context="ctx_2"),
    "no context": HERE._replace(context=None),
}
ELSEWHERE = pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())


@ELSEWHERE
def test_each_agent_recovers_the_events_of_its_own_destination_alone(
    tmp_path: Path, runtime: VirtualRuntime, other: Destination
) -> None:
    left_by_a_dead_process(tmp_path, runtime, events=3, destination=HERE)
    left_by_a_dead_process(tmp_path, runtime, events=5, destination=other)
    assert len(take_all(heir_of(tmp_path, runtime, destination=HERE).buffer)) == 3
    assert len(take_all(heir_of(tmp_path, runtime, destination=other).buffer)) == 5
    assert segments(tmp_path) == []


@ELSEWHERE
def test_a_foreign_segment_is_left_as_it_is_said_once_and_a_problem_in_health(
    tmp_path: Path, runtime: VirtualRuntime, other: Destination
) -> None:
    segment = left_by_a_dead_process(tmp_path, runtime, destination=other)
    content = segment.read_bytes()
    heir = heir_of(tmp_path, runtime, destination=HERE)
    runtime.advance(31.0)
    heir.buffer.tend()
    assert heir.buffer.counts().recovered == 0
    assert segment.read_bytes() == content
    ((event, fields),) = heir.said
    assert event == "meter_agent.spool_file_left_alone"
    assert str(other) in fields["error"]
    assert str(HERE) in fields["error"]
    assert segment.name in heir.buffer.problems()[Problem.FOREIGN_EVENTS]
    take_all(heir_of(tmp_path, runtime, destination=other).buffer)
    runtime.advance(31.0)
    heir.buffer.tend()
    assert heir.buffer.problems() == {}


def test_two_agents_of_one_process_with_two_accounts_share_a_directory(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    other = OTHERS["account"]
    agents = [Spool(tmp_path, runtime, destination=each) for each in (HERE, other)]
    for n, agent in enumerate(agents):
        assert agent.record("tokens", "cus_1", n)
    for agent in agents:
        agent.die()
    heirs = [heir_of(tmp_path, runtime, destination=each) for each in (other, HERE)]
    assert [values(take_all(heir.buffer)) for heir in heirs] == [[1], [0]]


@pytest.mark.parametrize("mine", [HERE, HERE._replace(host="localhost", mode="test")])
def test_what_was_handed_over_without_host_and_mode_goes_where_its_account_and_context_are(
    tmp_path: Path, runtime: VirtualRuntime, mine: Destination
) -> None:
    handed_over = HERE._replace(host=None, mode=None)
    left_by_a_dead_process(tmp_path, runtime, destination=handed_over)
    for other in (mine._replace(account="acct_2"), mine._replace(context=None)):
        assert heir_of(tmp_path, runtime, destination=other).buffer.counts().recovered == 0
    assert heir_of(tmp_path, runtime, destination=mine).buffer.counts().recovered == 10


# -- version 1, which does not say it --------------------------------------------------------------


def test_version_1_is_taken_while_nobody_else_uses_the_directory(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    as_version_1(left_by_a_dead_process(tmp_path, runtime, events=300))
    left_by_a_dead_process(tmp_path, runtime, events=5, destination=HERE)
    heir = heir_of(tmp_path, runtime, destination=HERE)
    assert values(take_all(heir.buffer)) == sorted([*range(300), *range(5)])
    assert (segments(tmp_path), heir.buffer.counts().quarantined) == ([], 0)


@pytest.mark.parametrize("alive", [False, True], ids=["stale", "alive"])
def test_version_1_is_left_alone_beside_a_segment_for_somebody_else(
    tmp_path: Path, runtime: VirtualRuntime, alive: bool
) -> None:
    as_version_1(left_by_a_dead_process(tmp_path, runtime))
    other = Spool(tmp_path, runtime, destination=OTHERS["mode"])
    assert other.record("tokens", "cus_1", 1)
    if not alive:
        other.die()
    heir = heir_of(tmp_path, runtime, destination=HERE)
    assert heir.buffer.counts().recovered == 0
    assert "spool replay" in str(heir.said)
    assert Problem.FOREIGN_EVENTS in heir.buffer.problems()
    # The command says it.
    while not heir.buffer.recover_all():
        assert len(take_all(heir.buffer)) == 10
    other.die()
    assert heir_of(tmp_path, runtime, destination=OTHERS["mode"]).buffer.counts().recovered == 1


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "mode"),
    [
        ("sk_live_1", "live"),
        ("rk_live_1", "live"),
        ("sk_test_1", "test"),
        ("rk_test_1", "test"),
        ("sk_org_live_1", "live"),
        ("sk_org_test_1", "test"),
        ("sk_org_1", "unknown"),
        ("of_a_proxy", "unknown"),
        ("sk_1_live_", "unknown"),
    ],
)
def test_the_mode_is_in_the_beginning_of_the_key(key: str, mode: str) -> None:
    assert mode_of_key(key) == mode


def test_the_destination_is_made_of_the_settings_and_the_port_is_no_part_of_it() -> None:
    config = Config(
        api_key="rk_live_1", events_url="https://Events.Example:8443/x", stripe_account="acct_1"
    )
    assert destination_in(config) == ("events.example", "live", "acct_1", None)
    config = Config(sandbox_url="http://[::1]:9999", stripe_context="c", api_key="sk_live_1")
    assert destination_in(config) == ("::1", "emulator", None, "c")
    assert destination_in(Config(disabled=True)) == NOT_SAID


def test_a_key_file_that_gets_a_key_of_the_other_mode_opens_no_session(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk_test_1")
    config = Config(api_key_file=file)
    stream = open_stream(
        config,
        VirtualRuntime(),
        traffic=Traffic(VirtualRuntime()),
        seconds_left=lambda: None,
        mode=destination_in(config).mode,
    )
    assert stream._read_api_key() == "sk_test_1"
    file.write_text("sk_live_1")
    with pytest.raises(ConfigError, match="holds a live key now"):
        stream._read_api_key()


def test_an_agent_for_another_account_sends_nothing_of_what_a_dead_process_left(
    make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path
) -> None:
    mine = Destination("127.0.0.1", "emulator", "acct_1")
    left_by_a_dead_process(tmp_path, VirtualRuntime(), events=3, destination=mine)

    def agent(account: str) -> MeterAgent:
        return make_agent(spool_dir=tmp_path, stripe_account=account)

    other = agent("acct_2")
    assert wait_until(other, lambda: "foreign_events" in other.health().problems)
    assert other.close(20).recovered == 0
    owner = agent("acct_1")
    assert wait_until(owner, lambda: owner.stats().delivered == 3)
    assert sandbox.totals()["accepted"] == 3
    assert os.listdir(tmp_path) == []
