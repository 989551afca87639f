"""Celery: a prefork process delivers before it leaves by `os._exit`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from celery.signals import worker_process_shutdown

from meter_agent.integrations.celery import install
from meter_agent.sandbox import Sandbox
from tests.conftest import MakeAgent
from tests.hosts.servers import (
    CELERY,
    FINAL_LINE,
    assert_each_once,
    customers,
    running,
    write_snippet,
)
from tests.patience import PATIENCE_SECONDS
from tests.process.scripts import environment

NAMES = [f"cus_{n}" for n in range(6)]

CONFIG = """
broker_url = "filesystem://"
broker_transport_options = {
    "data_folder_in": "queue",
    "data_folder_out": "queue",
    "control_folder": "control",
    "polling_interval": 0.1,
}
broker_connection_retry_on_startup = False
worker_prefetch_multiplier = 1
"""


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    """A directory with the application of the page and a broker that is a folder in it."""
    write_snippet(CELERY, "celery_app.py", tmp_path)
    (tmp_path / "celeryconfig.py").write_text(CONFIG)
    for folder in ("queue", "control"):
        (tmp_path / folder).mkdir()
    return tmp_path


def send(app_dir: Path, tasks: Sequence[tuple[str, str]]) -> None:
    """Put (customer, task id) into the queue."""
    script = (
        "import sys, celery_app\n"
        f"for customer, task_id in {tasks!r}:\n"
        "    celery_app.build_report.apply_async([customer], task_id=task_id)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=app_dir,
        env=environment(""),
        timeout=PATIENCE_SECONDS,
        check=True,
    )


def worker(*arguments: str) -> list[str]:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return ["celery", "-A", "celery_app", "worker", "-l", "INFO", *quiet, *arguments]


def run_tasks(
    command: list[str], url: str, app_dir: Path, tasks: Sequence[tuple[str, str]]
) -> tuple[int, str]:
    """Run *tasks* in a worker, stop it; return how many processes ran some, and the output."""
    send(app_dir, tasks)
    with running(command, url, app_dir) as server:
        server.wait_for(r"Task celery_app\.build_report\S+ succeeded", times=len(tasks))
        output = server.stop()
    assert server.process.returncode == 0
    assert "Traceback" not in output, output
    processes = set(re.findall(r"INFO/(\S+)\] Task \S+ succeeded", output))
    return len(processes), output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--concurrency", "2"],
        ["--concurrency", "1", "--max-tasks-per-child", "2"],
        ["--pool", "threads", "--concurrency", "2"],
    ],
    ids=["prefork", "replaced after two tasks", "threads"],
)
def test_a_worker_delivers_each_event_once_when_it_is_stopped(
    sandbox: Sandbox, url: str, app_dir: Path, arguments: list[str]
) -> None:
    tasks = [(name, name) for name in NAMES]
    processes, output = run_tasks(worker(*arguments), url, app_dir, tasks)
    assert_each_once(sandbox, NAMES)
    assert len(FINAL_LINE.findall(output)) == processes
    if "--max-tasks-per-child" in arguments:
        assert processes == 3


def test_installing_twice_connects_once_and_the_signal_closes_every_agent(
    make_agent: MakeAgent,
) -> None:
    before = list(worker_process_shutdown.receivers)
    agents = [make_agent(), make_agent()]
    install()
    install()
    try:
        assert len(worker_process_shutdown.receivers) == len(before) + 1
        worker_process_shutdown.send(sender=None, pid=1, exitcode=0)
        assert [agent.closed for agent in agents] == [True, True]
    finally:
        worker_process_shutdown.receivers = before


def test_a_task_that_runs_twice_is_billed_once(sandbox: Sandbox, url: str, app_dir: Path) -> None:
    tasks = [("cus_1", "one"), ("cus_1", "one"), ("cus_1", "other")]
    _, output = run_tasks(worker("--pool", "solo"), url, app_dir, tasks)
    assert customers(sandbox) == {"cus_1": 2}
    assert len(FINAL_LINE.findall(output)) == 1
