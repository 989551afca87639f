"""The pytest plugin, found by its entry point: `meter_events` and `meter_sandbox`.

pytest imports this at the start of every run where the package is installed, used or not. So it
stands beside the package, which would be imported with any module inside of it, and imports nothing
but pytest until a fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from meter_agent.sandbox.server import SandboxServer
    from meter_agent.testing import MeterSandbox, RecordedEvents

__all__ = ["meter_agent_settings", "meter_events", "meter_sandbox"]

_OFFLINE = "meter_agent_offline"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option."""
    parser.addini(
        _OFFLINE,
        "in every test, refuse agents that have a live key or send to another host than this one",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what the option says, until the run ends."""
    if config.getini(_OFFLINE):
        from meter_agent.testing import offline  # noqa: PLC0415

        run = ExitStack()
        run.enter_context(offline())
        config.add_cleanup(run.close)


@pytest.fixture
def meter_agent_settings() -> dict[str, Any]:
    """Settings for the default agent of a test: a project overrides this fixture with its own."""
    return {}


@pytest.fixture
def meter_events(
    request: pytest.FixtureRequest, meter_agent_settings: dict[str, Any]
) -> Iterator[RecordedEvents]:
    """Events that are recorded in this test, kept in memory; see `meter_agent.testing`."""
    from meter_agent.testing import recording  # noqa: PLC0415

    if "meter_sandbox" in request.fixturenames:
        pytest.fail(
            "meter_events and meter_sandbox each replace the default agent: a test can use one of"
            " them",
            pytrace=False,
        )
    with _readable(), recording(**meter_agent_settings) as events:
        yield events


@pytest.fixture
def meter_sandbox(
    _meter_sandbox_server: SandboxServer, meter_agent_settings: dict[str, Any]
) -> Iterator[MeterSandbox]:
    """A local Stripe over HTTP, as new in each test; see `meter_agent.testing`."""
    from meter_agent.testing import sandbox  # noqa: PLC0415

    with _readable(), sandbox(_meter_sandbox_server, **meter_agent_settings) as stripe:
        yield stripe


@pytest.fixture(scope="session")
def _meter_sandbox_server() -> Iterator[SandboxServer]:
    from meter_agent.testing._sandbox import start_server  # noqa: PLC0415

    server = start_server()
    yield server
    server.stop()


@contextmanager
def _readable() -> Iterator[None]:
    """Show what the package has to say about a test, without the traceback of this file."""
    from meter_agent.testing import LeftBehindError, RefusedError  # noqa: PLC0415

    try:
        yield
    except (LeftBehindError, RefusedError) as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
