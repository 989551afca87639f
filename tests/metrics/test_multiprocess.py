"""Metrics of several processes at once: prometheus_client's multiprocess mode."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.docs.test_docs import DOCS
from tests.hosts.servers import Server, customers, running, write_snippet
from tests.metrics.scrapes import Samples, fetch, from_files, samples_of
from tests.process.scripts import run

MONITOR = DOCS / "howto" / "monitor.md"
RECORDED = "meter_agent_events_recorded_total", ""
DELIVERED = "meter_agent_events_delivered_total", ""
WAITING = "meter_agent_buffer_events", ""
CAPACITY = "meter_agent_buffer_capacity_events", ""


@pytest.fixture
def url(sandbox: Sandbox) -> Iterator[str]:
    with SandboxServer(sandbox) as server:
        yield server.url


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "metrics"
    made.mkdir()
    return made


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    for name in ("metrics_wsgi.py", "gunicorn.conf.py"):
        write_snippet(MONITOR, name, tmp_path)
    # A worker that is held in a request leaves the next one to the other worker. Opening the pipe
    # waits until the test opens its end of it.
    (tmp_path / "held.py").write_text(
        "import metrics_wsgi, meter_agent\n"
        'meter_agent.record("api_requests", "loaded")\n'
        "def application(environ, start_response):\n"
        "    answer = metrics_wsgi.application(environ, start_response)\n"
        '    if environ["PATH_INFO"].endswith("held"):\n'
        '        print("held", flush=True)\n'
        '        open("pipe").close()\n'
        "    return answer\n"
    )
    os.mkfifo(tmp_path / "pipe")
    snippet = tmp_path / "metrics_wsgi.py"
    often = snippet.read_text().replace("register()", "register(publish_seconds=0.02)")
    snippet.write_text(often)
    return tmp_path


class Scraped:
    """A gunicorn with two workers, and a scrape of whichever answers."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.address = server.wait_for(r"http://127\.0\.0\.1:\d+")[0]

    def until(self, expected: Samples) -> Samples:
        """Scrape until the metrics have got there: other processes may just be writing them."""
        deadline = time.monotonic() + 30
        while True:
            try:
                samples = samples_of(fetch(f"{self.address}/metrics"))
            except urllib.error.HTTPError as error:
                raise AssertionError(self._server.stop()) from error
            if samples | expected == samples:
                return samples
            assert time.monotonic() < deadline, samples


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_a_scrape_of_one_worker_tells_of_all_and_the_files_of_all_that_was_delivered(
    sandbox: Sandbox, url: str, app_dir: Path, directory: Path, preload: list[str]
) -> None:
    settings = {
        "PROMETHEUS_MULTIPROC_DIR": str(directory),
        "METER_AGENT_BUFFER_EVENTS": "1000",
    }
    command = ["gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", *preload, "held"]
    with running(command, url, app_dir, **settings) as server:
        scraped = Scraped(server)
        holding = threading.Thread(target=server.get, args=("held",))
        holding.start()
        server.wait_for("held")
        for _ in range(3):
            server.get("cus_1")
        loaded = 1 if preload else 2
        # One of the two workers, which answers no scrape, is held all the time; with a preloaded
        # application the master has an agent as well.
        recorded, agents = 4 + loaded, 3 if preload else 2
        scraped.until({RECORDED: recorded, WAITING: recorded, CAPACITY: 1000.0 * agents})
        (app_dir / "pipe").open("w").close()
        holding.join()
        server.stop()
    assert customers(sandbox) == {"cus_1": 3, "held": 1, "loaded": loaded}
    samples = from_files(directory)
    assert samples[DELIVERED] == samples[RECORDED] == 4 + loaded
    requests = samples["meter_agent_requests_total", ""]
    assert samples["meter_agent_request_duration_seconds_count", ""] == requests
    assert samples["meter_agent_request_duration_seconds_bucket", "+Inf"] == requests
    assert samples["meter_agent_request_duration_seconds_sum", ""] > 0


