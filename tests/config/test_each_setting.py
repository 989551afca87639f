"""Each setting: its default, its variable, its rule."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_agent._config import SETTINGS, Config
from meter_agent.exceptions import ConfigError
from tests.config.settings import KEY, TABLE, WRONG, environment, problems, variable


def test_the_table_of_this_file_covers_every_setting() -> None:
    assert list(TABLE) == [setting.name for setting in SETTINGS]
    assert list(TABLE) == [field.name for field in dataclasses.fields(Config)]


@pytest.mark.parametrize("name", TABLE)
def test_a_setting_has_the_documented_default(name: str) -> None:
    assert getattr(Config(sandbox_url="http://localhost"), name) == (
        "http://localhost" if name == "sandbox_url" else TABLE[name][0]
    )


@pytest.mark.parametrize("name", TABLE)
def test_a_setting_is_read_from_its_variable(name: str) -> None:
    key = {} if name.startswith("api_key") else {"STRIPE_API_KEY": KEY}
    if name == "api_key_file":
        key = {"METER_AGENT_DISABLED": "1"}  # which holds no key
    config = Config.from_env({variable(name): f" {TABLE[name][1]}\n", **key})
    value = getattr(config, name)
    assert value == TABLE[name][2]
    assert isinstance(value, type(TABLE[name][2]))


@pytest.mark.parametrize("name", TABLE)
def test_an_empty_variable_counts_as_not_set(name: str) -> None:
    config = Config.from_env({variable(name): " "}, sandbox_url="http://localhost")
    if name != "sandbox_url":
        assert getattr(config, name) == TABLE[name][0]


def test_an_empty_sandbox_url_means_stripe() -> None:
    config = Config.from_env(environment(sandbox_url=""))
    assert config.sandbox_url is None


@pytest.mark.parametrize(("name", "text"), WRONG, ids=[name for name, _ in WRONG])
def test_a_wrong_variable_is_refused_with_variable_value_and_rule(name: str, text: str) -> None:
    (problem,) = problems(environment(**{name: text}))
    problem.encode()
    assert len(problem) < 400
    if name in {"retry_max_seconds", "customer_key"} and name not in problem.partition(":")[0]:
        assert variable(name) in problem  # the partner of the comparison
    else:
        assert problem.startswith(f"{variable(name)}=")
    assert any(word in problem for word in (": must ", " must differ", "cannot be read"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, b"1", 10**400])
@pytest.mark.parametrize(
    "name", [name for name, row in TABLE.items() if type(row[0]) in {int, float}]
)
def test_a_number_is_neither_nan_nor_bool_nor_text(name: str, value: object) -> None:
    (problem,) = problems(api_key=KEY, **{name: value})
    assert problem.startswith(f"{variable(name)}=")
    assert "number from" in problem


@pytest.mark.parametrize("name", ["buffer_events", "batch_size", "max_in_flight", "spool_bytes"])
def test_a_count_is_no_float(name: str) -> None:
    assert "whole number" in problems(api_key=KEY, **{name: 50.0})[0]


@pytest.mark.parametrize("name", ["disabled", "strict", "handle_sigterm"])
@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_a_switch_takes_nothing_but_a_bool(name: str, value: object) -> None:
    assert problems(api_key=KEY, **{name: value})[0].startswith(f"{variable(name)}=")


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[0] != {}])
@pytest.mark.parametrize(
    "value", [[], b"x", object(), ""], ids=["list", "bytes", "object", "empty"]
)
def test_a_value_of_the_wrong_type_is_refused(name: str, value: object) -> None:
    found = problems(**{"sandbox_url": "http://localhost", name: value})
    assert [problem.partition("=")[0] for problem in found] == [variable(name)]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "tokens",
        {"a": {"value_key": 5}},
        {5: {}},
        {"a": None},
        {"a" * 101: {}},
        {"a": {5: "b"}},
    ],
    ids=str,
)
def test_payload_keys_of_the_wrong_shape_are_refused(value: object) -> None:
    assert problems(api_key=KEY, payload_keys=value)[0].startswith("METER_AGENT_PAYLOAD_KEYS=")


@pytest.mark.parametrize("text", ["1", "true", "YES", "On", "0", "False", "no", "OFF"])
def test_switches_take_the_usual_words(text: str) -> None:
    config = Config.from_env(environment(strict=text))
    assert config.strict is (text in {"1", "true", "YES", "On"})


@given(
    st.dictionaries(
        st.sampled_from([*map(variable, TABLE), "STRIPE_API_KEY"]),
        st.text(st.characters(codec=None), max_size=20)
        | st.sampled_from([text for _, text in WRONG] + [row[1] for row in TABLE.values()]),
    )
)
def test_no_environment_raises_anything_but_a_config_error(environ: dict[str, str]) -> None:
    try:
        config = Config.from_env(environ)
    except ConfigError as error:
        str(error).encode()
        return
    assert Config.from_env(environ) == config
    assert hash(Config.from_env(environ)) == hash(config)
