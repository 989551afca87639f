"""SIGTERM: what is recorded while the agent drains, and handlers that are not Python's."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import finish, ledger, run, start, wait_for


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


SERVE = """
agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60, handle_sigterm=True, {settings})
agent.record("tokens", "cus_before")
draining = threading.Event()
def watch():
    before = signal.getsignal(signal.SIGTERM)
    while signal.getsignal(signal.SIGTERM) is before:
        time.sleep(0.001)
    draining.set()
threading.Thread(target=watch, daemon=True).start()
print("ready")
while not draining.is_set():
    time.sleep(0.001)
{serve}
wait_for_a_signal()
"""


def test_what_is_recorded_while_sigterm_drains_is_delivered(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    """The answer to the first batch is held back until the others have been recorded."""
    sandbox.add_fault(Fault("delay", seconds=2.0, times=1))
    process = start(
        SERVE.format(
            settings="shutdown_timeout_seconds=20",
            serve="""
while not agent.stats().in_flight:
    time.sleep(0.001)
print(sum(agent.record("tokens", "cus_during") for n in range(500)))
""",
        ),
        server.url,
    )
    wait_for(process, "ready")
    process.terminate()
    done = finish(process)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout.strip() == "500"
    assert ledger(done)["delivered"] == 501
    assert sandbox.totals()["accepted"] == 501


@pytest.mark.parametrize(
    ("spool", "refused_from"),
    [(False, 3.0), (True, 4.0)],
    ids=["in memory, until the last requests", "in a spool, until the end"],
)
def test_in_an_outage_recording_goes_on_almost_until_the_deadline(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, spool: bool, refused_from: float
) -> None:
    sandbox.add_fault(Fault("hang"))
    settings = "shutdown_timeout_seconds=4"
    if spool:
        settings += f", spool_dir={str(tmp_path / 'spool')!r}"
    process = start(
        SERVE.format(
            settings=settings,
            serve="""
began = time.monotonic()
while agent.record("tokens", "cus_during"):
    time.sleep(0.001)
sys.stdout.write(f"{time.monotonic() - began}")
sys.stdout.flush()
""",
        ),
        server.url,
    )
    wait_for(process, "ready")
    began = time.monotonic()
    process.terminate()
    done = finish(process)
    ended = time.monotonic() - began
    assert done.returncode == -signal.SIGTERM
    assert 3.9 < ended < 12
    if done.stdout:  # with a spool the end may come before the first refusal
        assert refused_from - 0.5 < float(done.stdout)
    else:
        assert spool
    final = ledger(done)
    assert (final.get("left_in_spool", 0) > 100) is spool


def test_an_agent_that_others_record_with_ends_as_soon_as_nothing_waits(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    process = start(
        SERVE.format(
            settings="shutdown_timeout_seconds=60",
            serve="""
while True:
    agent.record("tokens", "cus_during")
    time.sleep(0.3)
""",
        ),
        server.url,
    )
    wait_for(process, "ready")
    began = time.monotonic()
    process.terminate()
    done = finish(process)
    assert time.monotonic() - began < 30
    assert done.returncode == -signal.SIGTERM
    final = ledger(done)
    assert final["delivered"] == final["recorded"]


def test_two_agents_are_both_recorded_with_while_they_drain(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    """One of them has nothing to send, the other waits for an answer."""
    sandbox.add_fault(Fault("delay", seconds=2.0, times=1))
    process = start(
        """
        idle = MeterAgent(sandbox_url=URL, flush_interval_seconds=60)
        """
        + SERVE.format(
            settings="shutdown_timeout_seconds=20",
            serve="""
while not agent.stats().in_flight:
    time.sleep(0.001)
print(sum(idle.record("tokens", "cus_during") for n in range(500)))
""",
        ).replace("\n", "\n        "),
        server.url,
    )
    wait_for(process, "ready")
    process.terminate()
    done = finish(process)
    assert done.stdout.strip() == "500"
    assert sandbox.totals()["accepted"] == 501


def test_threads_that_outlive_the_main_thread_record_while_the_exit_drains(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    sandbox.add_fault(Fault("delay", seconds=2.0, times=1))
    done = run(
        """
        agent = MeterAgent(
            sandbox_url=URL, flush_interval_seconds=60, shutdown_timeout_seconds=20
        )
        agent.record("tokens", "cus_before")
        def answer_requests():
            while not agent.stats().in_flight:
                time.sleep(0.001)
            print(sum(agent.record("tokens", "cus_during") for n in range(500)))
        threading.Thread(target=answer_requests, daemon=True).start()
        """,
        server.url,
    )
    assert done.stdout.strip() == "500"
    assert ledger(done)["delivered"] == 501


def test_the_exit_after_sigterm_gets_no_second_budget(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    sandbox.add_fault(Fault("hang"))
    process = start(
        """
        agent = MeterAgent(sandbox_url=URL, handle_sigterm=True, shutdown_timeout_seconds=6)
        agent.record("tokens", "cus_1")
        before = signal.getsignal(signal.SIGTERM)
        print("ready")
        while signal.getsignal(signal.SIGTERM) is before:
            time.sleep(0.001)
        time.sleep(4)  # the main thread has something to finish
        """,
        server.url,
    )
    wait_for(process, "ready")
    began = time.monotonic()
    process.terminate()
    done = finish(process)
    assert time.monotonic() - began < 9.5
    assert done.returncode == -signal.SIGTERM


C_HANDLER = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.signal.restype = ctypes.c_void_p
libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
leave = ctypes.cast(libc._exit, ctypes.c_void_p).value  # called with the number of the signal
libc.signal(15, leave)
"""


