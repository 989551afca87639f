"""The API key: where it may come from, and which keys are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from meter_agent._config import SANDBOX_API_KEY, Config
from meter_agent.exceptions import ConfigError
from tests.config.settings import HIDDEN, KEY, environment, problems


def test_without_a_key_the_error_says_what_to_set() -> None:
    (problem,) = problems({})
    for name in ("METER_AGENT_API_KEY", "STRIPE_API_KEY", "METER_AGENT_API_KEY_FILE"):
        assert name in problem
    assert "METER_AGENT_SANDBOX_URL" in problem
    assert "METER_AGENT_DISABLED=true" in problem


@pytest.mark.parametrize("settings", [{"disabled": True}, {"sandbox_url": "http://localhost:1"}])
def test_a_disabled_agent_and_a_sandbox_need_no_key(settings: dict[str, Any]) -> None:
    Config(**settings)


def test_our_variable_wins_over_the_shared_one() -> None:
    environ = {"STRIPE_API_KEY": "sk_test_shared"}
    assert Config.from_env(environ).api_key == "sk_test_shared"
    assert Config.from_env(environ | environment()).api_key == KEY


def test_a_key_and_a_key_file_together_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    (problem,) = problems(api_key=KEY, api_key_file=file)
    assert "only one of the two may be set" in problem
    assert HIDDEN not in problem


def test_a_key_file_wins_over_the_shared_variable(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk_test_file")
    environ = {"STRIPE_API_KEY": KEY, "METER_AGENT_API_KEY_FILE": str(file)}
    assert Config.from_env(environ).read_api_key() == "sk_test_file"
    assert Config.from_env({"STRIPE_API_KEY": KEY}, api_key_file=file).api_key is None


def test_a_key_by_keyword_leaves_the_variables_of_both_forms_unread() -> None:
    environ = {"METER_AGENT_API_KEY_FILE": "/nowhere", "STRIPE_API_KEY": "a b"}
    assert Config.from_env(environ, api_key=KEY).read_api_key() == KEY


def test_the_key_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("rk_live_old\n")
    config = Config(api_key_file=file)
    assert config.read_api_key() == "rk_live_old"
    file.write_text("rk_live_new\n")
    assert config.read_api_key() == "rk_live_new"
    file.unlink()
    with pytest.raises(ConfigError, match=r"API_KEY_FILE=.* cannot be read: No such file"):
        config.read_api_key()


@pytest.mark.parametrize("content", ["", " \n", "sk_a sk_b", "sk_\x00", "clé", "k" * 5000])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    (problem,) = problems(api_key_file=str(file))
    assert "must hold one API key and nothing else" in problem


def test_a_key_file_that_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        assert "it is not a regular file" in problems(api_key_file=path)[0]


def test_a_publishable_key_is_refused_with_a_hint() -> None:
    (problem,) = problems({"STRIPE_API_KEY": "pk_live_abc"})
    assert "'pk_live_***': must be a secret key (sk_) or a restricted key (rk_)" in problem


def test_the_key_of_an_organisation_needs_a_context() -> None:
    (problem,) = problems(api_key="sk_org_live_abc")
    assert problem.startswith("METER_AGENT_STRIPE_CONTEXT is not set")
    Config(api_key="sk_org_live_abc", stripe_context="acct_1")


def test_a_sandbox_is_never_sent_the_real_key() -> None:
    config = Config(api_key=KEY, sandbox_url="https://sandbox.example")
    assert config.read_api_key() == SANDBOX_API_KEY


def test_a_disabled_agent_has_no_key_to_read() -> None:
    with pytest.raises(ConfigError, match="METER_AGENT_API_KEY is not set"):
        Config(disabled=True).read_api_key()
