"""The package as a guest: what importing it does not do, and what it shows."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import meter_agent
from meter_agent import exceptions
from tests.patience import PATIENCE_SECONDS


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module", ["requests", "urllib3", "ssl", "asyncio", "structlog", "tenacity", "starlette"]
)
def test_importing_the_package_does_not_import(module: str) -> None:
    assert run(f"import sys, meter_agent; print({module!r} in sys.modules)") == "False"


def test_importing_starts_nothing_and_changes_nothing() -> None:
    script = """
import atexit, logging, os, signal, sys, threading
def state():
    return (
        threading.active_count(),
        [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)],
        list(logging.getLogger().handlers),
        logging.getLogger("meter_agent").handlers,
        len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
    )
class Spy(dict):
    pass
reads = []
real = os.environ.__class__.__getitem__
os.environ.__class__.__getitem__ = lambda self, key: reads.append(key) or real(self, key)
before = state()
import meter_agent
assert state() == before, state()
assert not [key for key in reads if "METER" in key or "STRIPE" in key], reads
from meter_agent import _lifecycle
assert not _lifecycle._state.installed
print("quiet")
"""
    assert run(script) == "quiet"


def test_everything_public_is_there_and_documented() -> None:
    assert sorted(meter_agent.__all__) == meter_agent.__all__
    for name in meter_agent.__all__:
        shown = getattr(meter_agent, name)
        if name != "__version__":
            assert shown.__doc__, name


def test_errors_are_a_tree_that_old_except_clauses_know() -> None:
    for name in exceptions.__all__:
        assert issubclass(getattr(exceptions, name), meter_agent.MeterAgentError)
        assert name in (exceptions.__doc__ or ""), f"{name} is missing from the tree"
    assert issubclass(meter_agent.ConfigError, ValueError)
    assert issubclass(meter_agent.InvalidEventError, ValueError)


@pytest.mark.parametrize(
    "error",
    [
        meter_agent.ConfigError(["a", "b"]),
        meter_agent.InvalidEventError("value", "True", "must be a number"),
    ],
)
def test_errors_survive_the_way_to_another_process(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
