"""No secret in any message, repr or crash page."""

from __future__ import annotations

import dataclasses
import traceback
from typing import Any

import pytest

from meter_agent._config import Config
from meter_agent._secret import Secret
from meter_agent.exceptions import ConfigError
from tests.config.settings import HIDDEN, KEY, environment, problems, variable


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (KEY, "sk_test_***"),
        ("rk_live_abc", "rk_live_***"),
        ("sk_org_live_abc", "sk_org_live_***"),
        ("sk_abc", "sk_***"),
        ("whatever", "***"),
    ],
)
def test_a_repr_shows_the_kind_of_a_key_and_nothing_of_it(key: str, shown: str) -> None:
    config = Config(api_key=key, stripe_context="acct_1")
    assert repr(config) == f"Config(api_key='{shown}', stripe_context='acct_1')"
    assert str(config) == repr(config)
    for copied in (vars(config), dataclasses.asdict(config), config.read_api_key()):
        assert repr(shown) in repr(copied)


def test_a_repr_shows_what_differs_from_the_defaults() -> None:
    config = Config(disabled=True, batch_size=5, payload_keys={"a": {"value_key": "b"}})
    assert repr(config) == (
        "Config(disabled=True, batch_size=5, payload_keys={'a': {'value_key': 'b'}})"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": KEY + "\n"},
        {"api_key": KEY.encode()},
        {"api_key": [KEY]},
        {"stripe_account": KEY + " "},
        {"stripe_account": "x" * 95 + KEY + " "},
        {"overflow": KEY},
        {"payload_keys": {KEY: 1}},
        {"api_key_file": KEY},
        {"api_url": f"https://user:{HIDDEN}@host"},
        {"api_url": f"user:{HIDDEN}@host"},
        {"api_url": f"https://user:{'x' * 200}/{HIDDEN}@host"},
        {"sandbox_url": f"https://host/?key={HIDDEN}"},
        {"sandbox_url": f"https://host/#{HIDDEN}"},
    ],
    ids=str,
)
def test_no_error_shows_a_secret(settings: dict[str, Any]) -> None:
    assert HIDDEN not in "\n".join(problems(**settings))
    environ = {variable(name): str(value) for name, value in settings.items()}
    if "api_key" not in settings:
        assert HIDDEN not in "\n".join(problems(environ))


def test_a_crash_page_with_local_variables_shows_no_key() -> None:
    try:
        Config.from_env(environment(batch_size="0"), api_key=KEY)
    except ConfigError as error:
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert len(trace.stack) > 1
    for frame in trace.stack:
        shown = {name: text for name, text in (frame.locals or {}).items() if name != "environ"}
        assert HIDDEN not in str(shown)


def test_a_secret_is_its_text_where_it_is_used() -> None:
    assert f"Bearer {Secret(KEY)}" == f"Bearer {KEY}"
    assert f"{Secret(KEY)!r}" == "'sk_test_***'"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


def test_a_value_that_cannot_be_printed_is_refused_all_the_same() -> None:
    assert "Unprintable object at" in problems(api_key=KEY, overflow=Unprintable())[0]
    assert "int object at" in problems(api_key=KEY, batch_size=10**5000)[0]