def test_the_gauges_of_a_killed_worker_go_and_its_counters_stay(
    url: str, app_dir: Path, directory: Path
) -> None:
    settings = {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    command = ["gunicorn", "--bind", "127.0.0.1:0", "metrics_wsgi"]
    with running(command, url, app_dir, **settings) as server:
        scraped = Scraped(server)
        server.get("cus_1")
        scraped.until({RECORDED: 1, WAITING: 1})
        worker = int(server.wait_for(r"Booting worker with pid: (\d+)")[1])
        os.kill(worker, signal.SIGKILL)
        server.wait_for("Booting worker", times=2)
        scraped.until({RECORDED: 1, WAITING: 0})
        server.stop()


PRELUDE = """
import os
os.environ["PROMETHEUS_MULTIPROC_DIR"] = {directory!r}
from meter_agent.integrations.prometheus import register
"""


def test_a_default_agent_that_takes_the_place_of_another_goes_on_counting(
    sandbox: Sandbox, url: str, directory: Path
) -> None:
    script = """
    register(publish_seconds=3600)
    for events in (2, 3):
        meter_agent.configure(sandbox_url=URL)
        for _ in range(events):
            meter_agent.record("tokens", "cus_1")
        meter_agent.close()
    """
    run(PRELUDE.format(directory=str(directory)) + _dedented(script), url)
    assert from_files(directory)[DELIVERED] == sandbox.totals()["accepted"] == 5


def test_an_agent_that_was_replaced_is_counted_up_to_that_moment(url: str, directory: Path) -> None:
    script = """
    from meter_agent.integrations import _prometheus_files
    register(publish_seconds=3600)
    for events in (2, 3):
        meter_agent.configure(sandbox_url=URL)
        meter_agent.record("tokens", "cus_1")
        _prometheus_files._publishing[0]._publish_last(time.monotonic() + 20)
        for _ in range(events - 1):
            meter_agent.record("tokens", "cus_1")
    meter_agent.close()
    """
    run(PRELUDE.format(directory=str(directory)) + _dedented(script), url)
    assert from_files(directory)[RECORDED] == 5


def test_an_agent_of_ones_own_is_counted_until_its_end(
    sandbox: Sandbox, url: str, directory: Path
) -> None:
    script = """
    agent = MeterAgent(sandbox_url=URL)
    register(agent=agent, publish_seconds=3600)
    agent.record("tokens", "cus_1")
    """
    run(PRELUDE.format(directory=str(directory)) + _dedented(script), url)
    samples = from_files(directory)
    assert samples[DELIVERED] == sandbox.totals()["accepted"] == 1
    assert samples[WAITING] == 0
    assert samples["meter_agent_last_success_timestamp_seconds", ""] > time.time() - 60


def test_a_child_counts_its_own_events_and_none_of_its_parents(
    sandbox: Sandbox, url: str, directory: Path
) -> None:
    script = """
    register(publish_seconds=0.02)
    meter_agent.configure(sandbox_url=URL)
    for _ in range(10):
        meter_agent.record("tokens", "cus_parent")
    meter_agent.flush(20)
    child = os.fork()
    for _ in range(1 if child else 2):
        meter_agent.record("tokens", "cus_child")
    meter_agent.close()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    """
    run(PRELUDE.format(directory=str(directory)) + _dedented(script), url)
    assert from_files(directory)[DELIVERED] == sandbox.totals()["accepted"] == 13


def test_a_child_never_inherits_the_lock_of_prometheus_client_while_it_is_held(
    url: str, directory: Path
) -> None:
    script = """
    import prometheus_client
    counter = prometheus_client.Counter("requests", "The application's own.")
    from prometheus_client.mmap_dict import MmapedDict
    write = MmapedDict.write_value
    def write_slowly(*value):
        time.sleep(0.001)  # a slow disk: the lock is held for long enough to fork in between
        write(*value)
    MmapedDict.write_value = write_slowly
    register(publish_seconds=1e-6)
    for _ in range(8):
        child = os.fork()
        if not child:
            counter.inc()
            os._exit(0)
        deadline = time.monotonic() + 10
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                sys.exit("a child hangs")
    """
    done = run(PRELUDE.format(directory=str(directory)) + _dedented(script), url)
    assert (done.returncode, done.stderr) == (0, "")
    assert from_files(directory)["requests_total", ""] == 8


def test_a_child_that_inherits_that_lock_from_the_application_still_ends_in_time(
    url: str, directory: Path
) -> None:
    script = """
    import prometheus_client
    from prometheus_client.mmap_dict import MmapedDict
    counter = prometheus_client.Counter("requests", "The application's own.")
    register(publish_seconds=3600)
    meter_agent.configure(sandbox_url=URL)
    inside, released = threading.Event(), threading.Event()
    write = MmapedDict.write_value
    def write_and_wait(*value):
        inside.set()
        released.wait(30)
        write(*value)
    MmapedDict.write_value = write_and_wait
    counting = threading.Thread(target=counter.inc)
    counting.start()
    inside.wait(30)
    MmapedDict.write_value = write
    child = os.fork()
    if not child:
        meter_agent.record("tokens", "cus_1")
        began = time.monotonic()
        final = meter_agent.close(2)
        print(final.delivered, time.monotonic() - began < 10, flush=True)
        os._exit(0)
    released.set()
    os.waitpid(child, 0)
    """
    done = run(PRELUDE.format(directory=str(directory)) + _dedented(script), url)
    assert done.stdout.split() == ["1", "True"]


def test_a_directory_that_is_gone_is_told_once_and_hurts_no_event(
    sandbox: Sandbox, url: str, directory: Path
) -> None:
    script = """
    import shutil
    register(publish_seconds=0.001)
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    child = os.fork()
    if child:
        sys.exit(os.waitpid(child, 0)[1])
    meter_agent.configure(sandbox_url=URL)
    meter_agent.record("tokens", "cus_1")
    meter_agent.flush(20)
    meter_agent.close()
    """
    done = run(PRELUDE.format(directory=str(directory)) + _dedented(script), url)
    assert done.returncode == 0
    assert done.stderr.count("meter_agent.metrics_unwritable") == 1
    assert sandbox.totals()["accepted"] == 1


def test_a_directory_that_was_never_there_is_an_error_at_once(url: str, directory: Path) -> None:
    script = """
    try:
        register()
    except OSError as error:
        print(error)
    """
    done = run(PRELUDE.format(directory=str(directory / "nowhere")) + _dedented(script), url)
    assert str(directory / "nowhere") in done.stdout


def test_it_is_registered_once_and_not_without_a_pause(url: str, directory: Path) -> None:
    script = """
    for seconds in (0, -1, float("nan"), 60, 60):
        try:
            register(publish_seconds=seconds)
        except ValueError as error:
            print(error)
    """
    done = run(PRELUDE.format(directory=str(directory)) + _dedented(script), url)
    assert done.stdout.splitlines() == [
        "publish_seconds=0 must be above zero",
        "publish_seconds=-1 must be above zero",
        "publish_seconds=nan must be above zero",
        "the metrics of this process are published already; register once",
    ]


def _dedented(script: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in script.splitlines())
