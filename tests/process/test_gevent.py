"""gevent: threads become greenlets, before or after the import of meter_agent."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import finish, ledger, run, start, wait_for

PATCH = "from gevent import monkey; monkey.patch_all(); import gevent\n"
AGENT = "agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=0.05)\n"
# Sessions come over a connection of their own, as they do from Stripe.
AGENT_WITH_TWO_HOSTS = """
agent = MeterAgent(
    api_url=URL.replace("127.0.0.1", "localhost"),
    events_url=URL,
    api_key="sk_test_1",
    flush_interval_seconds=0.05,
)
"""
GREENLETS = """
def work(name):
    for _ in range(100):
        assert agent.record("tokens", name)
        gevent.sleep(0)
gevent.joinall([gevent.spawn(work, f"cus_{n}") for n in range(8)], raise_error=True)
"""

when_patched = pytest.mark.parametrize(
    ("before", "script"),
    [(PATCH, AGENT), ("", PATCH + AGENT)],
    ids=["before the import", "after the import"],
)


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


def customers(sandbox: Sandbox) -> Counter[str]:
    return Counter(entry["customer"] for entry in sandbox.ledger())


@when_patched
def test_what_greenlets_record_is_delivered_at_exit(
    sandbox: Sandbox, server: SandboxServer, before: str, script: str
) -> None:
    done = run(script + GREENLETS, server.url, before=before)
    assert done.returncode == 0
    assert ledger(done)["delivered"] == 800
    assert customers(sandbox) == {f"cus_{n}": 100 for n in range(8)}


@when_patched
def test_a_greenlet_that_flushes_waits_for_delivery_and_lets_the_others_run(
    sandbox: Sandbox, server: SandboxServer, before: str, script: str
) -> None:
    sandbox.add_fault(Fault("delay", seconds=0.2))
    done = run(
        script
        + GREENLETS
        + """
others = []
def run_beside():
    while True:
        others.append(agent.record("tokens", "beside"))
        gevent.sleep(0.01)
beside = gevent.spawn(run_beside)
gevent.sleep(0)
so_far = len(others)
assert agent.flush(20)
print(agent.stats().delivered >= 800, len(others) > so_far)
beside.kill()
stats = agent.close(20)
assert stats.delivered == 800 + len(others), stats
""",
        server.url,
        before=before,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True True")
    assert ledger(done)["dropped"] == {}


@when_patched
def test_exit_keeps_to_its_budget_while_the_server_never_answers(
    sandbox: Sandbox, server: SandboxServer, before: str, script: str
) -> None:
    sandbox.add_fault(Fault("hang"))
    script = script.replace("URL,", "URL, shutdown_timeout_seconds=0.5,")
    process = start(script + GREENLETS + "print('recorded')", server.url, before=before)
    wait_for(process, "recorded")
    began = time.monotonic()
    done = finish(process)
    assert time.monotonic() - began < 2.5
    assert done.returncode == 0
    assert ledger(done)["recorded"] == 800


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_a_buffer_that_is_full_keeps_its_policy_and_its_books(
    sandbox: Sandbox, server: SandboxServer, overflow: str
) -> None:
    script = AGENT.replace("URL,", f"URL, buffer_events=20, overflow={overflow!r},")
    script += GREENLETS.replace("assert ", "")
    final = ledger(run(script, server.url, before=PATCH))
    assert final["recorded"] == 800
    assert final["delivered"] == sandbox.totals()["accepted"]
    assert (final["delivered"] == 800) is (overflow == "block")


def test_threads_that_gevent_has_left_alone_are_woken(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    """Its queue is in the place of the standard one all the same, and wakes greenlets alone."""
    sandbox.add_fault(Fault("delay", seconds=0.3))
    done = run(
        AGENT.replace("0.05", "60")
        + """
for _ in range(3):
    agent.record("tokens", "cus_1")
    print(agent.flush())
