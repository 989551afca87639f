"""What each test of the spool starts with."""

from __future__ import annotations

import pytest

from tests.virtual import VirtualRuntime


@pytest.fixture
def runtime() -> VirtualRuntime:
    return VirtualRuntime()
