"""How a process ends and how it forks: atexit, fork, multiprocessing, SIGTERM.

One hook of each kind per process, whatever the number of agents, installed with the first of them;
only that of `atexit` comes with the import. The hooks find the agents in one registry; an agent
that was closed, or collected with nothing left to send, is in it no more.

Who runs what: `atexit` runs at the end of the main module, after `sys.exit` and in gunicorn's
workers. It does not run on SIGTERM without a handler, after `os._exit`, and in children of
`multiprocessing` before Python 3.13; those run `multiprocessing.util.Finalize` instead.

While the agents drain, recording goes on: request threads may still be answering. See `close_all`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from meter_agent._log import ERROR, write
from meter_agent._runtime import SystemRuntime

__all__ = [
    "arrange_child_exit",
    "call_after_close",
    "call_after_fork",
    "close_all",
    "is_exiting",
    "register",
    "tell_closed",
    "unregister",
]

_CHILD_EXIT_PRIORITY = 10
_LAST_REQUESTS_SECONDS_MAX = 1.0
"""Events in memory are refused this long before the deadline, or for the last quarter of the time.

A request that is cut off by the deadline leaves its events uncertain; so the last ones begin early
enough to be answered. What a spool keeps is recorded until the deadline.
"""

_LATE_AGENTS_SECONDS = 0.3
"""Agents that are built while the others drain are closed until this long after the deadline."""


class Closable(Protocol):
    """What the hooks need of an agent's pipeline."""

    shutdown_timeout_seconds: float

    @property
    def keeps_the_rest(self) -> bool:
        """Whether what cannot be sent outlives the process."""
        ...

    def begin_drain(self, deadline: float) -> None:
        """Send everything that is recorded at once, until *deadline*; recording goes on."""
        ...

    def wait_until_drained(self, deadline: float, *, later_ones_too: bool) -> None:
        """Wait until all is sent, nothing more can be sent in time, or *deadline*.

        All is what was recorded before `begin_drain`, or *later_ones_too*.
        """
        ...

    def begin_close(self, deadline: float) -> None:
        """Let nothing more in and start to drain."""
        ...

    def finish_close(self, deadline: float) -> object:
        """Wait for the drain until *deadline* and account for the rest."""
        ...

    def flush(self, timeout: float | None) -> bool:
        """Send what waits."""
        ...

    def start_over_after_fork(self) -> None:
        """Forget what belongs to the parent."""
        ...


class _State:
    def __init__(self) -> None:
        # Strong references: events of an agent that nobody holds any more are still to be sent.
        # A dict for its order, and because each of its operations used here is one step.
        self.pipelines: dict[Closable, None] = {}
        self.after_fork: dict[Callable[[], None], None] = {}
        self.after_close: dict[Callable[[float], None], None] = {}
        self.installed = False
        # An import that comes after the main thread has ended may be that of an exit handler, and
        # an exit handler that it registers is not called any more.
        main = threading.main_thread()
        # In a child forked by another thread, that one passes for the main thread and may be over.
        self.exiting = type(main).__name__ == "_MainThread" and not main.is_alive()
        self.closing = False
        self.kill_with: int | None = None
        # Set by SIGTERM, monotonic: whatever else ends the process gets no longer than that.
        self.ends_at = float("inf")
        self.sigterm_installed = False
        self.previous_sigterm: Any = None
        self.child_process_id: int | None = None


_state = _State()


def register(pipeline: Closable, *, handle_sigterm: bool) -> None:
    """Close *pipeline* when the process ends, and let it start over in forked children."""
    _state.pipelines[pipeline] = None
    _install()
    if handle_sigterm:
        _install_sigterm()


def unregister(pipeline: Closable) -> None:
    """Forget *pipeline*: it has nothing left to send."""
    _state.pipelines.pop(pipeline, None)


def call_after_fork(renew: Callable[[], None]) -> None:
    """Call *renew*, once in each forked child, before the agents start over."""
    _state.after_fork[renew] = None
    _install()


def call_after_close(tell: Callable[[float], None]) -> None:
    """Call *tell* whenever an agent has closed and its ledger is final.

    It is given the deadline of that close (monotonic seconds), must keep to it, or take no more
    than moments when that is past, and must not raise.
    """
    _state.after_close[tell] = None


