from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

from meter_agent import Config, MeterAgent, _default, _lifecycle
from meter_agent._agent import build
from meter_agent.sandbox import Sandbox, SandboxAdapter
from tests.virtual import VirtualRuntime

# Speed is judged by benchmarks: on a busy machine an example may take as long as it likes.
hypothesis.settings.register_profile(
    "project",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.load_profile("project")

FAST: dict[str, Any] = {
    "sandbox_url": "http://127.0.0.1:1",
    "flush_interval_seconds": 0.02,
    "retry_base_seconds": 0.01,
    "retry_max_seconds": 0.05,
    "max_events_per_second": 1_000_000,
}
"""Settings for tests in real time: everything that is a wait is short."""

MakeAgent = Callable[..., MeterAgent]


def pytest_configure() -> None:
    # A shell starts background jobs with Ctrl-C ignored, and every process below inherits that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish() -> None:
    # xdist kills a worker that takes more than 10 s to exit, and coverage writes its data at exit:
    # on a busy machine the data of a whole worker would be missing.
    coverage = sys.modules.get("coverage")
    measuring = coverage.Coverage.current() if coverage else None
    if measuring is not None:
        measuring.stop()
        measuring.save()


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings of the developer's shell, no default agent, and nothing left behind.

    What a test starts is not measured, but for the commands of `tests.cli.processes.run`: coverage
    has a plain lock of its own. A child of a fork may inherit it locked, a signal handler that
    interrupts its holder waits for it for ever, and one that raises there never gives it back.
    """
    for name in os.environ:
        if name.startswith(("COVERAGE_", "METER_AGENT_", "STRIPE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(_default, "_default", _default._Default())
    _older_threads.clear()
    _older_threads.update(threading.enumerate())
    yield
    for pipeline in list(_lifecycle._state.pipelines):
        pipeline.begin_close(0.0)
        pipeline.finish_close(0.0)
    assert not _lifecycle._state.pipelines


@pytest.fixture
def runtime() -> VirtualRuntime:
    return VirtualRuntime()


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox()


@pytest.fixture
def make_agent(sandbox: Sandbox) -> Iterator[MakeAgent]:
    """Build agents that talk to *sandbox* in this process, over requests but without sockets."""
    made: list[MeterAgent] = []

    def make(*, sleep: Callable[[float], object] = time.sleep, **settings: Any) -> MeterAgent:
        seams = {
            name: settings.pop(name)
            for name in ("on_dead_letter", "on_error", "on_drop", "runtime", "refusal")
            if name in settings
        }
        agent = build(
            Config(**(FAST | settings)),
            open_adapter=lambda: SandboxAdapter(sandbox, sleep=sleep),
            **seams,
        )
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.close(0)


class Hold:
    """A `sleep` for the sandbox that holds whoever waits there until it is released."""

    def __init__(self) -> None:
        self._inside = threading.Event()
        self._released = threading.Event()

    def __call__(self, _seconds: float) -> None:
        self._inside.set()
        assert self._released.wait(20)

    def wait(self) -> None:
        """Wait until somebody is held."""
        assert self._inside.wait(20)

    def release(self) -> None:
        """Let go who is held, and hold nobody from now on."""
        self._released.set()


@pytest.fixture
def hold() -> Iterator[Hold]:
    made = Hold()
    yield made
    made.release()


def wait_until(agent: MeterAgent, done: Callable[[], bool]) -> bool:
    """Wait for what becomes true by the progress of the senders."""
    return agent._pipeline._flusher._wait_until(done, time.monotonic() + 20)


_older_threads: set[threading.Thread] = set()


def sender_threads() -> list[threading.Thread]:
    """The sender threads that were started in this test.

    A closed agent leaves a sender alone that waits for an answer, and that may outlive its test.
    """
    threads = [thread for thread in threading.enumerate() if thread not in _older_threads]
    return [thread for thread in threads if thread.name == "meter-agent-sender"]


def billed(sandbox: Sandbox) -> dict[str, dict[str, str]]:
    totals: dict[str, dict[str, str]] = sandbox.totals()["totals"]
    return totals
