from __future__ import annotations

import threading

import pytest

from meter_agent import _runtime
from meter_agent._runtime import SystemRuntime


def test_the_main_thread_looks_again_although_nobody_rings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal that arrived just before the wait is noticed then."""
    monkeypatch.setattr(_runtime, "_MAIN_WAIT_SECONDS", 0.01)
    assert SystemRuntime().doorbell().wait(None) is False


def test_another_thread_waits_until_somebody_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime, "_MAIN_WAIT_SECONDS", 0.01)
    bell, heard = SystemRuntime().doorbell(), []
    thread = threading.Thread(target=lambda: heard.append(bell.wait(None)))
    thread.start()
    thread.join(0.1)  # ten times as long as the main thread would wait
    assert not heard
    bell.ring()
    thread.join(20)
    assert heard == [True]
