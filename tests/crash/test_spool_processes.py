"""Several processes on one spool: who owns what, who adopts, and what is told at the exit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.crash.lives import KILL, Start, agent, billed, killed, segments, wait_until_empty
from tests.process.scripts import finish, ledger, run


def test_events_of_a_killed_process_are_delivered_by_the_next_one(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, start: Start
) -> None:
    record = "for n in range(1000): assert agent.record('tokens', 'cus_1', n)\n"
    killed(start(agent(tmp_path) + record + KILL, server.url))
    done = run(agent(tmp_path) + wait_until_empty(tmp_path), server.url)
    final = ledger(done)
    assert final["recorded"] == 0
    assert final["delivered"] == final["recovered"] > 0
    assert billed(sandbox) == list(range(1000))


def test_what_the_exit_has_no_time_for_stays_and_the_last_line_says_so(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    sandbox.add_fault(Fault("status", status=503))
    script = """
os.environ["METER_AGENT_SHUTDOWN_TIMEOUT_SECONDS"] = "0.3"
"""
    record = "for n in range(500): assert agent.record('tokens', 'cus_1', n)\n"
    done = run(script + agent(tmp_path) + record, server.url)
    assert done.returncode == 0
    final = ledger(done)
    assert final["dropped"] == {}
    assert final["left_in_spool"] == 500
    assert final["spool_dir"] == str(tmp_path)
    sandbox.clear_faults()
    run(agent(tmp_path) + wait_until_empty(tmp_path), server.url)
    assert billed(sandbox) == list(range(500))


def test_a_living_process_keeps_its_events_and_takes_those_of_a_dead_one(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, start: Start
) -> None:
    living = start(
        agent(tmp_path, 0.01)
        + """
for n in range(1000, 1100): assert agent.record('tokens', 'cus_1', n)
assert agent.flush(20)  # and it has looked for orphans, too early
print("recorded", flush=True)
signal.pause()
""",
        server.url,
        before="import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\n",
    )
    assert living.stdout is not None
    assert living.stdout.readline() == "recorded\n"
    record = "for n in range(50): assert agent.record('tokens', 'cus_1', n)\n"
    killed(start(agent(tmp_path) + record + KILL, server.url))
    # A third one adopts, and only from the dead.
    done = run(
        agent(tmp_path) + "while agent.stats().delivered < 50: time.sleep(0.001)\n", server.url
    )
    assert ledger(done)["recovered"] == 50
    living.send_signal(signal.SIGTERM)
    final = ledger(finish(living))
    assert (final["recorded"], final["recovered"], final["delivered"]) == (100, 0, 100)
    assert billed(sandbox) == [*range(50), *range(1000, 1100)]
    assert segments(tmp_path) == []


def test_ten_processes_that_start_at_once_adopt_each_orphan_once(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, start: Start
) -> None:
    record = "for n in range({0}, {0} + 90): assert agent.record('tokens', 'cus_1', n)\n"
    dead = [start(agent(tmp_path) + record.format(90 * n) + KILL, server.url) for n in range(10)]
    for process in dead:
        killed(process)
    heirs = [
        start(
            f"""
print("ready", flush=True)
while not os.path.exists({str(tmp_path / "go")!r}):
    pass
"""
            + agent(tmp_path)
            + wait_until_empty(tmp_path),
            server.url,
        )
        for _ in range(10)
    ]
    for heir in heirs:
        assert heir.stdout is not None
        assert heir.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    recovered = 0
    for heir in heirs:
        lines = finish(heir).stderr.splitlines()
        ends = [line for line in lines if line.startswith("meter_agent.closed")]
        recovered += sum(int(_field(line, "recovered")) for line in ends)
    assert recovered == 900
    assert billed(sandbox) == list(range(900))
    assert sandbox.totals()["duplicates"] == 0


def _field(line: str, name: str) -> str:
    return line.partition(f"'{name}': ")[2].partition(",")[0]


def test_a_child_of_fork_sends_its_own_and_does_not_hold_its_dead_parents_events(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, start: Start
) -> None:
    parent = start(
        agent(tmp_path)
        + """
for n in range(50): assert agent.record('tokens', 'cus_1', n)
if os.fork() == 0:
    for n in range(1000, 1100): assert agent.record('tokens', 'cus_1', n)
    assert agent.flush(20)
    print("child", flush=True)
    time.sleep(60)
    os._exit(0)
signal.pause()
""",
        server.url,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "child\n"
    assert billed(sandbox) == list(range(1000, 1100))
    parent.kill()
    parent.wait()
    done = run(
        agent(tmp_path) + "while agent.stats().delivered < 50: time.sleep(0.001)\n", server.url
    )
    assert ledger(done)["recovered"] == 50
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()
    assert billed(sandbox) == [*range(50), *range(1000, 1100)]
    assert sandbox.totals()["duplicates"] == 0


def test_a_storm_of_forks_with_a_spool_neither_loses_nor_doubles(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, start: Start
) -> None:
    done = run(
        agent(tmp_path, 0.01)
        + """
def produce(first):
    for n in range(first, first + 2000):
        assert agent.record("tokens", "cus_1", n)
threads = [threading.Thread(target=produce, args=(10_000 * n,)) for n in range(1, 5)]
for thread in threads:
    thread.start()
children = []
for n in range(20):
    child = os.fork()
    if child == 0:
        for m in range(10):
            assert agent.record("tokens", "cus_1", 100_000 + 10 * n + m)
        os.kill(os.getpid(), signal.SIGKILL)
    children.append(child)
for thread in threads:
    thread.join()
for child in children:
    os.waitpid(child, 0)
assert agent.flush(30)
""",
        server.url,
    )
    assert ledger(done)["recorded"] == 8000
    run(agent(tmp_path) + wait_until_empty(tmp_path), server.url)
    own = [10_000 * n + m for n in range(1, 5) for m in range(2000)]
    # A child may be killed between a request and the note of its answer. Then its events are sent
    # again under the same identifiers, and each is billed once all the same.
    assert billed(sandbox) == [*own, *range(100_000, 100_200)]


def test_a_limit_on_the_size_of_files_makes_memory_take_over(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    done = run(
        agent(tmp_path, 0.01)
        + """
for n in range(5000): assert agent.record('tokens', 'cus_1', n)
assert agent.flush(20)
print(agent.stats().spool_failures > 0)
""",
        server.url,
        before="""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
""",
    )
    assert done.stdout == "True\n"
    assert done.stderr.count("meter_agent.spool_failed") == 1
    assert billed(sandbox) == list(range(5000))
    assert segments(tmp_path) == []


def test_a_killed_process_that_had_sent_gives_the_next_one_the_same_identifiers(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, start: Start
) -> None:
    sandbox.add_fault(Fault("reset", when="after"))
    record = "for n in range(250): assert agent.record('tokens', 'cus_1', n)\n"
    process = start(agent(tmp_path, 0.01) + record + "time.sleep(60)\n", server.url)
    deadline = time.monotonic() + 30
    while sandbox.totals()["accepted"] < 100 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    killed(process)
    sandbox.clear_faults()
    run(agent(tmp_path) + wait_until_empty(tmp_path), server.url)
    assert billed(sandbox) == list(range(250))
    assert sandbox.totals()["duplicates"] >= 100
