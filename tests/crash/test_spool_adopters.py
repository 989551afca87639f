"""Who may adopt, and what comes of adopters that die while they send what they adopted."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.crash.lives import Start, agent, billed, segments
from tests.process.scripts import finish, ledger, run, wait_for

ROOT = Path(__file__).parents[2]

LOOKS_OFTEN = """
sys.path.insert(0, {root!r})
from meter_agent import Config
from meter_agent._agent import adopt, build
from tests.virtual import ShiftedRuntime
runtime = ShiftedRuntime()
agent = build(Config(sandbox_url=URL, spool_dir={spool!r}), runtime=runtime)
for n in range(1000, 1008):  # not further ahead than Stripe takes
    assert agent.record("tokens", "cus_1", n)
    runtime.advance(31.0)
    while not adopt(agent):
        pass
    assert agent.flush(20)
print(agent.stats().recovered)
"""


def stop(process: Any) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


@pytest.mark.parametrize("events", [90, 200], ids=["waiting", "on the way"])
def test_the_events_of_a_process_that_is_stopped_stay_its_own_however_often_others_look(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, start: Start, events: int
) -> None:
    stopped = start(
        agent(tmp_path)
        + f"""
resumed = []  # an event has a lock, which the interrupted thread may hold
signal.signal(signal.SIGCONT, lambda *_: resumed.append(True))
for n in range({events}): assert agent.record("tokens", "cus_1", n)
print("recorded")
while not resumed:
    time.sleep(0.001)
for n in range({events}, 300): assert agent.record("tokens", "cus_1", n)
assert agent.flush(20)
""",
        server.url,
    )
    sandbox.add_fault(Fault("delay", seconds=0.5, times=1))
    wait_for(stopped, "recorded")
    while events > 100 and not sandbox.totals()["accepted"]:
        time.sleep(0.001)
    stop(stopped)
    neighbour = run(LOOKS_OFTEN.format(root=str(ROOT), spool=str(tmp_path)), server.url)
    assert neighbour.stdout == "0\n"
    assert segments(tmp_path)
    stopped.send_signal(signal.SIGCONT)
    final = ledger(finish(stopped))
    assert (final["recorded"], final["recovered"], final["delivered"]) == (300, 0, 300)
    assert billed(sandbox) == [*range(300), *range(1000, 1008)]
    assert sandbox.totals()["duplicates"] == 0
    assert segments(tmp_path) == []


DIES_AT = """
import itertools, json, pathlib
from meter_agent import Config, _spool_format
from meter_agent._transport import Transport
spool = pathlib.Path({spool!r})

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_while_sending(moment, count):
    left, post = itertools.count(count, -1), Transport.post
    def die_or_post(self, url, *arguments, **options):
        last = "event_stream" in url and not next(left)
        if last and moment == "before":
            die()
        reply = post(self, url, *arguments, **options)
        if last and moment == "after":
            die()
        return reply
    Transport.post = die_or_post

def die_while_marking(marks):
    left, write = itertools.count(marks, -1), _spool_format.write_mark
    def write_mark(data, offset, mark):
        if mark == _spool_format.SETTLED and not next(left):
            die()
        write(data, offset, mark)
    _spool_format.write_mark = write_mark

def live(moment, count):
    if moment == "marking":
        die_while_marking(100 * count + 50)
    elif moment in ("before", "after"):
        die_while_sending(moment, count)
    agent = MeterAgent(Config(sandbox_url=URL, spool_dir=spool))
    if moment == "recording":
        for n in range(count):
            assert agent.record("tokens", "cus_1", n)
        die()
    while list(spool.glob("*.segment")):
        time.sleep(0.001)
    print(json.dumps(agent.close(20).recovered), flush=True)
    os._exit(0)

ends = []
for moment, count in {lives!r}:
    child = os.fork()
    if not child:
        live(moment, count)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""


def test_adopters_that_are_killed_while_they_send_cost_nothing_and_bill_nothing_twice(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    deaths = [(moment, count) for count in range(4) for moment in ("before", "after", "marking")]
    lives = [("recording", 4000), *deaths, ("heir", 0)]
    done = run(DIES_AT.format(spool=str(tmp_path / "spool"), lives=lives), server.url)
    recovered, ends = map(json.loads, done.stdout.splitlines())
    assert ends == [*[-signal.SIGKILL] * (1 + len(deaths)), 0]
    assert 0 < recovered < 4000
    # Under one identifier each: the server counts another one as another event.
    assert billed(sandbox) == list(range(4000))
    assert sandbox.totals()["duplicates"] > 0
