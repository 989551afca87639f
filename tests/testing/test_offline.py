"""Agents that could reach Stripe are refused."""

from __future__ import annotations

import pytest

import meter_agent
from meter_agent import Config, ConfigError, MeterAgent
from meter_agent.testing import RefusedError, offline

REMOTE = "may bill on this host only"


def test_the_first_record_of_the_default_agent_raises_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_1")
    with offline(), pytest.raises(RefusedError, match=REMOTE):
        meter_agent.record("tokens", "cus_1")


@pytest.mark.parametrize("key", ["sk_live_1", "rk_live_1"])
def test_a_live_key_is_refused_also_with_an_address_of_this_host(key: str) -> None:
    with offline(), pytest.raises(RefusedError, match="is a live key"):
        MeterAgent(api_key=key, sandbox_url="http://127.0.0.1:1")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost", "https://localhost:9/", "http://[::1]:1"]
)
def test_agents_for_this_host_are_built_as_ever(url: str) -> None:
    with offline():
        agent = MeterAgent(sandbox_url=url)
        assert agent.record("tokens", "cus_1")
        agent.close(0)


def test_a_config_by_itself_and_a_disabled_agent_reach_nobody() -> None:
    with offline():
        config = Config(api_key="sk_live_1")
        with pytest.raises(RefusedError):
            MeterAgent(config)
        assert MeterAgent(config, disabled=True).stats().dropped == {}


def test_wrong_settings_are_still_told_as_such() -> None:
    with offline():
        with pytest.raises(ConfigError):
            MeterAgent(batch_size=0)
        assert not meter_agent.record("tokens", "cus_1"), "no key, and so no agent to refuse"


def test_it_ends_with_the_block() -> None:
    with offline():
        pass
    MeterAgent(api_key="sk_live_1").close(0)
