from __future__ import annotations

from collections.abc import Iterator

import pytest

from meter_agent.testing import RecordedEvents, recording


@pytest.fixture
def events() -> Iterator[RecordedEvents]:
    with recording() as recorded:
        yield recorded


def run_alone(pytester: pytest.Pytester) -> pytest.RunResult:
    """Run a project in a process of its own, without plugins other than ours: some take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        return pytester.runpytest_subprocess("-p", "meter_agent", "-W", "error")
