from __future__ import annotations

from collections.abc import Iterator

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer


@pytest.fixture
def url(sandbox: Sandbox) -> Iterator[str]:
    with SandboxServer(sandbox) as server:
        yield server.url
