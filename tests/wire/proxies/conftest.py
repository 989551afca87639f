from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.wire.proxies.running import Certificates, Haproxy, Nginx, Proxy

OpenProxy = Callable[..., Proxy]
KINDS: dict[str, type[Proxy]] = {"nginx": Nginx, "haproxy": Haproxy}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def stripe_url(sandbox: Sandbox) -> Iterator[str]:
    with SandboxServer(sandbox) as server:
        yield server.url


@pytest.fixture
def open_proxy(
    tmp_path: Path, certificates: Certificates, stripe_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OpenProxy]:
    """Start proxies by name, trusted as an operator has them trusted."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates.authority))
    with ExitStack() as stack:

        def start(kind: str, rules: str = "", upstream: str = stripe_url) -> Proxy:
            return stack.enter_context(KINDS[kind](tmp_path, certificates, upstream, rules))

        yield start
