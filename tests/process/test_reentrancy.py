"""`record()` from where it interrupts itself: signal handlers, `__del__`, logging handlers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import ledger, run

AGENT = """
agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=0.01, buffer_events={places})
taken = []
def take():
    if agent.record("tokens", "cus_1"):
        taken.append(None)
"""

CLOSE = """
final = agent.close(30)
print(final.delivered == len(taken), final.balanced, final.in_flight, final.buffered)
"""

with_and_without_lock = pytest.mark.parametrize(
    "places", [100_000, 1_000], ids=["on the fast path", "under the lock"]
)


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


@with_and_without_lock
def test_a_signal_handler_that_interrupts_record_in_its_own_thread(
    sandbox: Sandbox, server: SandboxServer, places: int
) -> None:
    done = run(
        AGENT.format(places=places)
        + """
interrupts = []
running = True
def interrupt(*_):
    interrupts.append(None)
    take()
    if running:  # wound up anew at the end: on a slow machine it would only interrupt itself
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.001)
turns = 0
while len(interrupts) < 800:
    take()
    turns += 1
    if turns % 500 == 0:
        agent.flush(0.01)
running = False
signal.setitimer(signal.ITIMER_REAL, 0)
"""
        + CLOSE,
        server.url,
    )
    assert done.stdout.strip() == "True True 0 0"
    assert ledger(done)["delivered"] == sandbox.totals()["accepted"]
    assert sandbox.totals()["duplicates"] == 0


@with_and_without_lock
def test_del_in_a_storm_of_the_garbage_collector(
    sandbox: Sandbox, server: SandboxServer, places: int
) -> None:
    done = run(
        AGENT.format(places=places)
        + """
import gc
deleted = []
class Used:
    def __init__(self):
        self.circle = self
    def __del__(self):
        deleted.append(None)
        take()
def produce():
    for n in range(300):
        gc.set_threshold(1 + n % 19, 1, 1)  # often, and at ever other places
        Used()
        take()
        agent.stats()  # makes objects, and so collections, under the lock
threads = [threading.Thread(target=produce) for _ in range(3)]
for thread in threads:
    thread.start()
produce()
for thread in threads:
    thread.join()
gc.set_threshold(700, 10, 10)
while len(deleted) < 1200:  # a collection does nothing while another thread's is under way
    gc.collect()
assert len(deleted) == 1200
"""
        + CLOSE,
        server.url,
    )
    assert done.stdout.strip() == "True True 0 0"
    assert ledger(done)["delivered"] == sandbox.totals()["accepted"]
    assert sandbox.totals()["duplicates"] == 0


@with_and_without_lock
def test_a_logging_handler_at_the_root_that_records_every_line(
    sandbox: Sandbox, server: SandboxServer, places: int
) -> None:
    done = run(
        AGENT.format(places=places)
        + """
lines = []
class Recording(logging.Handler):
    def emit(self, record):
        lines.append(record.name)
        take()
handler.setLevel(logging.INFO)
logging.getLogger().addHandler(Recording())
logging.getLogger().setLevel(logging.DEBUG)
take()
assert agent.flush(20)  # the senders have imported what they need: now they send meanwhile
for n in range(3000):
    logging.debug("line %d", n)
assert agent.flush(20)
assert "urllib3.connectionpool" in lines and "meter_agent" in lines
"""
        + CLOSE,
        server.url,
    )
    assert done.stdout.strip() == "True True 0 0"
    assert ledger(done)["delivered"] == sandbox.totals()["accepted"] >= 300
    assert sandbox.totals()["duplicates"] == 0


def test_a_handler_that_records_every_line_does_not_keep_the_process_from_ending(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        AGENT.format(places=100_000)
        + """
class Recording(logging.Handler):
    def emit(self, record):
        take()
handler.setLevel(logging.INFO)
logging.getLogger().addHandler(Recording())
logging.getLogger().setLevel(logging.DEBUG)
logging.debug("the first line of a chain without an end")
""",
        server.url,
    )
    assert done.returncode == 0
    final = ledger(done)
    assert final["delivered"] == sandbox.totals()["accepted"] >= 1
    assert set(final["dropped"]) <= {"closed"}
