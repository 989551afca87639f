"""The only door to clocks, threads, randomness and process identity.

Everything that waits, tells the time, starts a thread or draws a random number gets a `Runtime` in
its constructor. A test that hands in another one runs the same production code in virtual time.

Seconds are floats throughout. There are two clocks and they are never mixed: `clock.time()` is the
wall clock (what a timestamp says), `monotonic()` is for durations and deadlines.
"""

from __future__ import annotations

import _queue
import _thread
import contextlib
import os
import queue
import threading
import time
import types
from collections.abc import Callable
from operator import attrgetter
from typing import Protocol

__all__ = [
    "Clock",
    "Condition",
    "Doorbell",
    "ReentrantLock",
    "Runtime",
    "SystemRuntime",
    "threads_are_greenlets",
]


_BOOT_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class Clock(Protocol):
    """What can tell the wall clock; the standard `time` module is one."""

    def time(self) -> float:
        """Return unix seconds."""
        ...

    def time_ns(self) -> int:
        """Return unix nanoseconds."""
        ...


class Condition(Protocol):
    """The part of `threading.Condition` that the package uses."""

    def __enter__(self) -> bool: ...
    def __exit__(self, *args: object) -> object: ...
    def wait(self, timeout: float | None = None) -> bool:
        """Give the lock back and wait for a notification, at most *timeout* seconds."""
        ...

    def notify(self, n: int = 1) -> None:
        """Wake *n* waiters; the lock must be held."""
        ...

    def notify_all(self) -> None:
        """Wake every waiter; the lock must be held."""
        ...


class ReentrantLock(Protocol):
    """A lock that knows its owner, so that code interrupted by a signal can tell itself apart."""

    def __enter__(self) -> bool: ...
    def __exit__(self, *args: object) -> object: ...
    def _is_owned(self) -> bool:
        """Whether this thread holds the lock (the name is CPython's; `Condition` relies on it)."""
        ...


class Doorbell(Protocol):
    """Wakes one waiter. `ring()` is safe in a signal handler, in `__del__`, and under any lock."""

    def ring(self) -> None:
        """Wake one waiter, now or as soon as it waits."""
        ...

    def wait(self, timeout: float | None) -> bool:
        """Wait for a ring, at most *timeout* seconds; False when the time ran out, or earlier.

        In the main thread the real one returns False after a second: see `_QueueDoorbell`.
        """
        ...


