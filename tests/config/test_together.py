"""All settings together: every wrong one is told at once, and a keyword wins."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from typing import Any

import pytest

import meter_agent
from meter_agent import MeterAgent
from meter_agent._config import Config, unknown_variables
from meter_agent.exceptions import ConfigError
from tests.config.settings import HIDDEN, KEY, environment, problems


def test_all_wrong_settings_are_told_at_once() -> None:
    environ = environment(batch_size="many", overflow="explode", api_url="http://x", strict="?")
    found = problems(environ, max_in_flight=0, retry_base_seconds=99)
    assert [problem.partition("=")[0].removeprefix("METER_AGENT_") for problem in found] == [
        *("API_URL", "STRICT", "OVERFLOW", "BATCH_SIZE", "MAX_IN_FLIGHT"),
        "RETRY_BASE_SECONDS",
    ]
    assert found[3] == "METER_AGENT_BATCH_SIZE='many': must be a whole number from 1 to 100"


def test_a_comparison_is_not_made_with_a_value_that_is_wrong_by_itself() -> None:
    found = problems(environment(retry_base_seconds="60", retry_max_seconds="soon"))
    assert len(found) == 1
    assert found[0].startswith("METER_AGENT_RETRY_MAX_SECONDS='soon'")


def test_a_keyword_wins_over_its_variable() -> None:
    environ = environment(batch_size="20", max_in_flight="not even read")
    config = Config.from_env(environ, max_in_flight=3)
    assert (config.batch_size, config.max_in_flight) == (20, 3)


NEAREST = [
    ({"flush_interval": 1}, "flush_interval is no setting: use flush_interval_seconds"),
    ({"batchsize": 10}, "batchsize is no setting: use batch_size"),
    ({"Batch_Size": 10}, "Batch_Size is no setting: use batch_size"),
    ({"on_deadletter": print}, "on_deadletter is no setting: use on_dead_letter"),
    ({"zzz": 1}, "zzz is no setting: the reference of the settings lists them"),
]


@pytest.mark.parametrize(
    "build",
    [
        lambda wrong: Config(api_key=KEY, **wrong),
        lambda wrong: Config.from_env({}, api_key=KEY, **wrong),
        lambda wrong: dataclasses.replace(Config(api_key=KEY), **wrong),
        lambda wrong: MeterAgent(api_key=KEY, **wrong),
        lambda wrong: MeterAgent(Config(api_key=KEY), **wrong),
        lambda wrong: meter_agent.configure(api_key=KEY, **wrong),
    ],
    ids=["Config", "from_env", "replace", "MeterAgent", "MeterAgent of a config", "configure"],
)
@pytest.mark.parametrize(("wrong", "problem"), NEAREST, ids=lambda value: str(value)[:20])
def test_a_name_that_is_no_setting_is_refused_with_the_nearest_one(
    build: Callable[[dict[str, Any]], object], wrong: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        build(wrong)
    assert raised.value.problems == (problem,)


def test_a_wrong_name_and_wrong_values_are_told_together() -> None:
    with pytest.raises(ConfigError) as raised:
        Config(api_key=KEY, flush_interval=1, batch_size=0)  # type: ignore[call-arg]
    first, second = raised.value.problems
    assert first.startswith("flush_interval is no setting")
    assert second.startswith("METER_AGENT_BATCH_SIZE=0")


def test_a_callback_is_no_setting_of_a_config() -> None:
    with pytest.raises(ConfigError, match=r"on_error is .* an argument of MeterAgent\(\)"):
        Config(api_key=KEY, on_error=print)  # type: ignore[call-arg]


def test_a_crash_page_of_a_wrong_name_shows_no_key() -> None:
    try:
        Config(api_key=KEY, flush_interval=1)  # type: ignore[call-arg]
    except ConfigError as error:
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert HIDDEN not in "".join(str(frame.locals) for frame in trace.stack)


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METER_AGENT_API_KEY", KEY)
    monkeypatch.setenv("METER_AGENT_BATCH_SIZE", "7")
    monkeypatch.setenv("METER_AGENT_BATCHSIZE", "7")
    assert Config.from_env().batch_size == 7
    assert ("METER_AGENT_BATCHSIZE", "METER_AGENT_BATCH_SIZE") in unknown_variables()


def test_the_constructor_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METER_AGENT_BATCH_SIZE", "7")
    assert Config(api_key=KEY).batch_size == 100


def test_an_unknown_variable_is_told_with_the_nearest_name() -> None:
    environ = dict.fromkeys(
        ["METER_AGENT_FLUSH_INTERVAL", "METER_AGENT_ZZZ", "METER_AGENT_STRICT", "PATH"], "1"
    )
    assert unknown_variables(environ) == [
        ("METER_AGENT_FLUSH_INTERVAL", "METER_AGENT_FLUSH_INTERVAL_SECONDS"),
        ("METER_AGENT_ZZZ", None),
    ]
