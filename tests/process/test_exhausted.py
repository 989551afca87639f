"""`record()` where the process has no descriptors, threads, memory, files or stack left."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter_agent._log import ERROR, write
from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import ledger, run


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


LIMITS = """
import resource
def limit(which, value):
    before, most = resource.getrlimit(which)
    resource.setrlimit(which, (value, most))
    return before
"""

IN_A_CHROOT = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]

LOADED = """
with MeterAgent(sandbox_url=URL) as first:  # afterwards everything that sending needs is loaded
    first.record("tokens", "cus_first")
    assert first.flush(30)
"""


def test_without_descriptors_the_default_agent_refuses_and_tries_again(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    done = run(
        LIMITS
        + f"""
os.environ["METER_AGENT_SANDBOX_URL"] = URL
os.environ["METER_AGENT_SPOOL_DIR"] = {str(tmp_path / "spool")!r}
files = limit(resource.RLIMIT_NOFILE, 3)
print([meter_agent.record("tokens", "cus_1") for n in range(3)])
print(meter_agent.stats().recorded, dict(meter_agent.stats().dropped))
limit(resource.RLIMIT_NOFILE, files)
print(meter_agent.record("tokens", "cus_1"), meter_agent.flush(30))
""",
        server.url,
    )
    assert done.stdout.splitlines() == [
        "[False, False, False]",
        "3 {'not_configured': 3}",
        "True True",
    ]
    assert done.stderr.count("meter_agent.not_configured") == 1
    final = ledger(done)
    assert (final["recorded"], final["dropped"]) == (4, {"not_configured": 3})
    assert sandbox.totals()["accepted"] == 1


def test_a_key_file_that_no_descriptor_is_left_for_is_read_by_a_later_call(
    server: SandboxServer, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sk_test_123")
    done = run(
        LIMITS
        + f"""
os.environ["METER_AGENT_API_KEY_FILE"] = {str(tmp_path / "key")!r}
os.environ["METER_AGENT_SHUTDOWN_TIMEOUT_SECONDS"] = "0"
files = limit(resource.RLIMIT_NOFILE, 3)
print(meter_agent.record("tokens", "cus_1"))
limit(resource.RLIMIT_NOFILE, files)
print(meter_agent.record("tokens", "cus_1"))
print(meter_agent.close(0).recorded)
""",
        server.url,
    )
    assert done.stdout.splitlines() == ["False", "True", "2"]


def test_a_process_that_never_had_descriptors_says_at_its_end_what_was_refused(
    server: SandboxServer, tmp_path: Path
) -> None:
    done = run(
        LIMITS
        + f"""
os.environ["METER_AGENT_SANDBOX_URL"] = URL
os.environ["METER_AGENT_SPOOL_DIR"] = {str(tmp_path / "spool")!r}
limit(resource.RLIMIT_NOFILE, 3)
for n in range(3):
    assert not meter_agent.record("tokens", "cus_1")
""",
        server.url,
    )
    assert "meter_agent.events_dropped" in done.stderr.splitlines()[-1]
    assert "'events': 3" in done.stderr


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
def test_without_descriptors_an_agent_holds_events_and_sends_them_later(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, spool: bool
) -> None:
    settings = f", spool_dir={str(tmp_path / 'spool')!r}" if spool else ""
    done = run(
        LIMITS
        + LOADED
        + f"""
agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60{settings})
files = limit(resource.RLIMIT_NOFILE, 3)
print([agent.record("tokens", "cus_1") for n in range(3)], agent.flush(0.1))
limit(resource.RLIMIT_NOFILE, files)
print(agent.record("tokens", "cus_1"), agent.flush(30))
""",
        server.url,
    )
    assert done.stdout.splitlines() == ["[True, True, True] False", "True True"]
    assert sandbox.totals()["accepted"] == 5


def test_without_threads_events_are_sent_by_the_thread_that_flushes_and_by_a_sender_later(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    """Root has as many threads as it likes, so the script becomes another user first."""
    done = run(
        LIMITS
        + LOADED
        + """
if os.geteuid() == 0:
    os.setgid(54321)
    os.setuid(54321)
threads = limit(resource.RLIMIT_NPROC, 1)
try:
    threading.Thread(target=print).start()
except RuntimeError:
    print("no threads")
agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=0.01)
print(agent.record("tokens", "cus_1"), threading.active_count(), agent.flush(30))
limit(resource.RLIMIT_NPROC, threads)
print(agent.record("tokens", "cus_1"))
while agent.stats().delivered < 2:
    time.sleep(0.001)
