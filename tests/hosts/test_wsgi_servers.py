"""waitress and development servers, where the agent handles SIGTERM; uWSGI, which does it."""

from __future__ import annotations

import http.client
import itertools
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meter_agent.sandbox import Fault, Sandbox
from tests.docs.test_docs import DOCS
from tests.hosts.servers import (
    Server,
    assert_each_once,
    assert_quiet_end,
    customers,
    running,
    write_snippet,
)

NAMES = [f"cus_{n}" for n in range(8)]
WAITRESS = ["waitress", "--listen=127.0.0.1:0", "--threads=4", "serve_app:application"]
PAGES = {
    "serve_app.py": "web-servers.md",
    "wsgi_app.py": "web-servers.md",
    "serve_flask.py": "flask.md",
    "shop_flask.py": "flask.md",
    "shop_wsgi.py": "django.md",
    "shop_django.py": "django.md",
    "shop_metering.py": "django.md",
}
MANAGE = """
import logging, sys
logging.basicConfig(level=logging.INFO)
import shop_django
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    for name, page in PAGES.items():
        write_snippet(DOCS / "howto" / page, name, tmp_path)
    (tmp_path / "manage.py").write_text(MANAGE)
    (tmp_path / "told_flask.py").write_text(
        "import logging\nlogging.basicConfig(level=logging.INFO)\nfrom serve_flask import app\n"
    )
    return tmp_path


@contextmanager
def under_load(ask: Callable[[str], object]) -> Iterator[list[str]]:
    """Ask for customers one after another in four threads, until the server is gone.

    Yields who was answered.
    """
    numbers, answered = itertools.count(), list[str]()

    def ask_until_gone() -> None:
        try:
            while True:
                name = f"load_{next(numbers)}"
                ask(name)
                answered.append(name)
        except (OSError, http.client.HTTPException):  # gone, or cut off in the middle
            return

    threads = [threading.Thread(target=ask_until_gone) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        for thread in threads:
            thread.join()


def assert_what_was_answered_is_billed(
    sandbox: Sandbox, answered: list[str], output: str, *, threads: int = 4
) -> None:
    """But for what was answered while the process ended: that is refused, and counted.

    Each thread of the server may answer one more request behind the last line of the log.
    """
    assert sandbox.totals()["duplicates"] == 0
    refused = sum(map(int, re.findall(r"dropped=.*?'closed': (\d+)", output)))
    missing = set(answered) - set(customers(sandbox))
    assert len(missing) <= refused + threads, output
    assert "Traceback" not in output, output


def test_waitress_delivers_what_it_answers_when_it_is_stopped(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    with running(WAITRESS, url, app_dir) as server:
        assert [server.get(name) for name in NAMES] == ["ok\n"] * len(NAMES)
        output = server.stop()
    assert server.process.returncode == -signal.SIGTERM
    assert_each_once(sandbox, NAMES)
    assert_quiet_end(output, final_lines=1)


def test_waitress_under_load_bills_what_it_answers_until_its_end(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    with running(WAITRESS, url, app_dir) as server:
        server.get("first")
        with under_load(server.get) as answered:
            while len(answered) < 200:
                time.sleep(0.001)
            before = len(answered)
            output = server.stop()
    assert len(answered) > before
    assert_what_was_answered_is_billed(sandbox, answered, output)


def test_requests_go_on_while_the_agent_waits_for_stripe(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    """The answer to the first batch takes two seconds, and requests are billed meanwhile."""
    sandbox.add_fault(Fault("delay", seconds=2.0, times=1))
    settings = {"METER_AGENT_SHUTDOWN_TIMEOUT_SECONDS": "30"}
    with running(WAITRESS, url, app_dir, **settings) as server:
        server.get("before")
        server.process.send_signal(signal.SIGTERM)
        while not any(request.events for request in sandbox.requests):
            time.sleep(0.001)
        assert [server.get(name) for name in NAMES] == ["ok\n"] * len(NAMES)
        output = server.wait()
    assert_each_once(sandbox, [*NAMES, "before"])
    assert_quiet_end(output, final_lines=1)


def test_the_variable_alone_comes_too_late_and_the_log_says_what_to_do(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    command = [*WAITRESS[:-1], "wsgi_app:application"]
    with running(command, url, app_dir, METER_AGENT_HANDLE_SIGTERM="true") as server:
        server.get("cus_1")
        server.wait_for("call meter_agent.configure")
        output = server.stop()
    assert "ERROR:meter_agent:meter_agent.sigterm_not_handled" in output
    assert customers(sandbox) == {}


def test_the_variable_and_get_agent_where_the_server_loads_the_module_do(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    (app_dir / "by_variable.py").write_text(
        "import meter_agent\nfrom wsgi_app import application\nmeter_agent.get_agent()\n"
    )
    command = [*WAITRESS[:-1], "by_variable:application"]
    with running(command, url, app_dir, METER_AGENT_HANDLE_SIGTERM="true") as server:
        server.get("cus_1")
        output = server.stop()
    assert_each_once(sandbox, ["cus_1"])
    assert_quiet_end(output, final_lines=1)


SHOPS = {
    "flask run": ["flask", "--app", "told_flask", "run", "--port", "0"],
    "runserver": ["manage", "runserver", "--noreload", "127.0.0.1:0"],
    "waitress, Flask": [*WAITRESS[:-1], "told_flask:app"],
    "waitress, Django": [*WAITRESS[:-1], "shop_wsgi:application"],
}


def answer(server: Server, prompt: str) -> None:
    text = server.ask(f"/answer?prompt={prompt}", Authorization="Bearer secret-of-123")
    assert text == prompt.upper()


@pytest.mark.parametrize("shop", SHOPS)
def test_the_shops_of_the_guides_deliver_when_their_server_is_stopped(
    sandbox: Sandbox, url: str, app_dir: Path, shop: str
) -> None:
    with running(SHOPS[shop], url, app_dir) as server:
        for name in NAMES:
            answer(server, name)
        output = server.stop()
    assert server.process.returncode == -signal.SIGTERM
    names = [entry["event_name"] for entry in sandbox.ledger()]
    assert sorted(names) == ["api_requests"] * len(NAMES) + ["output_tokens"] * len(NAMES)
    assert sandbox.totals()["duplicates"] == 0
    assert "Traceback" not in output


def uwsgi(*arguments: str) -> list[str]:
    return [
        str(Path(sys.executable).with_name("uwsgi")),
        "--home",
        sys.prefix,
        "--http-socket",
        "127.0.0.1:0",
        "--need-app",
        "--enable-threads",
        *arguments,
    ]


GRACEFUL = ["--master", "--exit-on-reload"]
"""SIGHUP then ends it when the open requests are done. At SIGTERM a worker that
is busy with a request ends without `atexit` (uwsgi_python_atexit in python_plugin.c)."""

UWSGI: dict[str, tuple[list[str], int]] = {
    "with forked workers": (["--processes", "2", "--threads", "2"], 1),
    "with lazy applications": (["--processes", "2", "--lazy-apps"], 2),
}
"""How it is started, and how often the application is loaded."""


@pytest.mark.parametrize("how", UWSGI)
def test_uwsgi_delivers_when_it_is_stopped(
    sandbox: Sandbox, url: str, app_dir: Path, how: str
) -> None:
    arguments, loaded = UWSGI[how]
    command = uwsgi("--module", "serve_app:application", *GRACEFUL, *arguments)
    with running(command, url, app_dir) as server:
        server.wait_for(r"WSGI app 0 .* ready in", times=loaded)
        assert [server.get(name) for name in NAMES] == ["ok\n"] * len(NAMES)
        output = server.stop(signal.SIGHUP)
    assert_each_once(sandbox, NAMES)
    assert_quiet_end(output)


def test_uwsgi_under_load_bills_what_it_answers(sandbox: Sandbox, url: str, app_dir: Path) -> None:
    arguments = [*GRACEFUL, "--processes", "2", "--threads", "2"]
    with running(uwsgi("--module", "serve_app:application", *arguments), url, app_dir) as server:
        server.get("first")
        with under_load(server.get) as answered:
            while len(answered) < 200:
                time.sleep(0.001)
            output = server.stop(signal.SIGHUP)
    assert_what_was_answered_is_billed(sandbox, answered, output)


def test_an_agent_made_in_a_uwsgi_worker_leaves_sigterm_to_uwsgi_and_says_so(
    sandbox: Sandbox, url: str, app_dir: Path
) -> None:
    """Its handler is written in C; with another one in its place the worker would never end."""
    settings = {"METER_AGENT_HANDLE_SIGTERM": "true"}
    command = uwsgi("--module", "wsgi_app:application", *GRACEFUL)
    with running(command, url, app_dir, **settings) as server:
        server.get("cus_1")
        output = server.stop(signal.SIGHUP)
    assert "not written in Python" in output
    assert_each_once(sandbox, ["cus_1"])
