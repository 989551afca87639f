"""Threads one at a time, in an order drawn from a seed, on a clock that moves when all wait.

Each task is a real thread, so the production code runs unmodified, but only the one that holds the
baton runs. It hands the baton on where a real scheduler could: at every lock, wait, clock and
network call, and in traced worlds between any two lines of the traced modules. Who comes next is
drawn from the world's generator, so that one seed is one order of events, every time.

When nobody can run, the clock jumps to the end of the earliest wait. When nobody waits for a time
either, that is a deadlock, and it is reported with every task's stack.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

__all__ = ["BrokenPromiseError", "Scheduler", "Task", "TaskKilled"]

_STEPS_MAX = 800_000
_STEP_SECONDS = 1e-6
_REAL_SECONDS_MAX = 50.0


class BrokenPromiseError(AssertionError):
    """A promise was broken in a simulated world."""


class TaskKilled(BaseException):
    """The process of this task was killed: what unwinds now must change nothing."""


class Task:
    """One simulated thread."""

    def __init__(self, number: int, name: str, process: int) -> None:
        self.number = number
        self.name = name
        self.process = process
        self.killed = False
        self.baton = threading.Semaphore(0)
        self.done = False
        self.waiting = False
        self.wake_at: float | None = None
        self.held: list[object] = []
        """The simulated locks that this task holds."""
        self.interrupted = 0
        """How many simulated signal handlers this task is in."""
        self.wakes = 0
        """How often it came out of a wait."""
        self.thread: threading.Thread | None = None

    @property
    def is_ready(self) -> bool:
        return not self.done and not self.waiting

    def stack(self) -> str:
        frame = sys._current_frames().get(self.thread.ident or 0) if self.thread else None
        calls = traceback.extract_stack(frame) if frame else []
        ours = [call for call in calls if "/threading.py" not in call.filename]
        return "".join(
            f"    {Path(call.filename).name}:{call.lineno} {call.line}\n" for call in ours
        )


class Scheduler:
    """Runs tasks.

    Args:
        random: Draws who comes next.
        preempt: How likely the baton changes hands at a step.
        stall: How likely a task is put to sleep at a step, as on a crowded machine.
        stall_seconds_max: For how long.
        interrupt: Called now and then between two lines of traced code, in the task that runs it,
            as a signal handler would be.
        traced_files: Where steps happen between lines; empty: only at the seams.
    """

    def __init__(
        self,
        random: Random,
        *,
        preempt: float,
        stall: float = 0.0,
        stall_seconds_max: float = 0.0,
        interrupt: Callable[[], None] | None = None,
        traced_files: frozenset[str] = frozenset(),
    ) -> None:
        self.random = random
        self.preempt = preempt
        self.stall = stall
        self.stall_seconds_max = stall_seconds_max
        self._stalls: list[tuple[float, float]] = []
        self.interrupt = interrupt
        self.traced_files = traced_files
        self.now = 1000.0
        self.steps = 0
        self.history = 0
        """A digest of every choice made so far: equal histories, equal runs."""
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.violation: BaseException | None = None
        self._over = threading.Event()
        self._calm = False
        self._step_alarm: tuple[int, Task] | None = None

    # -- tasks ---------------------------------------------------------------------------------

    def run(self, main: Callable[[], None]) -> None:
        """Run *main* as the first task and return when every task has ended.

        Raises:
            BrokenPromiseError: A promise was broken, or the tasks wait for each other.
        """
        first = self.start(main, "main")
        self.current = first
        first.baton.release()
        if not self._over.wait(_REAL_SECONDS_MAX):
            self.violation = self.violation or BrokenPromiseError(
                f"still running\n{self.picture()}"
            )
        if self.violation is not None:
            raise self.violation
        self._bury()

    def start(self, target: Callable[[], None], name: str, *, process: int | None = None) -> Task:
        """Start a task; it runs when the baton comes to it.

        *process* says whose `kill()` ends it; None: the same as that of the task that starts it.
        """
        if process is None:
            process = self.current.process if self.current is not None else 0
        task = Task(len(self.tasks), name, process)
        self.tasks.append(task)
        task.thread = threading.Thread(target=self._live, args=(task, target), daemon=True)
        task.thread.start()
        return task

    def _live(self, task: Task, target: Callable[[], None]) -> None:
        task.baton.acquire()
        # Always, also to None: a coverage tracer would count the simulator's own time.
        sys.settrace(self._trace if self.traced_files else None)
        try:
            if not task.killed:
                target()
        except BaseException as error:  # noqa: BLE001 - carried to the thread that called run()
            if not task.killed:
                self.fail(error)
        finally:
            sys.settrace(None)
        task.done = True
        if not task.killed:
            self._hand_on()

    def kill(self, process: int) -> None:
        """Stop the tasks of *process* for ever, each where it is."""
        for task in self.tasks:
            if task.process == process and not task.done:
                task.killed = task.done = True

    def _bury(self) -> None:
        # A thread for each killed task would stay behind. Now that the world is over they may
        # unwind, one by one.
        for task in self.tasks:
            if task.killed and task.thread is not None:
                self.current = task
                task.baton.release()
                task.thread.join(_REAL_SECONDS_MAX)

    def fail(self, error: BaseException) -> None:
        """End the world. The other tasks stay where they are."""
        self.violation = self.violation or error
        self._over.set()

    def picture(self) -> str:
        """What every task is doing."""
        return "\n".join(
            f"{task.name} {task.number}: "
            f"{'ready' if task.is_ready else f'waits until {task.wake_at}'}, "
            f"holds {len(task.held)}\n{task.stack()}"
            for task in self.tasks
            if not task.done
        )

    # -- time and turns ------------------------------------------------------------------------

    def step(self) -> None:
        """A place where a real scheduler could take the processor away."""
        self.steps += 1
        self.now += _STEP_SECONDS
        if self._me().killed:
            raise TaskKilled
        if self.steps > _STEPS_MAX:
            self._abandon(BrokenPromiseError(f"no end after {_STEPS_MAX} steps\n{self.picture()}"))
        if self._calm:
            return
        if self._step_alarm is not None and self.steps >= self._step_alarm[0]:
            task, self._step_alarm = self._step_alarm[1], None
            self.wake(task)
            self._switch(task)
        draw = self.random.random()
        if draw < self.stall:
            seconds = self.random.random() * self.stall_seconds_max
            self.stall_for(seconds)
            self.wait(seconds)
        elif draw < self.stall + self.preempt:
            self._switch()

    def stall_for(self, seconds: float) -> None:
        """Note that somebody is held up from now on, for which no one is to blame."""
        self._stalls.append((self.now, self.now + seconds))

    def stalled_since(self, began: float) -> float:
        """Seconds of stalls since *began*, those of several tasks added up."""
        return sum(max(0.0, min(end, self.now) - max(start, began)) for start, end in self._stalls)

    def wait(self, seconds: float | None) -> None:
        """Let *seconds* pass, or wait until `wake()`."""
        task = self._me()
        if task.killed:
            raise TaskKilled
        task.waiting = True
        task.wake_at = None if seconds is None else self.now + max(0.0, seconds)
        self._switch()
        task.wakes += 1

    def wait_steps(self, steps: int, seconds: float) -> None:
        """Wait until *steps* were taken, wherever everybody is then; at most *seconds*."""
        self._step_alarm = self.steps + steps, self._me()
        self.wait(seconds)
        self._step_alarm = None

    def wake(self, task: Task) -> None:
        """End *task*'s wait."""
        task.waiting = False
        task.wake_at = None

    def _me(self) -> Task:
        assert self.current is not None
        return self.current

    def _switch(self, other: Task | None = None) -> None:
        me = self._me()
        other = other or self._choose()
        if other is me:
            return
        if other is None:
            self._abandon(BrokenPromiseError(f"everybody waits for ever\n{self.picture()}"))
            return
        self.current = other
        other.baton.release()
        me.baton.acquire()
        if me.killed:
            raise TaskKilled

    def _hand_on(self) -> None:
        if self.violation is not None:
            return
        other = self._choose()
        if other is not None:
            self.current = other
            other.baton.release()
        elif all(task.done for task in self.tasks):
            self._over.set()
        else:
            self.fail(BrokenPromiseError(f"everybody waits for ever\n{self.picture()}"))

    def _abandon(self, error: BaseException) -> None:
        # The world has ended: the calling task stops here, where it is.
        self.fail(error)
        threading.Semaphore(0).acquire()

    def _choose(self) -> Task | None:
        self._ring_alarms()
        ready = [task for task in self.tasks if task.is_ready]
        if not ready:
            alarms = [task.wake_at for task in self.tasks if not task.done and task.wake_at]
            if not alarms:
                return None
            self.now = max(self.now, min(alarms))
            self._ring_alarms()
            ready = [task for task in self.tasks if task.is_ready]
        chosen = ready[int(self.random.random() * len(ready))] if len(ready) > 1 else ready[0]
        self.history = hash((self.history, chosen.number, self.now))
        return chosen

    def _ring_alarms(self) -> None:
        for task in self.tasks:
            if task.waiting and not task.done and task.wake_at and task.wake_at <= self.now:
                self.wake(task)

    # -- between the lines ---------------------------------------------------------------------

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._trace_line if frame.f_code.co_filename in self.traced_files else None

    def _trace_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            task = self._me()
            if task.killed:
                return None
            if self.interrupt is not None and not task.interrupted and self.random.random() < 0.01:
                task.interrupted += 1
                self.interrupt()
                task.interrupted -= 1
            self.step()
        return self._trace_line
