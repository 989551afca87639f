"""The wiring of one agent: from `Config` to buffer, senders and stream, and their common end."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meter_agent import _lifecycle
from meter_agent._batch import Batch
from meter_agent._brake import Brake
from meter_agent._buffer import RingBuffer
from meter_agent._config import Config, unknown_variables
from meter_agent._connection import destination_in, open_stream
from meter_agent._dead_letters import DeadLetter, DeadLetterFile, DeadLetterReason, letter_of
from meter_agent._destination import Destination
from meter_agent._dropped import DroppedEvents
from meter_agent._event import EventEncoder, MeterEvent
from meter_agent._event_buffer import EventBuffer, Record, Terms
from meter_agent._flusher import Flusher
from meter_agent._hand_over import HandOver, OnDrop
from meter_agent._health import Health, Problem, Room, diagnose
from meter_agent._held import HeldBatches
from meter_agent._imports import (
    end_short_switch_interval,
    forget_unfinished,
    short_switch_interval,
)
from meter_agent._ledger import DropReason, Outcome, Stats, Traffic, stats_of
from meter_agent._log import ERROR, INFO, WARNING, EventLog, write
from meter_agent._own_identifiers import OwnIdentifiers
from meter_agent._pace import Pace
from meter_agent._progress import Progress
from meter_agent._runtime import Runtime, threads_are_greenlets
from meter_agent.exceptions import ConfigError, MeterAgentError

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter

    from meter_agent._sender import Work

__all__ = ["Pipeline"]

Callbacks = tuple[
    Callable[[DeadLetter], None] | None,
    Callable[[MeterAgentError], None] | None,
    OnDrop | None,
]

_ANNOUNCE_SECONDS = 0.2
_LAST_LINE_SECONDS = 0.4
_STEP_BACK_SECONDS = 0.01
_loaded = False


class Pipeline:
    """Everything behind a `MeterAgent` that outlives it until its events are settled.

    Args:
        config: The settings.
        runtime: Clocks, locks, threads.
        on_dead_letter: The application's callback.
        on_error: The application's callback.
        on_drop: The application's callback.
        keep_dropped: False: dropped events are counted only, whatever file and callback there are.
        open_adapter: Makes the requests adapter that sends; None for the real network.
        refusal: Refuse every event from the start, for this reason.
    """

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        *,
        on_dead_letter: Callable[[DeadLetter], None] | None,
        on_error: Callable[[MeterAgentError], None] | None,
        on_drop: OnDrop | None,
        keep_dropped: bool,
        open_adapter: Callable[[], BaseAdapter] | None,
        refusal: DropReason | None,
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._callbacks: Callbacks = on_dead_letter, on_error, on_drop
        kept = on_drop is not None or config.dead_letter_path is not None
        self._dropped = DroppedEvents(wanted=keep_dropped and kept)
        self._open_adapter = open_adapter
        self.shutdown_timeout_seconds = config.shutdown_timeout_seconds
        self._encoder = EventEncoder(*config.encoder_keys)
        self._destination: Destination | None = None
        """For whom events on disk are; None: there are none."""
        self._buffer = self._open_buffer()
        if refusal is not None:
            self._buffer.refuse(refusal)
        self._wire()
        if refusal is None:
            _lifecycle.register(self, handle_sigterm=config.handle_sigterm)
            if config.spool_dir is not None:
                self._wake()  # a dead process may have left events

    def _open_buffer(self) -> EventBuffer:
        config = self._config
        terms = Terms(
            config.overflow,
            config.block_timeout_seconds,
            wake=self._wake,
            on_fork=self.start_over_after_fork,
            dropped=self._dropped,
        )
        if config.spool_dir is None:
            return RingBuffer(self._runtime, terms, capacity=config.buffer_events)
        self._destination = destination_in(config)
        # Only who wants a spool pays for it.
        try:
            from meter_agent._spool import SpoolBuffer  # noqa: PLC0415
            from meter_agent._spool_directory import SpoolDirectory  # noqa: PLC0415
        except ImportError as error:
            if (error.name or "").startswith("meter_agent"):
                raise  # the files of the package are out of reach, in a chroot for example
            raise ConfigError(
                [f"METER_AGENT_SPOOL_DIR={config.spool_dir}: not on this system ({error}); unset"]
            ) from None

        return SpoolBuffer(
            self._runtime,
            terms,
            directory=SpoolDirectory(
                config.spool_dir, config.spool_bytes, self._runtime, self._destination
            ),
            check=self._encoder.check,
            bytes_max=config.spool_bytes,
            memory_events=config.buffer_events,
            sync_seconds=config.spool_sync_seconds,
            say=self._say,
        )

    def _say(self, event: str, level: int, **fields: Any) -> None:
        # The log is another one after a fork.
        self._log.say(event, level, stacklevel=2, **fields)

    def _wire(self) -> None:
        config, runtime = self._config, self._runtime
        self._exit_arranged = False
        self._retired = False
        self._final: Stats | None = None
        # Taken by whoever ends it. A deque, because no exception of a signal handler strikes
        # between a `del` and the `try` behind it.
        self._to_be_ended = deque([True])
        self._no_closer = deque([True])
        self._ending_in: int | None = None
        self._told = False
        self._end = Progress(runtime)
        self._log = EventLog(runtime)
        self._traffic = Traffic(runtime)
        self._overflow_told = 0
        on_dead_letter, on_error, on_drop = self._callbacks
        self._on_error = self._guarded(on_error)
        self._letters = DeadLetterFile(
            config.dead_letter_path,
            log=self._log,
            on_letter=self._guarded(on_dead_letter),
            runtime=runtime,
        )
        self._hand_over = HandOver(
            runtime,
            dropped=self._dropped,
            encoder=self._encoder,
            letters=self._letters,
            on_drop=self._guarded(on_drop),
            log=self._log,
        )
        self._own_identifiers = OwnIdentifiers(runtime, self._log)
        self._pace = Pace(
            runtime,
            events_per_second=config.max_events_per_second,
            burst_events=config.batch_size,
            base_seconds=config.retry_base_seconds,
            max_seconds=config.retry_max_seconds,
        )
        self._brake = Brake(runtime)
        self._held = HeldBatches(runtime)
        self._shared: dict[str, Any] = {}
        self._flusher = Flusher(
            runtime,
            buffer=self._buffer,
            held=self._held,
            pace=self._pace,
            open_work=self._open_work,
            on_death=self._tell_death,
            on_retired=self._on_retired,
            batch_size=config.batch_size,
            flush_interval_seconds=config.flush_interval_seconds,
            max_in_flight=config.max_in_flight,
        )

    def _wake(self) -> None:
        # On the slow path of `record()`, in whatever context that was called.
        if not self._exit_arranged:
            _lifecycle.arrange_child_exit()
            self._exit_arranged = True
        if self._retired:
            _lifecycle.register(self, handle_sigterm=False)
        self._flusher.wake()

    def load(self) -> None:
        """Import what sending needs, in the calling thread.

        For an agent that is built at the start of a server. Beside threads that compute, the same
        imports in the first sender thread would take seconds, and a `close()` would not wait.
        """
        if not self._config.disabled:
            # What fails here is tried again by the sender thread, which says so.
            with contextlib.suppress(Exception):
                _load()

    def _load_in_sender(self) -> None:
        # An agent that the first `record()` has built: its caller wants the interpreter lock back
        # first. Not so with greenlets: the process may end meanwhile, and then gevent resolves no
        # names.
        if "requests" not in sys.modules and not threads_are_greenlets():
            self._runtime.doorbell().wait(_STEP_BACK_SECONDS)
        _load()

    def _open_work(self) -> Work:
        self._load_in_sender()
        from meter_agent._body_limit import BodyLimit  # noqa: PLC0415
        from meter_agent._delivery import Delivery  # noqa: PLC0415
        from meter_agent._sender import Reporting, Sender  # noqa: PLC0415
        from meter_agent._session import SessionCache  # noqa: PLC0415

        config, runtime = self._config, self._runtime
        # `setdefault`, one step: all senders share what the first of them made.
        sessions = self._shared.setdefault("sessions", SessionCache(runtime, log=self._log))
        body_limit = self._shared.setdefault("body limit", BodyLimit(runtime, config.batch_size))
        stream = open_stream(
            config,
            runtime,
            traffic=self._traffic,
            seconds_left=self._pace.seconds_left,
            open_adapter=self._open_adapter,
            mode=None if self._destination is None else self._destination.mode,
        )
        delivery = Delivery(
            runtime,
            stream=stream,
            sessions=sessions,
            pace=self._pace,
            attempts=self._buffer,
            body_limit=body_limit,
            brake=self._brake,
            held=self._held,
            traffic=self._traffic,
            log=self._log,
            on_error=self._tell_error,
            resend_window_seconds=config.resend_window_seconds,
            clock=self._buffer.clock,
        )
        sender = Sender(
            runtime,
            buffer=self._buffer,
            encoder=self._encoder,
            delivery=delivery,
            letters=self._letters,
            own_identifiers=self._own_identifiers,
        )
        return Reporting(sender, self._tell_drops)

    # -- what the facade offers ----------------------------------------------------------------

    def recorder(self, *, strict: bool) -> Record:
        """Return the `record()` of this agent."""
        record = self._buffer.recorder()
        if _lifecycle.is_exiting():
            record = self._flushing(record)
        if not strict:
            return record
        from meter_agent._strict_record import check_first  # noqa: PLC0415  for tests, mostly

        return check_first(record, self._encoder, self._runtime)

    def _flushing(self, record: Record) -> Record:
        # Made by an exit handler that ran after ours: no thread would be waited for any more.
        deadline = self._runtime.monotonic() + self.shutdown_timeout_seconds

        def record_and_flush(*event: Any, **options: Any) -> bool:
            held = record(*event, **options)
            if held and not self.flush(max(0.0, deadline - self._runtime.monotonic())):
                # The budget of the exit is spent: account for what is left, take no more.
                self.begin_close(deadline)
                self.finish_close(deadline)
            return held

        return record_and_flush

    def flush(self, timeout: float | None) -> bool:
        """See `MeterAgent.flush`."""
        self._notice_fork()
        if self._flusher.called_within_itself:
            self._flusher.wake()  # all that can be done
            return False
        return self._flusher.flush(timeout)

    def adopt(self) -> bool:
        """Take over what dead processes left; False: a sender is just doing it, ask again."""
        self._buffer.tend()
        return self._buffer.adoptions > 0

    def recover_all(self) -> bool:
        """Take over all that dead processes left; False: there may be more, ask again."""
        return self._buffer.recover_all()

    @property
    def closed(self) -> bool:
        """See `MeterAgent.closed`."""
        return self._buffer.is_closed

    @property
    def retired(self) -> bool:
        """Whether nobody has to close it: its agent is gone, or another took its place."""
        return self._retired

    @property
    def callbacks(self) -> Callbacks:
        """*on_dead_letter*, *on_error* and *on_drop* of the application, as they were given."""
        return self._callbacks

    def stats(self) -> Stats:
        """See `MeterAgent.stats`."""
        self._notice_fork()
        return self._read_stats()

    def health(self) -> Health:
        """See `MeterAgent.health`."""
        self._notice_fork()
        return diagnose(
            self._read_stats(),
            self.room(),
            refusal=self._buffer.refusal,
            nobody_sends=self._flusher.nobody_sends,
            key_refused=self._traffic.key_refused,
            requests_fail=self._pace.failing,
            others=self._buffer.problems()
            | self._letters.problems()
            | {Problem.EVENTS_PAUSED: self._brake.describe()},
        )

    def count_refused(self, reason: DropReason, count: int) -> None:
        """Count *count* events that were refused before there was this agent."""
        self._buffer.count_refused(reason, count)

    def room(self) -> Room:
        """Return how much of what waiting events may take up is taken."""
        return self._buffer.room()

    @property
    def keeps_the_rest(self) -> bool:
        """Whether what is unsent at the end is kept for another process."""
        return self._config.spool_dir is not None

    def begin_drain(self, deadline: float) -> None:
        """Send everything at once, until *deadline* at the latest; recording goes on."""
        self._notice_fork()
        if not (self._flusher.called_within_itself or self._flusher.called_from_sender):
            self._flusher.begin_drain(deadline)

    def wait_until_drained(self, deadline: float, *, later_ones_too: bool) -> None:
        """Wait until all is sent, nothing more can be sent in time, or *deadline*.

        All is what was recorded before `begin_drain()`, or *later_ones_too*.
        """
        if not (self._flusher.called_within_itself or self._flusher.called_from_sender):
            self._flusher.wait_until_drained(deadline, later_ones_too=later_ones_too)

    def begin_close(self, deadline: float) -> None:
        """Let nothing more in and send what waits; `finish_close` waits for it."""
        self._notice_fork()
        if self._flusher.called_within_itself:
            return  # `finish_close` sees to it
        if self._flusher.called_from_sender and self._pace.closing:
            return
        self._buffer.refuse(DropReason.CLOSED)
        self._pace.close(deadline)

    def finish_close(self, deadline: float) -> Stats:
        """Wait until everything is settled or *deadline* (monotonic seconds); account for the rest.

        The first caller does it; later callers wait for the same result.
        """
        with short_switch_interval():
            return self._finish_close(deadline)

    def _finish_close(self, deadline: float) -> Stats:
        if self._flusher.called_within_itself:
            self._end_elsewhere(deadline)
            return self._read_stats()
        if self._flusher.called_from_sender:
            # A callback of the application closes the agent from within our own thread: the rest
            # goes out behind it, the threads end, and the exit of the process waits for that.
            # A callback that closes at each failure does not earn more time each time.
            if not self._flusher.closing:
                self._flusher.drain(deadline)
                self._flusher.retire()
            return self._read_stats()
        me = self._runtime.thread_id()
        try:
            del self._to_be_ended[0]
        except IndexError:
            if self._wait_for_end(deadline):
                return self._read_stats()  # calls after `close()` go on being counted
            return self._finish_close(deadline)  # whoever was ending it has given up
        try:
            self._ending_in = me
            try:
                self._flusher.drain(deadline)
            finally:  # Ctrl-C ends the wait, not the accounting
                final = self._end_now(deadline)
        finally:
            self._ending_in = None
            if not self._told:
                # A second one did: another call accounts, one that waits already, perhaps.
                self._to_be_ended.append(True)
                self._end.tell()
        return final

    def _end_elsewhere(self, deadline: float) -> None:
        # In a thread of its own, while the interrupted code goes on. The exit of the process waits
        # for it, and does it where no thread can be started.
        def end() -> None:
            try:
                self.begin_close(deadline)
                self.finish_close(deadline)
            finally:
                self._no_closer.append(True)

        try:
            del self._no_closer[0]
        except IndexError:
            return  # there is one
        try:
            self._runtime.start_thread(end, "meter-agent-closer")
        except (RuntimeError, MemoryError):
            self._no_closer.append(True)

    def _end_now(self, deadline: float) -> Stats:
        self._flusher.stop()
        self._account_for_rest(deadline)
        self._final = self._read_stats()
        _lifecycle.unregister(self)
        # A thread that is still in a request has nothing to add to what was counted.
        self._log.fall_silent(min(deadline, self._runtime.monotonic()) + _LAST_LINE_SECONDS)
        self._tell_end(self._final)
        _lifecycle.tell_closed(deadline)
        self._told = True
        self._end.tell()
        return self._final

    def retire(self) -> None:
        """Nobody holds the `MeterAgent` any more, or another took its place: send, then rest.

        An event that is recorded all the same is still sent. Takes no lock that waits: the garbage
        collector calls this.
        """
        if self._final is None:
            self._retired = True
            if self._flusher.retire():
                _lifecycle.unregister(self)

    def start_over_after_fork(self) -> None:
        """In a child of `fork`: forget the parent's events, threads, connections and session."""
        forget_unfinished()
        end_short_switch_interval()
        self._flusher.disown()
        self._buffer.start_over_after_fork()
        self._dropped.start_over()
        self._wire()

    # -- inside --------------------------------------------------------------------------------

    def _notice_fork(self) -> None:
        if not self._buffer.belongs_to_this_process:
            self.start_over_after_fork()

    def _wait_for_end(self, deadline: float) -> bool:
        # False: nobody is ending it any more.
        if self._ending_in == self._runtime.thread_id():
            # A signal handler interrupts the end, or a logging handler calls while it writes the
            # last line. Neither can wait for itself, but the first may wait for the events.
            self._flusher.drain(deadline)
            return True
        # The last line included: who waits here may be about to kill the process.
        self._end.wait_until(
            lambda: self._told or bool(self._to_be_ended), deadline + _LAST_LINE_SECONDS
        )
        return self._told or not self._to_be_ended

    def _on_retired(self) -> None:
        _lifecycle.unregister(self)
        self._buffer.release()

    def _account_for_rest(self, deadline: float) -> None:
        self._buffer.seal()
        now = self._runtime.clock.time()
        until = max(deadline, self._runtime.monotonic()) + _ANNOUNCE_SECONDS
        letters: list[DeadLetter] = []
        unsettled: list[tuple[Batch, int]] = []
        for batch in self._buffer.abandon():
            self._buffer.keep_abandoned(batch)
            unanswered = [event for event in batch.open if id(event) in batch.attempted]
            never_sent = batch.size - len(unanswered)
            self._keep_never_sent(batch)
            self._buffer.settle_abandoned(batch, never_sent, Outcome.SHUTDOWN)
            letters += [_unanswered(event, batch.sent_at[id(event)], now) for event in unanswered]
            unsettled.append((batch, len(unanswered)))
        # Together: beside threads that compute, a system call may take as long as all letters.
        self._letters.write_until(until, letters)
        for batch, count in unsettled:
            self._buffer.settle_abandoned(batch, count, Outcome.UNCERTAIN)
        for letter in letters:
            # The file comes first, because this may have to stop: a slow callback is not allowed
            # to hold up the exit.
            if self._runtime.monotonic() < deadline + _ANNOUNCE_SECONDS:
                self._letters.announce(letter)
        # Last, because what is uncertain is known nowhere else.
        self._hand_over.run(until)
        self._hand_over.end()
        self._buffer.release()

    def _keep_never_sent(self, batch: Batch) -> None:
        unsent = [event for event in batch.open if id(event) not in batch.attempted]
        for event in unsent:
            self._dropped.keep(DropReason.SHUTDOWN, event)
        if batch.events is not None and len(batch.events) == batch.size:
            for identifier, event in self._buffer.recorded(batch):
                self._dropped.keep(DropReason.SHUTDOWN, event, identifier)

    def _read_stats(self) -> Stats:
        wire: dict[str, Any] = {"dead_letter_failures": self._letters.failures}
        durations = self._traffic.durations.read()
        counts = self._buffer.counts(lambda: wire.update(self._traffic.read(durations)))
        return stats_of(counts, wire, self._runtime.clock.time())

    # -- what is told --------------------------------------------------------------------------

    def _guarded(self, callback: Callable[..., None] | None) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if callback is None or self._final is not None:
                return
            try:
                callback(*arguments)
            except BaseException as error:  # noqa: BLE001 - SystemExit would end the sender thread
                self._log.say("meter_agent.callback_failed", ERROR, error=type(error).__name__)

        return call

    def _tell_death(self, error: BaseException) -> None:
        self._log.say("meter_agent.sender_died", ERROR, error=f"{type(error).__name__}: {error}")

    def _tell_error(self, error: MeterAgentError) -> None:
        # An outage is when drops happen, and when no batch is begun that could report them.
        self._tell_drops()
        self._on_error(error)

    def _tell_drops(self) -> None:
        self._hand_over.run()
        # Only what happens while the agent is open; the final line tells the rest.
        reason = DropReason.OVERFLOW.value
        count = self._buffer.counts().dropped.get(reason, 0)
        if count > self._overflow_told and self._log.say(
            "meter_agent.events_dropped", reason=reason, events=count - self._overflow_told
        ):
            self._overflow_told = count

    def _tell_end(self, stats: Stats) -> None:
        if not stats.recorded + stats.recovered:
            return
        lost = stats.dropped_total + stats.uncertain + stats.buffered
        write(
            "meter_agent.closed",
            WARNING if lost else INFO,
            recorded=stats.recorded,
            recovered=stats.recovered,
            delivered=stats.delivered,
            dead_lettered=stats.dead_lettered,
            uncertain=stats.uncertain,
            dropped=dict(stats.dropped),
            last_error=stats.last_error,
            **self._left_behind(stats),
        )

    def _left_behind(self, stats: Stats) -> dict[str, Any]:
        if self._config.spool_dir is None:
            return {}
        return {"left_in_spool": stats.buffered, "spool_dir": str(self._config.spool_dir)}

    def tell_unknown_variables(self) -> None:
        """Warn about environment variables that look like settings but are none."""
        for name, nearest in unknown_variables():
            self._log.say("meter_agent.unknown_setting", key=name, variable=name, nearest=nearest)


def _load() -> None:
    # requests, tenacity and ssl: 150 files, 200 ms.
    global _loaded  # noqa: PLW0603
    if _loaded:
        return
    with short_switch_interval():
        import meter_agent._delivery  # noqa: PLC0415
        import meter_agent._sender  # noqa: PLC0415
        import meter_agent._session  # noqa: F401, PLC0415
        from meter_agent._transport import preload  # noqa: PLC0415

        preload()
    _loaded = True


def _unanswered(event: MeterEvent, sent_at: float, wall_time: float) -> DeadLetter:
    return letter_of(
        event,
        DeadLetterReason.UNCERTAIN,
        message="the agent closed while Stripe's answer was outstanding",
        attempted_at=sent_at,
        settled_at=wall_time,
    )