def tell_closed(deadline: float) -> None:
    """An agent has closed, and its caller waits until *deadline*."""
    for tell in list(_state.after_close):
        tell(deadline)


def is_exiting() -> bool:
    """Whether the exit hook has run: nothing that is recorded now would be sent by itself."""
    return _state.exiting


def arrange_child_exit() -> None:
    """In a child of `multiprocessing`: drain when the child's function returns.

    Called when the first event of a process is recorded, because a child clears the finalizers that
    it inherits, after the fork hooks have run.
    """
    process = sys.modules.get("multiprocessing.process")
    util = sys.modules.get("multiprocessing.util")
    if process is None or util is None or process.parent_process() is None:
        return
    if _state.child_process_id != os.getpid():
        util.Finalize(None, close_all, exitpriority=_CHILD_EXIT_PRIORITY)
        _state.child_process_id = os.getpid()


def _install() -> None:
    if _state.installed:
        return
    _state.installed = True
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork_in_child)


def _at_exit() -> None:
    _state.closing = True
    try:
        close_all()
    finally:  # also when Ctrl-C ends the wait
        _state.exiting = True
        if _state.kill_with is not None:
            _end_process(_state.kill_with)


# With the import and not with the first agent: that one may be built by an exit handler, and Python
# calls none that is registered while they run.
atexit.register(_at_exit)


def close_all(*, until_nothing_waits: bool = False) -> None:
    """Close every agent of the process: it is about to end.

    For hosts that leave by `os._exit` but say so first.

    Args:
        until_nothing_waits: Keep recording until a moment at which everything is sent, or until the
            time is nearly over: request threads go on as if nothing had happened. Otherwise what is
            recorded before this call is sent, and what is recorded meanwhile.
    """
    # One budget for the whole process. All agents drain at the same time; the deadline of each is
    # its own, so the whole takes no longer than the longest of them.
    began = latest = SystemRuntime.monotonic()
    closed: set[Closable] = set()
    # Another thread may build an agent while those before it drain, and record with it.
    while pipelines := [each for each in list(_state.pipelines) if each not in closed]:
        ends = {p: min(began + p.shutdown_timeout_seconds, _state.ends_at) for p in pipelines}
        closed.update(pipelines)
        latest = max(latest, *ends.values())
        _drain_and_close(ends, until_nothing_waits=until_nothing_waits)
        if SystemRuntime.monotonic() > latest + _LATE_AGENTS_SECONDS:
            break


def _drain_and_close(ends: dict[Closable, float], *, until_nothing_waits: bool) -> None:
    now = SystemRuntime.monotonic()
    reserved = not all(pipeline.keeps_the_rest for pipeline in ends)
    try:
        for pipeline, deadline in ends.items():
            pipeline.begin_drain(deadline)
        for pipeline, deadline in ends.items():
            last_requests = min(_LAST_REQUESTS_SECONDS_MAX, (deadline - now) / 4) * reserved
            pipeline.wait_until_drained(
                deadline - last_requests, later_ones_too=until_nothing_waits
            )
    except BaseException:  # Ctrl-C ends the wait, not the accounting
        ends = dict.fromkeys(ends, now)
        raise
    finally:
        _close_each(ends)


def _close_each(ends: dict[Closable, float]) -> None:
    with contextlib.ExitStack() as all_of_them:
        # Those that keep the rest come last, and go on recording until then: the stack is unwound
        # from its end. On the stack, because Ctrl-C in one must not keep the others from it.
        for pipeline in sorted(ends, key=lambda pipeline: not pipeline.keeps_the_rest):
            all_of_them.callback(_close, pipeline, ends[pipeline])
            if not pipeline.keeps_the_rest:
                pipeline.begin_close(ends[pipeline])


def _close(pipeline: Closable, deadline: float) -> None:
    pipeline.begin_close(deadline)
    pipeline.finish_close(deadline)


def _after_fork_in_child() -> None:
    # The end that its parent is coming to is not the child's.
    _state.closing, _state.kill_with, _state.ends_at = False, None, float("inf")
    for renew in _state.after_fork:
        renew()
    # `list` first: nothing else runs in a child, but a pipeline may leave the registry meanwhile.
    for pipeline in list(_state.pipelines):
        pipeline.start_over_after_fork()


