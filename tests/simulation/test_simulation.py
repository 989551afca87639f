from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.simulation.run import run_seed
from tests.simulation.runtime import SimulatedRuntime
from tests.simulation.scheduler import BrokenPromiseError, Scheduler
from tests.simulation.spool_world import WAYS, SpoolWorld

WORLDS = 300
WORLDS_PER_TEST = 10

PAST_FAILURES = [
    int(line.partition("#")[0])
    for line in (Path(__file__).parent / "past_failures.txt").read_text().splitlines()
    if line.partition("#")[0].strip()
]


@pytest.mark.parametrize("first", range(0, WORLDS, WORLDS_PER_TEST))
def test_no_promise_is_broken_in_worlds_drawn_at_random(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + WORLDS_PER_TEST):
        run_seed(seed, tmp_path)


@pytest.mark.parametrize("seed", PAST_FAILURES)
def test_no_promise_is_broken_where_one_was_before(seed: int, tmp_path: Path) -> None:
    run_seed(seed, tmp_path)


def test_the_same_seed_is_the_same_world(tmp_path: Path) -> None:
    for seed in range(8):
        first, again = run_seed(seed, tmp_path), run_seed(seed, tmp_path)
        assert first.scheduler.history == again.scheduler.history
        assert first.scheduler.steps == again.scheduler.steps
        assert first.books.final == again.books.final


def test_worlds_differ(tmp_path: Path) -> None:
    histories = {run_seed(seed, tmp_path).scheduler.history for seed in range(8)}
    assert len(histories) == 8


def test_the_worlds_meet_every_way_an_event_can_end(tmp_path: Path) -> None:
    met = dict.fromkeys(("delivered", "dead_lettered", "uncertain", "splits", "retries"), 0)
    drops: set[str] = set()
    seeds = iter(range(400))  # the rarest of them is met in about one world of a hundred
    while not all(met.values()) or len(drops) < 3:
        stats = run_seed(next(seeds), tmp_path).books.final
        assert stats is not None
        for name in met:
            met[name] += getattr(stats, name)
        drops.update(stats.dropped)
    assert drops == {"overflow", "closed", "shutdown"}


def test_the_worlds_with_a_spool_meet_every_way_a_process_can_leave_it(tmp_path: Path) -> None:
    missing = set(WAYS)
    for seed in range(2, WORLDS, 3):
        world = run_seed(seed, tmp_path)
        assert isinstance(world, SpoolWorld)
        missing -= {name for name, times in world.met.items() if times}
        if not missing:
            break
    assert not missing


@pytest.fixture
def runtime() -> SimulatedRuntime:
    random = Random(1)
    return SimulatedRuntime(Scheduler(random, preempt=0.3), random)


def test_what_is_killed_does_not_go_on(runtime: SimulatedRuntime) -> None:
    done: list[str] = []

    def work(name: str) -> None:
        try:
            with runtime.condition():
                runtime.scheduler.wait(1.0)
            done.append(name)
        finally:
            runtime.monotonic()
            done.append(f"{name} at the end")

    def main() -> None:
        for process in (1, 2):
            runtime.process = process
            runtime.start_thread(lambda name=f"of {process}": work(name), "worker")  # type: ignore[misc]
        runtime.scheduler.wait(0.5)
        runtime.scheduler.kill(1)
        runtime.scheduler.wait(10.0)

    runtime.scheduler.run(main)
    assert done == ["of 2", "of 2 at the end"]
    assert not any(task.thread.is_alive() for task in runtime.scheduler.tasks if task.thread)


def test_a_deadlock_is_found(runtime: SimulatedRuntime) -> None:
    first, second = runtime.condition(), runtime.condition()

    def take(one: object, other: object) -> None:
        with one:  # type: ignore[attr-defined]
            runtime.scheduler.wait(1.0)
            with other:  # type: ignore[attr-defined]
                pass

    def main() -> None:
        runtime.start_thread(lambda: take(first, second), "one")
        take(second, first)

    with pytest.raises(BrokenPromiseError, match="everybody waits for ever"):
        runtime.scheduler.run(main)


def test_a_wait_for_nothing_is_found(runtime: SimulatedRuntime) -> None:
    with pytest.raises(BrokenPromiseError, match="everybody waits for ever"):
        runtime.scheduler.run(lambda: print(runtime.doorbell().wait(None)))


def test_a_hot_loop_is_found(runtime: SimulatedRuntime) -> None:
    def spin() -> None:
        while True:
            runtime.monotonic()

    with pytest.raises(BrokenPromiseError, match="no end after"):
        runtime.scheduler.run(spin)


def test_a_wait_with_a_lock_in_hand_is_found(runtime: SimulatedRuntime) -> None:
    def main() -> None:
        with runtime.condition():
            runtime.doorbell().wait(1.0)

    with pytest.raises(BrokenPromiseError, match="holds a lock"):
        runtime.scheduler.run(main)


def test_time_passes_only_while_everybody_waits(runtime: SimulatedRuntime) -> None:
    woken: list[float] = []

    def sleep(seconds: float) -> None:
        runtime.scheduler.wait(seconds)
        woken.append(seconds)

    def main() -> None:
        for seconds in (3600.0, 60.0):
            runtime.start_thread(lambda seconds=seconds: sleep(seconds), "sleeper")  # type: ignore[misc]
        sleep(600.0)

    runtime.scheduler.run(main)
    assert woken == [60.0, 600.0, 3600.0]
    assert 4600.0 <= runtime.scheduler.now < 4600.1
