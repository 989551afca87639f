"""The health endpoints of the guide, under a real server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.hosts.servers import Server, running, write_snippet
from tests.metrics.test_multiprocess import MONITOR
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    write_snippet(MONITOR, "health_app.py", tmp_path)
    (tmp_path / "failing.py").write_text(
        "import meter_agent\n"
        "from health_app import app\n"
        'meter_agent.configure(on_error=lambda error: print("a request failed", flush=True))\n'
        'meter_agent.record("api_requests", "cus_1")\n'
    )
    return tmp_path


def ask(server: Server, path: str) -> tuple[int, dict[str, Any]]:
    address = server.wait_for(r"http://127\.0\.0\.1:\d+")[0]
    try:
        with urllib.request.urlopen(f"{address}/{path}", timeout=PATIENCE_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize("status", [None, 503, 401])
def test_a_service_is_alive_and_ready_whatever_stripe_says(
    sandbox: Sandbox, app_dir: Path, status: int | None
) -> None:
    if status is not None:
        sandbox.add_fault(Fault("status", on="any", status=status))
    settings = {"METER_AGENT_FLUSH_INTERVAL_SECONDS": "0.02"}
    app = "health_app:app" if status is None else "failing:app"
    with (
        SandboxServer(sandbox) as sandbox_server,
        running(["uvicorn", app, "--port", "0"], sandbox_server.url, app_dir, **settings) as server,
    ):
        if status is not None:
            server.wait_for("a request failed")
        (alive, said), (ready, _) = ask(server, "livez"), ask(server, "readyz")
        sandbox.clear_faults()
        server.stop()
    assert (alive, ready) == (200, 200)
    assert said["degraded"] == (status is not None)
    assert all(str(status) in words for words in said["problems"].values())