limit(resource.RLIMIT_NPROC, 1)
""",
        server.url,
    )
    assert done.stdout.splitlines() == ["no threads", "True 1 True", "True"]
    assert ledger(done)["delivered"] == 2


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("left", [64, 12_000], ids=["64 KiB", "12 MiB"])
def test_without_address_space_events_are_refused_and_counted(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, left: int, spool: bool
) -> None:
    settings = f", spool_dir={str(tmp_path / 'spool')!r}" if spool else ""
    done = run(
        LIMITS
        + f"""
threading.stack_size(64 << 20)  # no thread can be started while memory is short
agent = MeterAgent(sandbox_url=URL, buffer_events=10_000_000{settings})
labels = {{"label": "x" * 50}}
refused = raised = False
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
space = limit(resource.RLIMIT_AS, size + {left} * 1024)
while not (refused or raised):  # nothing here takes memory but the call
    try:
        refused = not agent.record("tokens", "cus_1", 1, payload=labels)
    except BaseException:
        raised = True
limit(resource.RLIMIT_AS, space)
threading.stack_size(0)
print(refused, raised)
print(agent.stats().balanced, agent.stats().dropped_total, agent.record("tokens", "cus_2"))
print(agent.close(120).dropped_total)
""",
        server.url,
    )
    assert done.stdout.splitlines() == ["True False", "True 1 True", "1"]
    final = ledger(done)
    assert final["dropped"] == {"overflow": 1}
    assert final["delivered"] == final["recorded"] - 1 == sandbox.totals()["accepted"]


def test_where_the_stack_ends_nothing_is_held_of_what_was_refused(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        agent = MeterAgent(sandbox_url=URL)
        answers = []
        def dive():
            try:
                answers.append(agent.record("tokens", "cus_1"))
            except RecursionError:  # the call itself did not fit
                pass
            dive()
        for limit in range(200, 240):
            sys.setrecursionlimit(limit)
            try:
                dive()
            except RecursionError:
                pass
        sys.setrecursionlimit(1000)
        final = agent.close(60)
        print(final.delivered == sum(answers), final.delivered > 1000, final.balanced)
        """,
        server.url,
    )
    assert done.stdout.strip() == "True True True"


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
def test_in_a_chroot_entered_after_the_import_record_raises_nothing(
    server: SandboxServer, tmp_path: Path, spool: bool
) -> None:
    """What the first event would load is out of reach there."""
    spooled = f'os.environ["METER_AGENT_SPOOL_DIR"] = {str(tmp_path / "spool")!r}' if spool else ""
    done = run(
        f"""
        os.environ["METER_AGENT_SANDBOX_URL"] = URL
        os.environ["METER_AGENT_SHUTDOWN_TIMEOUT_SECONDS"] = "0.5"
        {spooled}
        os.chroot({str(tmp_path)!r})
        os.chdir("/")
        print([meter_agent.record("tokens", "cus_1") for n in range(3)])
        print(meter_agent.stats().recorded, meter_agent.stats().balanced)
        print(dict(meter_agent.close().dropped))
        """,
        server.url,
        within=IN_A_CHROOT,
    )
    reason = "not_configured" if spool else "shutdown"
    assert done.stdout.splitlines() == [
        str([not spool] * 3),
        "3 True",
        str({reason: 3}),
    ]
    assert "ModuleNotFoundError" in done.stderr


def test_an_agent_that_is_built_before_the_chroot_delivers_in_it(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    done = run(
        f"""
        agent = MeterAgent(sandbox_url=URL, spool_dir={str(tmp_path / "spool")!r})
        os.chroot({str(tmp_path)!r})
        os.chdir("/")
        print(agent.record("tokens", "cus_1"), agent.flush(30))
        """,
        server.url,
        within=IN_A_CHROOT,
    )
    assert done.stdout.strip() == "True True"
    assert sandbox.totals()["accepted"] == 1


class _NoMemory(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise MemoryError


def test_a_log_line_that_cannot_be_written_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = _NoMemory()
    logging.getLogger("meter_agent").addHandler(handler)
    try:
        write("meter_agent.closed", ERROR)
    finally:
        logging.getLogger("meter_agent").removeHandler(handler)
    monkeypatch.setitem(sys.modules, "logging", None)  # as where its file cannot be opened
    write("meter_agent.closed", ERROR)
