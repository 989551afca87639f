"""The production `Runtime`, with simulated locks, waits, clocks and threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from tests.simulation.scheduler import BrokenPromiseError, Scheduler, Task

__all__ = ["SimulatedRuntime"]

START = 1_795_000_000.0


class SimulatedLock:
    """A re-entrant lock. Whoever waits for it runs again when it is free, in any order."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiting: list[Task] = []
        self.owner: Task | None = None
        self.depth = 0

    def __enter__(self) -> bool:
        self._scheduler.step()
        me = self._me()
        while self.owner is not None and self.owner is not me:
            self._waiting.append(me)
            self._scheduler.wait(None)
        self.take(me, 1)
        return True

    def __exit__(self, *error: object) -> None:
        if self._me().killed:
            return
        if not self._is_owned():
            raise BrokenPromiseError("a lock was given back by a thread that does not hold it")
        self.depth -= 1
        if not self.depth:
            self.give(self._me())
        self._scheduler.step()

    def take(self, me: Task, depth: int) -> None:
        if self.owner is None:
            self.owner = me
            me.held.append(self)
        self.depth += depth

    def give(self, me: Task) -> int:
        depth, self.depth, self.owner = self.depth, 0, None
        me.held.remove(self)
        for task in self._waiting:
            self._scheduler.wake(task)
        self._waiting.clear()
        return depth

    def _is_owned(self) -> bool:
        return self.owner is self._me()

    def _me(self) -> Task:
        return self._scheduler._me()


class SimulatedCondition(SimulatedLock):
    """As `threading.Condition`: notifies in the order of waiting, never wakes without a reason."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._sleepers: deque[Task] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_owned():
            raise BrokenPromiseError("wait() without the lock")
        me = self._me()
        depth = self.give(me)
        forbid_locks(me, "wait for a notification")
        self._sleepers.append(me)
        self._scheduler.wait(timeout)
        notified = me not in self._sleepers
        if not notified:
            self._sleepers.remove(me)
        while self.owner is not None:
            self._waiting.append(me)
            self._scheduler.wait(None)
        self.take(me, depth)
        return notified

    def notify(self, n: int = 1) -> None:
        if not self._is_owned():
            raise BrokenPromiseError("notify() without the lock")
        while n > 0 and self._sleepers:
            self._scheduler.wake(self._sleepers.popleft())
            n -= 1

    def notify_all(self) -> None:
        self.notify(len(self._sleepers))


class SimulatedDoorbell:
    """Remembers one ring."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._rung = False
        self._sleepers: list[Task] = []

    def ring(self) -> None:
        self._rung = True
        for task in self._sleepers:
            self._scheduler.wake(task)
        self._sleepers.clear()
        self._scheduler.step()

    def wait(self, timeout: float | None) -> bool:
        self._scheduler.step()
        me = self._scheduler._me()
        forbid_locks(me, "wait for a doorbell")
        if not self._rung:
            self._sleepers.append(me)
            self._scheduler.wait(timeout)
            if me in self._sleepers:
                self._sleepers.remove(me)
        rung, self._rung = self._rung, False
        return rung


class SimulatedClock:
    """The wall clock, which somebody may set."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.step_seconds = 0.0
        self.steps_seen = {0.0}

    def step_to(self, seconds: float) -> None:
        """Go ahead of the true time by *seconds*."""
        self.step_seconds = seconds
        self.steps_seen.add(seconds)

    @property
    def span_seconds(self) -> float:
        """Between two readings nobody can have been wrong by more than this."""
        return max(self.steps_seen) - min(self.steps_seen)

    def time(self) -> float:
        self._scheduler.step()
        return self.now()

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def now(self) -> float:
        return START + self._scheduler.now + self.step_seconds


class SimulatedRuntime:
    """Everything through the scheduler.

    Args:
        scheduler: Runs the threads.
        random: For jitter and identifiers.
        no_thread: How likely a thread cannot be started.
    """

    def __init__(self, scheduler: Scheduler, random: Random, *, no_thread: float = 0.0) -> None:
        self.scheduler = scheduler
        self.clock = SimulatedClock(scheduler)
        self.no_thread = no_thread
        self.process = 0
        """The process to which threads that are started from now on belong."""
        self._random = random

    def monotonic(self) -> float:
        self.scheduler.step()
        return self.scheduler.now

    def suspended(self) -> float:
        return 0.0

    def random(self) -> float:
        return self._random.random()

    def random_bits(self, bits: int) -> int:
        return self._random.getrandbits(bits)

    def process_id(self) -> int:
        return 1

    def thread_id(self) -> int:
        return self.scheduler._me().number + 1

    def condition(self) -> SimulatedCondition:
        return SimulatedCondition(self.scheduler)

    def reentrant_lock(self) -> SimulatedLock:
        return SimulatedLock(self.scheduler)

    def holds_lock(self) -> bool:
        return bool(self.scheduler._me().held)

    def doorbell(self) -> SimulatedDoorbell:
        return SimulatedDoorbell(self.scheduler)

    def start_thread(self, target: Callable[[], None], name: str) -> None:
        self.scheduler.step()
        # Starting a thread waits until it runs.
        forbid_locks(self.scheduler._me(), "start a thread")
        if self._random.random() < self.no_thread:
            raise RuntimeError("can't start new thread")
        self.scheduler.start(target, name, process=self.process)


def forbid_locks(task: Task, doing: str) -> None:
    """Nothing that waits may be done with a lock in hand.

    Except by a signal handler, which may have come upon a thread that held one.
    """
    if task.held and not task.interrupted:
        raise BrokenPromiseError(f"{task.name} holds a lock while it is about to {doing}")
