"""The sender threads: who watches and who sends; `flush` and `close`.

Senders are identical threads that pull batches from the buffer; there is no queue between them and
it. At most one of them watches: it sleeps until enough events wait for a full batch, until the
oldest waits for *flush_interval_seconds*, or, when nothing waits, until somebody rings. The others
are sending, or sleep until they are called to watch.

- The first sender starts with the first event. A sender that leaves the watch calls another one to
  watch in its place; when all are busy and there may be more, up to *max_in_flight*, it starts one
  if its batch is full or the last request was slow, and otherwise leaves it to the next `record()`
  that finds the flusher away for longer than the interval.
- `flush()` waits for a position in the order of recording, never for an empty buffer.
- A sender that dies leaves its batch to the next one, which starts at once, or rests for a second
  when the death before was recent.

The lock of `_changed` guards the state of the senders. Nothing is sent, logged or called back under
it, and `record()` does not take it: it only rings the doorbell. `flush` and `close` wait for
`_progress`, without a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meter_agent._batch import Batch
from meter_agent._deaths import REST_SECONDS, Deaths
from meter_agent._event_buffer import EventBuffer
from meter_agent._held import HeldBatches
from meter_agent._pace import Pace
from meter_agent._progress import Progress
from meter_agent._runtime import Runtime
from meter_agent._schedule import Schedule

if TYPE_CHECKING:
    from meter_agent._sender import Work

__all__ = ["Flusher"]

_REST_WHILE_CLOSING_SECONDS = 0.1
_LEAVE_SECONDS = 0.2


class Flusher:
    """Runs the sender threads.

    Args:
        runtime: Clocks, locks and threads.
        buffer: Where events wait.
        held: Batches that may not be sent for a while.
        pace: Told to hurry and to close.
        open_work: Makes what one sender thread works with; called in that thread.
        on_death: Told about the error that ended a sender thread.
        on_retired: Called by the last sender thread after `retire()`.
        batch_size: Events of a full batch.
        flush_interval_seconds: How old the oldest waiting event may become.
        max_in_flight: Most sender threads.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        buffer: EventBuffer,
        held: HeldBatches,
        pace: Pace,
        open_work: Callable[[], Work],
        on_death: Callable[[BaseException], None],
        on_retired: Callable[[], None],
        batch_size: int,
        flush_interval_seconds: float,
        max_in_flight: int,
    ) -> None:
        self._runtime = runtime
        self._buffer = buffer
        self._held = held
        self._pace = pace
        self._open_work = open_work
        self._on_death = on_death
        self._on_retired = on_retired
        self._batch_size = batch_size
        self._flush_interval_seconds = flush_interval_seconds
        self._max_in_flight = max_in_flight
        self._schedule = Schedule(runtime, buffer, batch_size, flush_interval_seconds)
        self._doorbell = runtime.doorbell()
        # Taken by whoever starts the first sender, and gone as long as any sender runs. A deque,
        # because `del` is one step: a signal handler that records while the thread it interrupted
        # is starting a sender must not start another. And no exception of a handler strikes behind
        # a `del`, before the `try` that puts the token back; behind a call, such as `pop()`, it
        # may, and then nobody would ever send again.
        self._nobody_sends = deque([True])
        self._deaths = Deaths(runtime)
        self._threadless = False
        # Threads that are just starting the first sender. A dict, because each of its operations
        # used here is one step.
        self._starting_in: dict[int, None] = {}
        self._changed = runtime.condition()
        self._senders: set[int] = set()
        # The thread that is starting a helper; None as soon as that one runs.
        self._helped_by: int | None = None
        self._watching = False
        self._idle = 0
        self._busy = 0
        self._last_was_slow = False
        # Since when nobody watches although another sender could; empty otherwise. A deque, because
        # `pop` is one step as well.
        self._unwatched_since: deque[float] = deque()
        self._working_here: int | None = None
        self._closing = False
        self._gave_up = False
        self._deaths_before_drain = 0
        self._drain_line: Any = None
        self._retiring = False
        self._stopped = False
        self._progress = Progress(runtime)

    # -- called by record(): any thread, signal handler, __del__; no lock ------------------------

    def wake(self) -> None:
        """Make sure that somebody looks at the buffer."""
        self._doorbell.ring()
        if self._unwatched_since:
            self._find_a_watcher()
        if not self._nobody_sends or self._stopped or self._gave_up:
            return
        me = self._runtime.thread_id()
        self._starting_in[me] = None
        try:
            self._start_first()
        finally:
            self._starting_in.pop(me, None)

    def _start_first(self) -> None:
        try:
            del self._nobody_sends[0]
        except IndexError:
            return  # another thread was quicker
        started = False
        try:
            started = self._start(self._run)
        finally:  # also when Ctrl-C strikes here
            if not started:
                self._nobody_can_send()

    def _nobody_can_send(self) -> None:
        self._nobody_sends.append(True)
        self._buffer.set_alarm(1)
        self._progress.tell()  # who waits in `flush()` may have to do the work

    def _find_a_watcher(self) -> None:
        try:
            since = self._unwatched_since.pop()
        except IndexError:
            return  # a sender came back
        away_seconds = self._runtime.monotonic() - since
        if len(self._buffer) >= self._schedule.full or away_seconds >= self._flush_interval_seconds:
            self._start(self._run)
        else:
            self._unwatched_since.append(since)
            self._buffer.set_alarm(1)

    def _start(self, target: Callable[[], None]) -> bool:
        try:
            self._runtime.start_thread(target, "meter-agent-sender")
        except (RuntimeError, MemoryError):
            # The interpreter is shutting down (cpython#113964), or out of threads. `flush()` and
            # `close()` then do the work in the calling thread.
            self._threadless = True
            return False
        self._threadless = False
        return True

    # -- a sender thread -----------------------------------------------------------------------

    def _run_as_helper(self) -> None:
        self._run(helper=True)

    def _run(self, *, helper: bool = False) -> None:
        me = self._runtime.thread_id()
        with self._changed:
            if helper:
                self._helped_by = None
            if len(self._senders) >= self._max_in_flight:
                return  # two callers found that a watcher was missing
            self._senders.add(me)
        try:
            self._work_until_it_ends()
        finally:
            self._leave(me)

    def _work_until_it_ends(self) -> None:
        # A function of its own, and short: without memory, CPython 3.11 to 3.13 spins for ever in a
        # handler that lies behind the first 256 instructions (`lasti` in ceval.c).
        try:
            self._rest()
            self._tend_first()
            work = self._open_work()
            try:
                self._pull_and_process(work)
            finally:
                work.close()
        except BaseException as error:  # the application's thread excepthook is not ours
            self._deaths.add()
            self._on_death(error)
            if isinstance(error, SystemExit | KeyboardInterrupt):
                # With gevent, a signal handler that ends the process may have run in this greenlet.
                raise

    def _tend_first(self) -> None:
        # Before the imports: an agent that is closed before they are done has adopted as well.
        if self._buffer.needs_tending:
            self._buffer.tend()
            self._progress.tell()

    def _leave(self, me: int) -> None:
        with self._changed:
            self._senders.discard(me)
            last = not self._senders and self._helped_by is None
            self._changed.notify()
        # Whoever watches may be asleep, and a batch may have been given back.
        self._doorbell.ring()
        if last:
            self._nobody_sends.append(True)
            # Nobody listens any more: the next `record()` must look up and start a sender.
            self._buffer.set_alarm(1)
            if self._buffer.is_drained:
                if self._retiring:
                    self._on_retired()
            elif not (self._closing or self._stopped):
                self.wake()
        self._progress.tell()

    def _rest(self) -> None:
        # The first sender after several deaths waits before it begins.
        if not self._stopped:
            self._deaths.rest(_REST_WHILE_CLOSING_SECONDS if self._closing else REST_SECONDS)

    def _pull_and_process(self, work: Work) -> None:
        eager = False
        while (batch := self._next_batch(eager=eager)) is not None:
            began = self._runtime.monotonic()
            try:
                work.process(batch)
            finally:
                is_held = self._put_back(batch)
                with self._changed:
                    self._busy -= 1
                    seconds = self._runtime.monotonic() - began
                    self._last_was_slow = seconds > self._flush_interval_seconds
                self._progress.tell()
            if batch.size and not is_held:
                # No chance before the deadline of `close()`. Another sender would pull the same
                # batch and call for the next one, over and over.
                self._gave_up = self._closing
                return
            eager = True

    def _put_back(self, batch: Batch) -> bool:
        # True: it is held. Otherwise, if anything of it is left, the agent closes or the sender
        # dies, and the next one gets it.
        if batch.size and batch.held_until is not None:
            self._held.put(batch)
            self._doorbell.ring()  # the watcher may sleep for longer than that
            return True
        if batch.size:
            self._buffer.give_back(batch)
        return False

    def _next_batch(self, *, eager: bool) -> Batch | None:
        while True:
            self._buffer.tend()
            with self._changed:
                if self._is_over():
                    return None
                self._unwatched_since.clear()
                if self._due_in(eager=eager) == 0 and (batch := self._pull()) is not None:
                    helper = self._hand_over_watch(batch)
                    break
                eager = False
                if self._watching:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                    continue
                self._watching = True
            try:
                self._watch()
            finally:
                with self._changed:
                    self._watching = False
        if helper:
            self._start_helper()
        elif self._unwatched_since:
            self._buffer.set_alarm(1)
        return batch

    def _hand_over_watch(self, batch: Batch) -> bool:
        # True: a new thread is needed. Called with the lock held.
        if self._watching or self._helped_by is not None:
            return False
        if self._idle or batch.size >= self._batch_size or self._last_was_slow:
            return self._call_help()
        if len(self._senders) < self._max_in_flight:
            self._unwatched_since.append(self._runtime.monotonic())
        return False

    def _is_over(self) -> bool:
        return self._stopped or (self._retiring and self._buffer.is_drained)

    def _pull(self) -> Batch | None:
        batch = self._take()
        if batch is not None:
            self._busy += 1
            self._schedule.note_pull()
        return batch

    def _take(self) -> Batch | None:
        # Held batches get no last try when the agent closes: what holds them goes on.
        held = None if self._closing else self._held.take()
        return held or self._buffer.take(self._batch_size)

    def _call_help(self) -> bool:
        # Somebody should watch while we send. True: that takes a new thread, which the caller
        # starts when it has let go of the lock.
        if self._watching or self._helped_by is not None:
            return False
        if self._idle:
            self._changed.notify()
            return False
        if self._gave_up or len(self._senders) >= self._max_in_flight:
            return False
        self._helped_by = self._runtime.thread_id()
        return True

    def _start_helper(self) -> None:
        if not self._start(self._run_as_helper):
            self._withdraw_helper()

    def _withdraw_helper(self) -> None:
        with self._changed:
            if self._helped_by != self._runtime.thread_id():
                return
            self._helped_by = None
            nobody = not self._senders  # the last of them has left it to the helper
        if nobody:
            self._nobody_can_send()

    # -- the watch -----------------------------------------------------------------------------

    def _watch(self) -> None:
        seconds = self._set_alarm()
        for due_in in (self._buffer.seconds_until_tending(), self._held_due_in()):
            if due_in is not None:
                seconds = due_in if seconds is None else min(seconds, due_in)
        if seconds is None or seconds > 0:
            self._doorbell.wait(seconds)
        self._buffer.unset_alarm()

    def _set_alarm(self) -> float | None:
        # The alarm is set first and the buffer looked at afterwards: see there why no event can
        # slip in between. When the look shows that it was the wrong alarm, once more.
        empty = True
        while True:
            self._buffer.set_alarm(1 if empty else self._schedule.full)
            with self._changed:
                seconds = 0.0 if self._is_over() else self._due_in(eager=False)
            if seconds == 0 or (seconds is None) == empty:
                break
            empty = seconds is None
        if not empty and len(self._buffer) >= self._schedule.full:
            # A full batch waits for a busy sender to take it: no need to hear of further events.
            self._buffer.unset_alarm()
        return seconds

    def _due_in(self, *, eager: bool) -> float | None:
        # Seconds until a batch should leave; None while nothing waits. Called with the lock held.
        if self._held_due_in() == 0:
            return 0.0
        return self._schedule.due_in(
            eager=eager, busy=self._busy > 0, ending=self._closing or self._retiring
        )

    def _held_due_in(self) -> float | None:
        return None if self._closing else self._held.due_in()

    # -- flush and close -----------------------------------------------------------------------

    @property
    def called_from_sender(self) -> bool:
        """Whether this thread is sending just now, and the application calls from a callback."""
        me = self._runtime.thread_id()
        return me in self._senders or me == self._working_here

    @property
    def called_within_itself(self) -> bool:
        """Whether senders wait for this very thread.

        A signal handler or `__del__` calls, which struck it under a lock of ours, or while it was
        starting a sender. It must not wait for them, nor take further locks: whoever holds one of
        those may be waiting for that.
        """
        return self._runtime.thread_id() in self._starting_in or self._runtime.holds_lock()

    @property
    def closing(self) -> bool:
        """Whether `drain()` has begun."""
        return self._closing

    @property
    def nobody_sends(self) -> bool:
        """Whether events wait in vain: senders cannot be started, or die one after the other."""
        threadless = self._threadless and bool(self._nobody_sends)
        return (threadless or self._deaths.form_a_pattern) and not self._buffer.is_drained

    def flush(self, timeout: float | None) -> bool:
        """Send what waits; True when everything recorded before the call is settled."""
        deadline = None if timeout is None else self._runtime.monotonic() + timeout
        deaths = self._deaths.total
        with self._changed:
            # Under the lock, so that a line drawn later includes one drawn before.
            line = self._buffer.line()
            self._schedule.hurry(line)
        self._set_to_work()

        def settled() -> bool:
            return self._buffer.is_settled(line)

        return self._wait_until(settled, deadline, deaths)

    def drain(self, deadline: float) -> None:
        """Send what waits, without regard to batch sizes, until *deadline* (monotonic seconds).

        Returns early when everything is settled, or when no sender sees a chance before then.
        """
        self.begin_drain(deadline)
        self.wait_until_drained(deadline, later_ones_too=True)

    def begin_drain(self, deadline: float) -> None:
        """Begin what `drain()` does; events may still be recorded."""
        with self._changed:
            self._drain_line = self._buffer.line()
            self._closing = True
            self._gave_up = False
            self._changed.notify()
        self._pace.close(deadline)
        self._deaths_before_drain = self._deaths.total
        self._set_to_work()

    def wait_until_drained(self, deadline: float, *, later_ones_too: bool) -> None:
        """Wait, until *deadline* at most, for what was recorded before `begin_drain()`.

        Or for a moment at which nothing is left, where *later_ones_too* are to be sent.
        """

        def settled() -> bool:
            return self._has_nothing_left() or (
                not later_ones_too and self._buffer.is_settled(self._drain_line)
            )

        self._wait_until(settled, deadline, self._deaths_before_drain)

    def disown(self) -> None:
        """In a child of `fork`: a thread that goes on in here belongs to the parent's work."""
        self._stopped = True

    def retire(self) -> bool:
        """Send what waits without anybody waiting for it, then end. True: there is nothing left.

        The garbage collector calls it, in whatever thread it likes. It takes no lock but the
        buffer's, whose holders wait for nobody.
        """
        self._retiring = True
        self._deaths.end_rest()
        self._doorbell.ring()
        return bool(self._nobody_sends) and self._buffer.is_drained

    def stop(self) -> None:
        """End the sender threads, each as soon as it lets go of its request.

        Those that are idle are waited for: they close their connections, and a thread that is cut
        off by the end of the interpreter would leave that to its warnings.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._deaths.end_rest()
        self._doorbell.ring()
        self._progress.tell()
        self._progress.wait_until(
            lambda: bool(self._nobody_sends or self._busy),
            self._runtime.monotonic() + _LEAVE_SECONDS,
        )

    def _has_nothing_left(self) -> bool:
        # What is held is not to be sent now: `close()` does not wait for it.
        return not self._buffer.needs_tending and self._buffer.has_only(self._held)

    def _set_to_work(self) -> None:
        if self._has_nothing_left():
            return
        self._deaths.forgive()
        self._pace.hurry()
        self.wake()
        try:
            with self._changed:
                helper = bool(self._senders) and self._call_help()
            if helper:
                self._start_helper()
        except BaseException:  # of a signal handler
            self._withdraw_helper()
            raise

    def _wait_until(
        self, done: Callable[[], bool], deadline: float | None, deaths: int = 0
    ) -> bool:
        # *deaths* is how many senders had died before this was asked for.
        if self.called_from_sender:
            return done()  # waiting for ourselves would last for ever
        if self._threadless and not done():
            self._work_here(done, deadline)
        while not self._wait_while_somebody_sends(done, deadline):
            if self._stopped or self._is_past(deadline):
                return done()
            if self._closing and self._deaths.total == deaths:
                return done()  # no sender sees a chance before the deadline
            # The last sender has died, or none could be started, and there is still time.
            deaths = self._deaths.total
            self.wake()
            if self._threadless:
                self._work_here(done, deadline)
            self._pause(done, deadline)
        return True

    def _pause(self, done: Callable[[], bool], deadline: float | None) -> None:
        # Senders that die again and again are not to be replaced in a hot loop.
        rested_at = self._runtime.monotonic() + REST_SECONDS
        self._progress.wait_until(
            lambda: not self._nobody_sends or done(),
            rested_at if deadline is None else min(deadline, rested_at),
        )

    def _wait_while_somebody_sends(self, done: Callable[[], bool], deadline: float | None) -> bool:
        self._progress.wait_until(
            lambda: done() or self._stopped or bool(self._nobody_sends), deadline
        )
        return done()

    def _is_past(self, deadline: float | None) -> bool:
        return deadline is not None and self._runtime.monotonic() >= deadline

    def _work_here(self, done: Callable[[], bool], deadline: float | None) -> None:
        # No thread can be started any more: the caller's own time is all there is.
        try:
            del self._nobody_sends[0]
        except IndexError:
            return  # another caller does it, and tells us
        try:
            self._working_here = self._runtime.thread_id()
            self._tend_first()
            work = self._open_work()
            try:
                with self._pace.until(deadline):
                    self._work_until(done, work)
            finally:
                work.close()
        except Exception as error:  # noqa: BLE001 - as in a sender thread
            self._on_death(error)
        finally:
            self._working_here = None
            self._nobody_sends.append(True)
            self._progress.tell()

    def _work_until(self, done: Callable[[], bool], work: Work) -> None:
        while not done() and (batch := self._take()):
            try:
                work.process(batch)
            finally:
                is_held = self._put_back(batch)
            if batch.size and not is_held:
                return
