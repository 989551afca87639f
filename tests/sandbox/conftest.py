from collections.abc import Iterator

import pytest
import requests

from meter_agent.sandbox import Sandbox, SandboxAdapter
from meter_agent.sandbox.server import SandboxServer

from .client import NOW, Client


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox(time=lambda: NOW)


@pytest.fixture
def client(sandbox: Sandbox) -> Client:
    return Client(sandbox)


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as server:
        yield server


@pytest.fixture
def naps() -> list[float]:
    """How long the adapter would have slept."""
    return []


@pytest.fixture
def http(sandbox: Sandbox, naps: list[float]) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.mount("https://", SandboxAdapter(sandbox, sleep=naps.append))
        yield session
