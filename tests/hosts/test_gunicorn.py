"""gunicorn with WSGI workers: nothing to add, and nothing lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path

import pytest

from meter_agent.sandbox import Sandbox
from tests.hosts.servers import (
    WEB_SERVERS,
    Server,
    assert_each_once,
    assert_quiet_end,
    customers,
    running,
    write_snippet,
)

NAMES = [f"cus_{n}" for n in range(8)]


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    write_snippet(WEB_SERVERS, "wsgi_app.py", tmp_path)
    (tmp_path / "loaded.py").write_text(
        "import meter_agent\n"
        "from wsgi_app import application\n"
        'meter_agent.record("api_requests", "loaded")\n'
    )
    (tmp_path / "hanging.py").write_text(
        "import threading\n"
        "import wsgi_app\n"
        "def application(environ, start_response):\n"
        "    answer = wsgi_app.application(environ, start_response)\n"
        '    if "hang" in environ["PATH_INFO"]:\n'
        '        print("hanging", flush=True)\n'
        "        threading.Event().wait(30)\n"
        "    return answer\n"
    )
    return tmp_path


def gunicorn(app: str, *arguments: str) -> list[str]:
    return ["gunicorn", "--bind", "127.0.0.1:0", *arguments, app]


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_workers_deliver_each_event_once_when_gunicorn_is_stopped(
    sandbox: Sandbox, url: str, app_dir: Path, kind: str
) -> None:
    command = gunicorn("wsgi_app", "--worker-class", kind, "--workers", "2", "--threads", "2")
    with running(command, url, app_dir) as server:
        assert [server.get(name) for name in NAMES] == ["ok\n"] * len(NAMES)
        output = server.stop()
    assert server.process.returncode == 0
    assert_each_once(sandbox, NAMES)
    assert_quiet_end(output)


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_what_a_preloaded_application_recorded_is_sent_once_and_by_the_master(
    sandbox: Sandbox, url: str, app_dir: Path, kind: str
) -> None:
    command = gunicorn("loaded", "--preload", "--worker-class", kind, "--workers", "2")
    with running(command, url, app_dir) as server:
        for name in NAMES:
            server.get(name)
        output = server.stop()
    assert_each_once(sandbox, [*NAMES, "loaded"])
    assert_quiet_end(output)


def test_a_reload_replaces_the_workers_and_loses_nothing(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    with running(gunicorn("wsgi_app", "--worker-class", "gthread"), url, app_dir) as server:
        server.get("before")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("meter_agent.closed")  # the old worker
        server.get("after")
        output = server.stop()
    assert_each_once(sandbox, ["before", "after"])
    assert_quiet_end(output, final_lines=2)


def test_a_worker_that_has_served_its_number_of_requests_delivers_before_it_ends(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    with running(gunicorn("wsgi_app", "--max-requests", "1"), url, app_dir) as server:
        for number, name in enumerate(NAMES[:3], start=1):
            server.get(name)
            server.wait_for("meter_agent.closed", times=number)
        assert_each_once(sandbox, NAMES[:3])
        assert_quiet_end(server.stop(), final_lines=3)


def test_a_sync_worker_that_is_aborted_for_being_slow_delivers_first(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    with running(gunicorn("hanging", "--timeout", "1"), url, app_dir) as server:
        server.get("quick")
        threading.Thread(target=_get_whatever_comes, args=(server, "hang")).start()
        server.wait_for("meter_agent.closed")
        assert_each_once(sandbox, ["quick", "hang"])
        server.stop()


def test_a_request_that_never_ends_does_not_keep_its_event_from_leaving(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    """Gunicorn kills such a gthread worker, `atexit` never runs, and no hook would help."""
    command = gunicorn("hanging", "--worker-class", "gthread", "--graceful-timeout", "2")
    interval = {"METER_AGENT_FLUSH_INTERVAL_SECONDS": "0.1"}
    with running([*command, "--threads", "2"], url, app_dir, **interval) as server:
        server.get("quick")
        threading.Thread(target=_get_whatever_comes, args=(server, "hang")).start()
        server.wait_for("hanging")
        server.stop()
    assert customers(sandbox) == {"quick": 1, "hang": 1}


def _get_whatever_comes(server: Server, path: str) -> None:
    with contextlib.suppress(OSError):  # the worker is killed
        server.get(path)
