"""All settings together: every wrong one is told at once, and a keyword wins."""

from __future__ import annotations

import pytest

from meter_agent._config import Config, unknown_variables
from tests.config.settings import KEY, environment, problems


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


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="batchsize"):
        Config.from_env(environment(), batchsize=5)


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
