"""uvicorn, alone and as gunicorn's worker: the lifespan delivers, because `atexit` does not run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from meter_agent.sandbox import Fault, Sandbox
from tests.hosts.servers import (
    WEB_SERVERS,
    assert_each_once,
    assert_quiet_end,
    running,
    write_snippet,
)

NAMES = [f"cus_{n}" for n in range(8)]
READY = "Application startup complete"


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    for name in ("asgi_app.py", "own_lifespan.py"):
        write_snippet(WEB_SERVERS, name, tmp_path)
    (tmp_path / "without_lifespan.py").write_text(
        "import asgi_app\n"
        "from meter_agent.integrations.asgi import add_lifespan\n"
        "async def http_only(scope, receive, send):\n"
        '    if scope["type"] != "http":\n'  # as Django does
        "        raise ValueError(scope['type'])\n"
        "    await asgi_app.app(scope, receive, send)\n"
        "app = add_lifespan(http_only)\n"
    )
    return tmp_path


def uvicorn(app: str, *arguments: str) -> list[str]:
    return ["uvicorn", "--port", "0", *arguments, f"{app}:app"]


@pytest.mark.parametrize(
    ("app", "recorded"),
    [
        ("asgi_app", []),
        ("own_lifespan", ["starts", "stops"]),
        ("without_lifespan", []),
    ],
)
def test_uvicorn_delivers_each_event_once_when_it_is_stopped(
    sandbox: Sandbox, url: str, app_dir: Path, app: str, recorded: list[str]
) -> None:
    with running(uvicorn(app), url, app_dir) as server:
        server.wait_for(READY)
        assert [server.get(name) for name in NAMES] == ["ok\n"] * len(NAMES)
        output = server.stop()
    assert server.process.returncode == -signal.SIGTERM
    ledger = sandbox.ledger()
    requests = [entry for entry in ledger if entry["event_name"] == "api_requests"]
    assert sorted(entry["customer"] for entry in requests) == NAMES
    others = [entry["event_name"] for entry in ledger if entry not in requests]
    assert others == recorded
    assert sandbox.totals()["duplicates"] == 0
    assert_quiet_end(output, final_lines=1)


def test_each_of_uvicorns_workers_delivers(sandbox: Sandbox, url: str, app_dir: Path) -> None:
    with running(uvicorn("asgi_app", "--workers", "2"), url, app_dir) as server:
        server.wait_for(READY, times=2)
        for name in NAMES:
            server.get(name)
        output = server.stop()
    assert_each_once(sandbox, NAMES)
    assert_quiet_end(output)


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_gunicorns_uvicorn_workers_deliver(
    sandbox: Sandbox, url: str, app_dir: Path, preload: list[str]
) -> None:
    worker = ["--worker-class", "uvicorn_worker.UvicornWorker", "--workers", "2"]
    command = ["gunicorn", "--bind", "127.0.0.1:0", *worker, *preload, "asgi_app:app"]
    with running(command, url, app_dir) as server:
        server.wait_for(READY, times=2)
        for name in NAMES:
            server.get(name)
        output = server.stop()
    assert_each_once(sandbox, NAMES)
    assert_quiet_end(output)


@pytest.mark.parametrize("app", ["asgi_app", "without_lifespan"])
def test_wrong_settings_stop_the_start_and_the_log_names_them(
    url: str, app_dir: Path, app: str
) -> None:
    with running(uvicorn(app), url, app_dir, METER_AGENT_BATCH_SIZE="many") as server:
        output = server.wait()
    assert server.process.returncode == 3
    assert "METER_AGENT_BATCH_SIZE" in output


def test_in_an_outage_the_server_ends_within_its_budget_and_says_what_is_lost(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    sandbox.add_fault(Fault("hang"))
    budget = {"METER_AGENT_SHUTDOWN_TIMEOUT_SECONDS": "1"}
    with running(uvicorn("asgi_app"), url, app_dir, **budget) as server:
        server.wait_for(READY)
        server.get("cus_1")
        stopped_at = time.monotonic()
        output = server.stop()
        assert time.monotonic() - stopped_at < 10
    assert "Traceback" not in output
    assert "WARNING:meter_agent:meter_agent.closed" in output