""",
        server.url,
        before=PATCH.replace("patch_all()", "patch_all(thread=False)"),
    )
    assert done.stdout.split() == ["True"] * 3
    assert sandbox.totals()["accepted"] == 3


def test_the_first_event_may_come_from_a_signal_handler_in_the_loop(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        AGENT
        + """
signal.signal(signal.SIGALRM, lambda *_: print(agent.record("tokens", "cus_1")))
signal.setitimer(signal.ITIMER_REAL, 0.05)
while not agent.stats().recorded:
    time.sleep(0.2)
print(agent.flush(20))
""",
        server.url,
        before=PATCH,
    )
    assert done.stdout.split() == ["True", "True"]
    assert sandbox.totals()["accepted"] == 1


@pytest.mark.parametrize(
    ("handler", "status"),
    [("", -signal.SIGTERM), ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n", 3)],
    ids=["no handler before", "a handler before"],
)
def test_the_opt_in_sigterm_handler_delivers_and_keeps_the_exit_status(
    sandbox: Sandbox, server: SandboxServer, handler: str, status: int
) -> None:
    script = AGENT.replace("URL,", "URL, handle_sigterm=True,").replace("0.05", "60")
    script = (
        handler
        + script
        + """
for _ in range(2):  # the second one waits, and so does the loop
    assert agent.flush(20)
    agent.record("tokens", "cus_1")
print("ready")
while True:
    time.sleep(0.05)  # a loop that sleeps for long may overlook what a signal handler starts
"""
    )
    process = start(script, server.url, before=PATCH)
    wait_for(process, "ready")
    process.terminate()
    assert finish(process).returncode == status
    assert sandbox.totals()["accepted"] == 2


def test_a_signal_handler_that_ends_the_process_does_so_from_within_a_sender(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        AGENT_WITH_TWO_HOSTS
        + """
class Interrupting(logging.Handler):
    def emit(self, record):
        if "stream" in record.getMessage():
            logging.getLogger("urllib3").removeHandler(self)
            os.kill(os.getpid(), signal.SIGTERM)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
logging.getLogger("urllib3").setLevel(logging.DEBUG)
logging.getLogger("urllib3").propagate = False
logging.getLogger("urllib3").addHandler(Interrupting())
agent.record("tokens", "cus_1")
while True:
    time.sleep(0.05)
""",
        server.url,
        before=PATCH,
    )
    assert done.returncode == 3
    assert ledger(done)["delivered"] == 1
    assert sandbox.totals()["accepted"] == 1


def test_a_forked_child_goes_on_with_none_of_its_parents_greenlets(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        AGENT
        + """
agent.record("tokens", "parent")
assert agent.flush(20)
for _ in range(3):
    agent.record("tokens", "parent")
    child = os.fork()
    if not child:
        agent.record("tokens", "child")
        gevent.sleep(0.2)  # time enough for a greenlet of the parent to send once more
        os._exit(agent.close(20).delivered != 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
        server.url,
        before=PATCH,
    )
    assert done.returncode == 0
    assert ledger(done)["delivered"] == 4
    assert customers(sandbox) == {"parent": 4, "child": 3}
    assert sandbox.totals()["duplicates"] == 0


def test_a_child_forked_in_the_middle_of_a_request_counts_nothing_of_it(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    sandbox.add_fault(Fault("delay", seconds=0.3))
    done = run(
        AGENT.replace("URL,", "URL, max_in_flight=1, read_timeout_seconds=1,")
        + """
agent.record("tokens", "parent")
while not agent.stats().requests:
    gevent.sleep(0.01)
child = os.fork()
if not child:
    gevent.sleep(0.6)  # its copy of the greenlet reads the answer
    agent.record("tokens", "child")
    final = agent.close(20)
    os._exit(not final.balanced or final.delivered != 1)
gevent.monkey.get_original("time", "sleep")(0.6)  # the parent does not
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(agent.flush(20))
""",
        server.url,
        before=PATCH,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True")
    assert ledger(done)["delivered"] == 1
    assert customers(sandbox) == {"parent": 1, "child": 1}