def _install_sigterm() -> None:
    import signal  # noqa: PLC0415 - few agents handle it, and it costs 0.5 ms

    previous = signal.getsignal(signal.SIGTERM)
    if _state.kill_with is not None or (_state.sigterm_installed and previous != signal.SIG_DFL):
        # It is ours, or one that was installed later, and may call ours. The default is back where
        # a forked child has reset it, as workers of Celery and gunicorn do.
        return
    if previous is None or (not callable(previous) and _kernel_calls_handler(signal.SIGTERM)):
        # Set from C, which Python can neither call nor put back.
        _tell_sigterm_not_handled(
            "a handler that is not written in Python is installed (uWSGI, faulthandler, gevent, an"
            " embedding application)",
            "leave SIGTERM to whatever installed it, and let that run Python's exit handlers or"
            " call meter_agent.close()",
        )
        return
    try:
        signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError as error:
        # Python installs handlers in the main thread of the main interpreter only.
        _tell_sigterm_not_handled(
            str(error),
            "call meter_agent.configure(handle_sigterm=True) in the main thread, where the"
            " application's module is imported: record() in a request thread comes too late",
        )
        return
    if signal.getsignal(signal.SIGTERM) is not _on_sigterm:
        # mod_wsgi puts a function that does nothing in the place of `signal.signal`.
        _tell_sigterm_not_handled(
            "the host lets no application install a signal handler",
            "leave SIGTERM to the host, which runs Python's exit handlers",
        )
        return
    _state.previous_sigterm = previous
    _state.sigterm_installed = True


def _kernel_calls_handler(signal_number: int) -> bool:
    # Python reads the handlers once, when it starts, and takes one that C code has set since for
    # the default action. Linux says which signals are caught: proc_pid_status(5).
    try:
        with open("/proc/self/status", "rb") as status:
            (caught,) = (line for line in status if line.startswith(b"SigCgt:"))
    except (OSError, ValueError):
        return False  # another system, or no /proc: Python's word has to do
    return bool(int(caught.split()[1], 16) & 1 << (signal_number - 1))


def _tell_sigterm_not_handled(reason: str, advice: str) -> None:
    write("meter_agent.sigterm_not_handled", ERROR, reason=reason, advice=advice)


def _on_sigterm(signal_number: int, frame: FrameType | None) -> None:
    # The interrupted frame may hold any lock, ours included, so nothing here waits: a thread of its
    # own drains while the interrupted code goes on (django-q2#346 deadlocked here).
    import signal  # noqa: PLC0415 - loaded long since, by whoever installed this

    previous = _state.previous_sigterm
    if callable(previous):
        _in_thread(_flush_all)
        previous(signal_number, frame)
    elif previous == signal.SIG_DFL:
        # A second SIGTERM kills at once, and so does ours after the drain: the exit status stays.
        signal.signal(signal_number, _end_process if _is_init() else signal.SIG_DFL)
        _state.ends_at = SystemRuntime.monotonic() + max(
            (pipeline.shutdown_timeout_seconds for pipeline in list(_state.pipelines)), default=0.0
        )
        # Also where the process comes to its end by itself meanwhile, or is just there.
        _state.kill_with = signal_number
        if not _state.closing and not _in_thread(lambda: _close_and_end(signal_number)):
            _close_and_end(signal_number)
    else:
        _in_thread(_flush_all)


def _in_thread(target: Callable[[], None]) -> bool:
    try:
        SystemRuntime().start_thread(target, "meter-agent-sigterm")
    except (RuntimeError, MemoryError):
        # Out of threads, or Python 3.12 in the exit hooks of somebody else.
        return False
    return True


def _flush_all() -> None:
    for pipeline in list(_state.pipelines):
        pipeline.flush(pipeline.shutdown_timeout_seconds)


def _close_and_end(signal_number: int) -> None:
    try:
        close_all(until_nothing_waits=True)
    finally:
        _end_process(signal_number)


def _is_init() -> bool:
    return os.getpid() == 1


def _end_process(signal_number: int, _frame: FrameType | None = None) -> None:
    """End as the default action of the signal does: no exit handler runs, nothing is flushed."""
    if _is_init():
        # The first process of a container. The kernel ignores signals whose action is the default
        # there, also those that the process sends to itself: pid_namespaces(7).
        os._exit(128 + signal_number)  # the status that a shell gives a process killed by it
    os.kill(os.getpid(), signal_number)
