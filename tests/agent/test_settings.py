"""Settings as the agent obeys them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import meter_agent
from meter_agent import (
    Config,
    ConfigError,
    MeterAgent,
    MeterAgentError,
)
from meter_agent._agent import build
from meter_agent.sandbox import Sandbox, SandboxAdapter
from tests.conftest import FAST, MakeAgent, billed, sender_threads
from tests.log_lines import lines_of
from tests.wire.servers import answer, listening


def test_payload_keys_can_be_set_for_all_meters_and_for_one() -> None:
    sandbox = Sandbox(
        payload_keys={
            "tokens": {"customer_key": "buyer", "value_key": "amount"},
            "pages": {"customer_key": "buyer", "value_key": "sheets"},
        }
    )

    config = Config(
        **FAST,
        customer_key="buyer",
        value_key="amount",
        payload_keys={"pages": {"value_key": "sheets"}},
    )
    with build(config, open_adapter=lambda: SandboxAdapter(sandbox)) as agent:
        agent.record("tokens", "cus_1", 2, payload={"model": "small"})
        agent.record("pages", "cus_1", 3)
    assert agent.stats().delivered == 2
    assert billed(sandbox) == {"tokens": {"cus_1": "2"}, "pages": {"cus_1": "3"}}
    assert sandbox.ledger()[0]["payload"]["model"] == "small"


def test_the_configured_headers_are_sent(make_agent: MakeAgent) -> None:
    with listening(lambda connection, _: answer(connection, b"{}", "503 No")) as server:
        agent = MeterAgent(
            Config(
                api_key="sk_test_1",
                api_url=server.url,
                events_url=server.url,
                stripe_version="2026-09-30.endive",
                stripe_account="acct_1",
                stripe_context="acct_2",
            )
        )
        agent.record("tokens", "cus_1")
        agent.close(0.5)
        request = server.requests[0]
    assert b"Stripe-Version: 2026-09-30.endive" in request
    assert b"Stripe-Account: acct_1" in request
    assert b"Stripe-Context: acct_2" in request


def test_a_disabled_agent_refuses_counts_and_starts_nothing(make_agent: MakeAgent) -> None:
    before = set(sender_threads())
    agent = make_agent(disabled=True, sandbox_url=None)
    assert not agent.record("tokens", "cus_1")
    assert agent.flush()
    assert agent.close().dropped == {"disabled": 1}
    assert set(sender_threads()) <= before


def test_settings_by_keyword_win_over_the_config_and_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METER_AGENT_API_KEY", "sk_test_env")
    monkeypatch.setenv("METER_AGENT_BATCH_SIZE", "7")
    monkeypatch.setenv("METER_AGENT_MAX_IN_FLIGHT", "3")
    assert MeterAgent(batch_size=5).config.batch_size == 5
    assert MeterAgent(batch_size=5).config.max_in_flight == 3
    assert (
        MeterAgent(Config(api_key="sk_test_1", batch_size=9), batch_size=6).config.batch_size == 6
    )
    assert MeterAgent(Config(api_key="sk_test_1")).config.batch_size == 100


def test_without_a_key_the_constructor_raises_and_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="METER_AGENT_API_KEY"):
        MeterAgent()


def test_an_unknown_variable_is_a_warning_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("METER_AGENT_API_KEY", "sk_test_1")
    monkeypatch.setenv("METER_AGENT_BATCHSIZE", "7")
    MeterAgent()
    (line,) = lines_of(caplog, "meter_agent.unknown_setting")
    assert line.__dict__["variable"] == "METER_AGENT_BATCHSIZE"
    assert line.__dict__["nearest"] == "METER_AGENT_BATCH_SIZE"


def test_the_key_file_is_read_again_so_that_a_wrong_key_can_be_replaced(
    tmp_path: Path,
) -> None:
    sandbox = Sandbox(api_keys={"sk_test_right"})
    key = tmp_path / "key"
    key.write_text("sk_test_wrong\n")
    settings: dict[str, Any] = FAST | {
        "sandbox_url": None,
        "api_url": "http://127.0.0.1:1",
        "events_url": "http://127.0.0.1:1",
        "api_key_file": str(key),
    }
    errors: list[MeterAgentError] = []
    refused = threading.Event()

    def on_error(error: MeterAgentError) -> None:
        errors.append(error)
        refused.set()

    agent = build(
        Config(**settings), open_adapter=lambda: SandboxAdapter(sandbox), on_error=on_error
    )
    agent.record("tokens", "cus_1")
    assert refused.wait(20)
    key.write_text("sk_test_right\n")
    assert agent.flush(20)
    assert isinstance(errors[0], meter_agent.AuthenticationError)
    agent.close()
