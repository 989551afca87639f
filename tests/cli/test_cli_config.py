"""`meter-agent config show`: every setting, with its origin and without a secret."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meter_agent._config import SETTINGS
from meter_agent._found_settings import find_settings
from meter_agent.cli.app import app


def show(*arguments: str, **environ: str) -> Result:
    return CliRunner(env=environ).invoke(app, ["config", "show", *arguments])


def rows(result: Result) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return {line["setting"]: line for line in lines}


def test_each_setting_is_shown_with_value_and_origin() -> None:
    result = show(
        "--json",
        "--sandbox-url=http://127.0.0.1:1",
        METER_AGENT_BATCH_SIZE=" 20 ",
        METER_AGENT_SANDBOX_URL="http://127.0.0.1:2",
        METER_AGENT_SPOOL_DIR="",
        STRIPE_API_KEY="sk_test_1",
    )
    assert result.exit_code == 0
    found = rows(result)
    assert list(found) == [setting.name for setting in SETTINGS]
    told = {name: (row["value"], row["origin"]) for name, row in found.items()}
    assert told["batch_size"] == (20, "METER_AGENT_BATCH_SIZE")
    assert told["sandbox_url"] == ("http://127.0.0.1:1", "keyword")
    assert told["spool_dir"] == (None, "default")
    assert told["strict"] == (False, "default")
    assert told["api_key"] == ("sk_test_***", "STRIPE_API_KEY")


def test_people_read_values_as_they_would_stand_in_the_variable() -> None:
    keys = '{"tokens": {"value_key": "count"}}'
    environ = {"METER_AGENT_PAYLOAD_KEYS": keys, "METER_AGENT_STRICT": "yes"}
    lines = show(STRIPE_API_KEY="rk_live_1", **environ).stdout.splitlines()
    assert lines[0].split() == ["SETTING", "VALUE", "ORIGIN"]
    assert f"payload_keys              {keys}        METER_AGENT_PAYLOAD_KEYS" in lines
    assert any(line.split() == ["strict", "true", "METER_AGENT_STRICT"] for line in lines)
    assert any(line.split() == ["spool_dir", "-", "default"] for line in lines)


def test_no_secret_is_shown_wherever_it_was_put() -> None:
    result = show(
        METER_AGENT_API_KEY="rk_live_abcdefgh",
        METER_AGENT_API_URL="https://user:abcdefgh@api.stripe.com/x?token=abcdefgh",
        METER_AGENT_STRIPE_CONTEXT="sk_live_abcdefgh",
        METER_AGENT_SPOOL_DIR="/sk_live_abcdefgh",
        METER_AGENT_READ_TIMEOUT_SECONDS="sk_live_abcdefgh",
    )
    assert result.exit_code == 2
    assert "abcdefgh" not in result.output
    assert "https://***" not in result.stdout  # the scheme goes with the user
    assert "rk_live_***" in result.stdout
    assert "/sk_live_***" in result.stdout


def test_wrong_settings_are_shown_and_end_it_with_2() -> None:
    result = show("--json", METER_AGENT_BATCH_SIZE="many", METER_AGENT_BUFER_EVENTS="1")
    assert result.exit_code == 2
    row = rows(result)["batch_size"]
    assert (row["value"], row["origin"]) == ("many", "METER_AGENT_BATCH_SIZE")
    assert row["problem"].startswith("METER_AGENT_BATCH_SIZE='many': must be a whole number")
    assert "METER_AGENT_BUFER_EVENTS is no setting: is METER_AGENT_BUFFER_EVENTS" in result.stderr
    assert "METER_AGENT_API_KEY is not set" in result.stderr


def test_a_value_that_can_be_read_and_is_out_of_range_is_a_problem_too() -> None:
    found = {each.setting.name: each for each in find_settings({}, batch_size=0)}
    assert found["batch_size"].origin == "keyword"
    assert "must be a whole number from 1 to 100" in (found["batch_size"].problem or "")
    assert found["spool_dir"].problem is None


@pytest.mark.parametrize("origin", ["METER_AGENT_API_KEY", "METER_AGENT_API_KEY_FILE"])
def test_the_shared_key_is_no_origin_when_there_is_one_of_our_own(origin: str) -> None:
    environ = {"STRIPE_API_KEY": "rk_live_1", origin: "rk_live_2"}
    found = {each.setting.name: each.origin for each in find_settings(environ)}
    assert found[origin.removeprefix("METER_AGENT_").lower()] == origin
    assert "STRIPE_API_KEY" not in found.values()