class Runtime(Protocol):
    """Clocks, threads, randomness and process identity."""

    @property
    def clock(self) -> Clock:
        """The wall clock, as an object so that the hot path can bind it once."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        ...

    def suspended(self) -> float:
        """Return for how many seconds the machine has slept, which `monotonic()` leaves out."""
        ...

    def random(self) -> float:
        """Return a float drawn evenly from [0, 1)."""
        ...

    def random_bits(self, bits: int) -> int:
        """Return an unpredictable integer of that many bits, for identifiers."""
        ...

    def process_id(self) -> int:
        """Return the id of this process."""
        ...

    def thread_id(self) -> int:
        """Return a number that no other living thread has."""
        ...

    def condition(self) -> Condition:
        """Return a condition with a re-entrant lock of its own."""
        ...

    def reentrant_lock(self) -> ReentrantLock:
        """Return a lock that its owner may take again."""
        ...

    def holds_lock(self) -> bool:
        """Whether this thread is inside one of the conditions and locks that were made here.

        Then a signal handler or `__del__` asks, which struck it there: to wait for another thread
        would be to wait for itself.
        """
        ...

    def doorbell(self) -> Doorbell:
        """Return a new doorbell."""
        ...

    def start_thread(self, target: Callable[[], None], name: str) -> None:
        """Start a daemon thread.

        Raises:
            RuntimeError: The interpreter starts no more threads (Python 3.12 at shutdown).
        """
        ...


_MAIN_WAIT_SECONDS = 1.0


class _QueueDoorbell:
    # `SimpleQueue.put` is written in C and documented as reentrant: a signal handler or `__del__`
    # that interrupts another `put` of the same thread cannot deadlock. `threading.Event` and
    # `Condition` take a lock written in Python's terms, and can (django-q2#346).
    #
    # A signal that arrives between the last bytecode and the wait does not end the wait: the
    # kernel has nothing to interrupt yet, and Python runs handlers between bytecodes alone (signal
    # module, "Execution of Python signal handlers"). Handlers run in the main thread, so that one
    # looks again after a second. Otherwise Ctrl-C could go unnoticed for a whole `close(60)`.
    __slots__ = ("_made",)

    def __init__(self) -> None:
        # Made when it is first used: gevent may be set up between an agent and its first event, and
        # a greenlet that waits at a queue from before would stop all the others.
        self._made: dict[str, _queue.SimpleQueue[None]] = {}

    def ring(self) -> None:
        rings = self._rings()
        if rings.empty():
            rings.put(None)

    def wait(self, timeout: float | None) -> bool:
        rings = self._rings()
        if threading.get_ident() == threading.main_thread().ident:
            timeout = _MAIN_WAIT_SECONDS if timeout is None else min(timeout, _MAIN_WAIT_SECONDS)
        try:
            rings.get(timeout=timeout)
        except queue.Empty:
            return False
        # Several rings say no more than one: the waiter looks at everything anyway.
        while not rings.empty():
            rings.get()
        return True

    def _rings(self) -> _queue.SimpleQueue[None]:
        if not self._made:
            # gevent's queue is for greenlets alone. It may be there although threads are threads
            # (`patch_all(thread=False)`), whom it would not wake.
            make = queue.SimpleQueue if threads_are_greenlets() else _queue.SimpleQueue
            # One step: whoever comes second gets what the first one made.
            self._made.setdefault("rings", make())
        return self._made["rings"]


class _Condition(threading.Condition):
    # The `with` of the standard one is two methods written in Python. An exception that a signal
    # handler raises behind the lock in the first of them, or before it in the second, leaves the
    # condition locked: senders would wait for ever. To hand out the methods of the lock, which are
    # written in C, leaves no such place.
    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class SystemRuntime:
    """The real thing."""

    # Kept on the class because freezegun replaces the names it finds in modules: a frozen monotonic
    # clock would stop every deadline of an application's tests. The wall clock is looked up in
    # `time` at each call for the opposite reason: a frozen test should see its frozen timestamps.
    monotonic = staticmethod(time.monotonic)
    process_id = staticmethod(os.getpid)

    def __init__(self) -> None:
        self._locks: tuple[int, list[ReentrantLock]] = -1, []

    @property
    def clock(self) -> Clock:
        return time

    def suspended(self) -> float:
        if _BOOT_CLOCK is None:
            return 0.0  # macOS: the wall clock alone tells it
        return time.clock_gettime(_BOOT_CLOCK) - time.clock_gettime(time.CLOCK_MONOTONIC)

    def thread_id(self) -> int:
        # Looked up at each call: gevent may replace it after this module was imported, and to the
        # original all greenlets are one thread.
        return threading.get_ident()

    def random(self) -> float:
        # As the `random` module makes one, which costs an import, and whose numbers are those of
        # an application that seeded it.
        return self.random_bits(53) * 2.0**-53

    def random_bits(self, bits: int) -> int:
        # Not the `random` module: an application that seeds it, or forks after seeding, would mint
        # the same identifiers twice, and Stripe would silently drop the second event of each pair.
        return int.from_bytes(os.urandom((bits + 7) // 8), "big") >> (-bits % 8)

    def condition(self) -> Condition:
        # Re-entrant, for an application that calls `flush()` or `close()` in a signal handler which
        # interrupted one of them in the same thread.
        return _Condition(self.reentrant_lock())  # type: ignore[arg-type]  # more than it needs

    def reentrant_lock(self) -> ReentrantLock:
        # The one in C. What gevent puts in the place of `threading.RLock` is written in Python: a
        # signal handler that interrupts it would wait for itself, and one that raises would leave
        # it locked for ever. To this one all greenlets are one thread, which is right as long as
        # nothing that lets another greenlet run is called under it.
        lock: ReentrantLock = _thread.RLock()  # type: ignore[assignment]  # it has `_is_owned`
        process_id, locks = self._locks
        if process_id == self.process_id():
            locks.append(lock)
        else:
            # In a child of `fork`, who makes all locks anew. What another thread of the parent held
            # is held for ever, and a thread of the child may get the number of that one.
            self._locks = self.process_id(), [lock]
        return lock

    def holds_lock(self) -> bool:
        _, locks = self._locks
        return any(lock._is_owned() for lock in locks)  # noqa: SLF001 - see there

    def doorbell(self) -> Doorbell:
        return _QueueDoorbell()

    def start_thread(self, target: Callable[[], None], name: str) -> None:
        if not threads_are_greenlets():
            run = _unheard(target)
            threading.Thread(target=run, name=name, daemon=True).start()
        else:
            # gevent makes greenlets of threads. `Thread.start` would wait until this one runs,
            # which a signal handler in gevent's loop cannot; and in a forked child, where greenlets
            # live on, the end of `Thread` would fail on the books that `threading` has cleared.
            _thread.start_new_thread(target, ())


def threads_are_greenlets() -> bool:
    """Whether gevent has replaced what starts threads."""
    return not isinstance(_thread.start_new_thread, types.BuiltinFunctionType)


def _unheard(target: Callable[[], None]) -> Callable[[], None]:
    # In a thread these two end nothing but the thread, and the thread excepthook is not ours.
    def run() -> None:
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            target()

    return run
