"""Runtimes for tests: virtual time for one thread, and real time that can be set ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from meter_agent._runtime import SystemRuntime

START = 1_795_000_000.0


class VirtualClock:
    def __init__(self) -> None:
        self.wall = START

    def time(self) -> float:
        return self.wall

    def time_ns(self) -> int:
        return int(self.time() * 1e9)


class VirtualCondition:
    """Notifies nobody, for there is nobody else; `on_wait` plays the part of the other threads."""

    def __init__(self, runtime: VirtualRuntime) -> None:
        self._runtime = runtime

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_error: object) -> None:
        return None

    def wait(self, timeout: float | None = None) -> bool:
        return self._runtime.waited(timeout)

    def notify(self, n: int = 1) -> None:
        pass

    def notify_all(self) -> None:
        pass


class VirtualDoorbell:
    def __init__(self, runtime: VirtualRuntime) -> None:
        self._runtime = runtime
        self.rung = 0

    def ring(self) -> None:
        self.rung += 1

    def wait(self, timeout: float | None) -> bool:
        if not self.rung:
            self._runtime.on_wait()
        if self.rung:
            self.rung = 0
            return True
        return self._runtime.pass_time(timeout)


class VirtualRuntime(SystemRuntime):
    """Time passes only where somebody waits, or where a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.wall_clock = VirtualClock()
        self.uptime = 1000.0
        self.slept = 0.0
        self.waits: list[float] = []
        self.draws: list[float] = []
        self.draw = 0.5
        self.pid = 1
        self.on_wait: Callable[[], None] = lambda: None
        self.started: list[Callable[[], None]] = []

    @property
    def clock(self) -> Any:
        return self.wall_clock

    def monotonic(self) -> float:
        return self.uptime

    def suspended(self) -> float:
        return self.slept

    def random(self) -> float:
        return self.draw

    def process_id(self) -> int:
        return self.pid

    def condition(self) -> Any:
        return VirtualCondition(self)

    def reentrant_lock(self) -> Any:
        return threading.RLock()

    def doorbell(self) -> Any:
        return VirtualDoorbell(self)

    def start_thread(self, target: Callable[[], None], name: str) -> None:
        self.started.append(target)

    def waited(self, timeout: float | None) -> bool:
        self.on_wait()
        return self.pass_time(timeout)

    def pass_time(self, timeout: float | None) -> bool:
        if timeout is None:
            raise AssertionError("nobody is there to end this wait")
        self.waits.append(timeout)
        self.advance(timeout)
        return False

    def advance(self, seconds: float) -> None:
        self.uptime += seconds
        self.wall_clock.wall += seconds

    def sleep_through(self, seconds: float) -> None:
        """The machine is suspended, and its monotonic clock with it."""
        self.slept += seconds
        self.wall_clock.wall += seconds


class ShiftedRuntime(SystemRuntime):
    """Real threads and real waits, on clocks that a test may set ahead."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead_seconds = 0.0

    @property
    def clock(self) -> Any:
        return self

    def time(self) -> float:
        return time.time() + self._ahead_seconds

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead_seconds

    def advance(self, seconds: float) -> None:
        self._ahead_seconds += seconds


class HastyRuntime(ShiftedRuntime):
    """Real threads, but nobody waits for a moment to come: the clocks go ahead to it instead.

    A wait without an end is a real wait, so use `flush()` without a timeout; and before `close()`,
    which would find its time over at once.
    """

    def condition(self) -> Any:
        return _HastyCondition(self)


class _HastyCondition(threading.Condition):
    def __init__(self, runtime: HastyRuntime) -> None:
        super().__init__(threading.RLock())
        self._runtime = runtime

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None:
            return super().wait()
        self._runtime.advance(timeout)
        return False
