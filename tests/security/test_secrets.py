"""Keys and tokens appear nowhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from meter_agent import (
    Config,
)
from meter_agent._agent import build
from meter_agent.sandbox import Fault, Sandbox, SandboxAdapter
from tests.conftest import FAST


def test_no_secret_appears_in_logs_reprs_errors_letters_or_statistics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = "rk_test_" + "thisisverysecret" * 2
    sandbox = Sandbox(api_keys={key})
    for fault in (
        Fault("status", status=503, times=1),
        Fault("status", status=401, code="x", times=1),
        Fault("poison", match={"payload.value": "5"}),
    ):
        sandbox.add_fault(fault)
    told: list[object] = []
    letters = tmp_path / "letters.jsonl"
    settings: dict[str, Any] = FAST | {"sandbox_url": None, "api_url": "http://127.0.0.1:1"}
    config = Config(
        **settings, events_url="http://127.0.0.1:1", api_key=key, dead_letter_file=str(letters)
    )
    agent = build(
        config,
        open_adapter=lambda: SandboxAdapter(sandbox),
        on_dead_letter=told.append,
        on_error=told.append,
    )
    for n in range(10):
        agent.record("tokens", "cus_1", n)
    stats = agent.close(20)
    assert stats.delivered == 9
    tokens = list(sandbox._sessions._by_token)
    assert len(tokens) >= 2
    heard = "".join(
        [
            repr(config),
            str(config),
            repr(agent),
            repr(stats),
            repr(told),
            letters.read_text(),
            *(repr(record.__dict__) for record in caplog.records),
        ]
    )
    assert "thisisverysecret" not in heard
    for token in tokens:
        assert token not in heard