PYTHON_STARTS_AFTERWARDS = """
for name in ("signal", "_signal"):
    sys.modules.pop(name, None)  # the next import asks the kernel, as the start of Python does
import signal
assert signal.getsignal(signal.SIGTERM) is None
"""


@pytest.mark.parametrize("before", ["", PYTHON_STARTS_AFTERWARDS], ids=["after", "before"])
def test_a_handler_that_was_installed_in_c_stays_and_the_log_says_so(
    sandbox: Sandbox, server: SandboxServer, before: str
) -> None:
    """Its host knows how to end the process. It may be older than Python: uWSGI, or younger."""
    process = start(
        before
        + """
agent = MeterAgent(sandbox_url=URL, handle_sigterm=True)
assert agent.record("tokens", "cus_1") and agent.flush(30)
print("ready")
wait_for_a_signal()
""",
        server.url,
        before=C_HANDLER,
    )
    wait_for(process, "ready")
    process.terminate()
    done = finish(process)
    assert done.returncode == signal.SIGTERM  # `_exit(15)`: the handler from C
    assert done.stderr.count("meter_agent.sigterm_not_handled") == 1
    assert "not written in Python" in done.stderr


def test_a_host_that_lets_no_handler_be_installed_is_left_alone_and_the_log_says_so(
    server: SandboxServer,
) -> None:
    """As mod_wsgi does, by `WSGIRestrictSignal`."""
    done = run(
        """
        signal.signal = lambda *_: None
        MeterAgent(sandbox_url=URL, handle_sigterm=True).close()
        """,
        server.url,
    )
    assert "the host lets no application install a signal handler" in done.stderr


IN_A_SUBINTERPRETER = """
import sys
if sys.version_info >= (3, 13):
    import _interpreters as interpreters
    made = interpreters.create("legacy")
else:
    import _xxsubinterpreters as interpreters
    made = interpreters.create(**({"isolated": False} if sys.version_info >= (3, 12) else {}))
def inside(script):
    interpreters.run_string(made, script)
"""


def test_a_subinterpreter_cannot_handle_sigterm_and_the_log_says_so(
    server: SandboxServer,
) -> None:
    """As uWSGI makes one for each mounted application: its main thread looks like the real one."""
    script = (
        "import logging, sys; logging.basicConfig(stream=sys.stderr)\n"
        "from meter_agent import MeterAgent\n"
        f"MeterAgent(sandbox_url={server.url!r}, handle_sigterm=True).close()\n"
    )
    done = run(f"inside({script!r})", server.url, before=IN_A_SUBINTERPRETER)
    assert "meter_agent.sigterm_not_handled" in done.stderr


def test_a_child_that_has_reset_sigterm_may_have_it_handled_again(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        meter_agent.configure(sandbox_url=URL, handle_sigterm=True)
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            meter_agent.configure(sandbox_url=URL, handle_sigterm=True, flush_interval_seconds=60)
            assert meter_agent.record("tokens", "cus_1")
            os.write(tell, b"recorded")
            time.sleep(180)
        os.read(ready, 8)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))
        """,
        server.url,
    )
    assert int(done.stdout) == -signal.SIGTERM
    assert sandbox.totals()["accepted"] == 1


def test_a_handler_that_the_application_installs_later_is_not_replaced_by_a_second_agent(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        MeterAgent(sandbox_url=URL, handle_sigterm=True)
        ours = signal.getsignal(signal.SIGTERM)
        def handle(*arguments):
            print("handled")
            ours(*arguments)
        signal.signal(signal.SIGTERM, handle)
        agent = MeterAgent(sandbox_url=URL, handle_sigterm=True, flush_interval_seconds=60)
        assert agent.record("tokens", "cus_1")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(180)
        """,
        server.url,
    )
    assert done.stdout == "handled\n"
    assert done.returncode == -signal.SIGTERM
    assert sandbox.totals()["accepted"] == 1
