"""One batch in, every event settled: sent, sent again, split, set aside; the only user of tenacity.

The events of a batch are settled part by part, each at the moment its fate is known:

- accepted: *delivered*;
- refused as a whole: halves, until the bad event stands alone and becomes a *dead letter*. One bad
  event among 100 costs 15 requests and takes no good one with it;
- refused alone after an ambiguous attempt (see `Batch.ambiguous`): *uncertain*. It may be billed
  already, and a dead letter would be sent again;
- perhaps accepted, and older than the resend window: *uncertain*, never sent again;
- of a name that is paused (`_brake.py`), or alone too large for a gateway: held, and tried later;
- everything else is sent again, same bytes, under the pace that all senders share. There is no
  limit to the attempts.

When the agent closes before that, and while events are held, what is left stays open in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from tenacity import RetryCallState, Retrying, retry_if_result

from meter_agent._answer import SAME_BYTES_AGAIN, Answer, Verdict
from meter_agent._batch import Batch
from meter_agent._body_limit import BodyLimit
from meter_agent._brake import Brake, pause_seconds
from meter_agent._dead_letters import DeadLetterReason
from meter_agent._event import MeterEvent
from meter_agent._held import HeldBatches
from meter_agent._ledger import Outcome, Traffic
from meter_agent._log import ERROR, INFO, WARNING, EventLog
from meter_agent._pace import Pace
from meter_agent._resend_window import ResendWindow
from meter_agent._runtime import Runtime
from meter_agent._session import SessionCache
from meter_agent._steady_clock import SteadyClock
from meter_agent._stream import MeterEventStream
from meter_agent.exceptions import MeterAgentError

__all__ = ["Attempts", "Delivery", "Settle"]

Settle = Callable[[Sequence[MeterEvent], Outcome, DeadLetterReason | None, Answer | None], None]
"""Told once about each event: what it came to, and for dead letters why and by which answer."""


class Attempts(Protocol):
    """What the buffer keeps about attempts, under its lock, for `close()` to read."""

    def begin_attempt(self, batch: Batch, part: Sequence[MeterEvent]) -> bool:
        """Note that *part* of *batch* leaves now; False when it must not any more."""
        ...

    def forget_attempt(self, batch: Batch, attempted: dict[int, tuple[float, float]]) -> None:
        """The attempt was surely not accepted; *attempted* is how it stood before."""
        ...


class Delivery:
    """Delivers batches for one sender thread.

    Args:
        runtime: Clocks.
        stream: Speaks to Stripe.
        sessions: Shared by all senders.
        pace: Shared by all senders.
        attempts: Keeps account of what may have been accepted.
        body_limit: Shared by all senders.
        brake: Shared by all senders.
        held: Where batches go that have events which may not be sent now.
        traffic: Counts retries and splits.
        log: Where failures are told.
        on_error: Told about each failed request; already guarded, so it does not raise.
        resend_window_seconds: How long after its first attempt an event that may have been
            accepted is still sent again. Stripe deduplicates identifiers for 24 hours.
        clock: Says how long ago that was; its rule is in `_steady_clock`.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        stream: MeterEventStream,
        sessions: SessionCache,
        pace: Pace,
        attempts: Attempts,
        body_limit: BodyLimit,
        brake: Brake,
        held: HeldBatches,
        traffic: Traffic,
        log: EventLog,
        on_error: Callable[[MeterAgentError], None],
        resend_window_seconds: float,
        clock: SteadyClock | None = None,
    ) -> None:
        self._runtime = runtime
        self._stream = stream
        self._sessions = sessions
        self._pace = pace
        self._attempts = attempts
        self._body_limit = body_limit
        self._brake = brake
        self._held = held
        self._traffic = traffic
        self._log = log
        self._on_error = on_error
        self._window = ResendWindow(runtime, resend_window_seconds, clock or SteadyClock(runtime))
        self._refused_tokens_in_a_row = 0
        self._retrying = Retrying(
            retry=retry_if_result(lambda answer: answer is not None and _again(answer)),
            # The wait between attempts is the pace's, which `_attempt` asks: it is common to all
            # senders, interruptible, and on the runtime's clock, none of which tenacity's own is.
            sleep=lambda _seconds: None,
            after=self._after_failure,
        )

    def deliver(self, batch: Batch, settle: Settle) -> None:
        """Settle every event of *batch*, or return early because the agent closes.

        Events that may not be sent now stay open, and the batch's *held_until* says until when.
        """
        batch.held_until = None
        batch.releases_seen = self._held.releases
        held: list[MeterEvent] = []
        parts = _parts(batch)
        while parts:
            part, paused = self._let_through(parts.pop())
            held += paused
            if part:
                count = self._body_limit.fitting(part)
                if count < len(part):
                    parts.append(part[count:])
                    part = part[:count]
                part = self._set_aside_too_old(batch, part, settle)
            if part:
                answer = self._attempt_until_final(batch, part)
                if answer is None:
                    return
                parts += self._parts_after(batch, part, answer, settle)
            if not parts and held:
                # The one that was let through may have ended the pause.
                again, held = self._let_through(held)
                parts += [again] if again else []
        self._hold(batch, held)

    def _let_through(self, part: list[MeterEvent]) -> tuple[list[MeterEvent], list[MeterEvent]]:
        if not self._held.has_room:
            return part, []
        passed = self._brake.let_through(part)
        return passed, _without(part, passed) if len(passed) < len(part) else []

    def _hold(self, batch: Batch, paused: list[MeterEvent]) -> None:
        ends = [self._brake.ends_at(paused)] if paused else []
        if batch.too_large:
            ends.append(self._runtime.monotonic() + pause_seconds(batch.times_held))
            batch.times_held += 1
        batch.held_until = min(ends, default=None)

    def close(self) -> None:
        """Close this sender's connections."""
        self._stream.close()

    # -- what an answer leads to ---------------------------------------------------------------

    def _parts_after(
        self, batch: Batch, part: list[MeterEvent], answer: Answer, settle: Settle
    ) -> list[list[MeterEvent]]:
        # What of *part* is to be sent next, and how it is cut.
        if answer.verdict is Verdict.TOO_OLD:
            return [part]
        if answer.verdict is Verdict.RESEND_WINDOW_OVER:
            return [self._set_aside_too_late(batch, part, answer, settle)]
        if answer.verdict is Verdict.TOO_LARGE:
            self._body_limit.refused(part)
        else:
            self._body_limit.accepted(part)
        if answer.verdict in _REFUSED and len(part) > 1:
            return self._halves(part, answer)
        if _is_too_large_for_others(answer):
            if not self._held.has_room:
                return [part]
            batch.too_large |= {id(part[0])}
        else:
            self._conclude(batch, part, answer, settle)
        return []

    def _conclude(
        self, batch: Batch, part: list[MeterEvent], answer: Answer, settle: Settle
    ) -> None:
        if answer.verdict in {Verdict.ACCEPTED, Verdict.DUPLICATE}:
            # A duplicate: Stripe already has it, and that is what we wanted.
            batch.too_large -= frozenset(map(id, part))
            if self._brake.accepted(part):
                self._held.release()
            settle(part, Outcome.DELIVERED, None, None)
            return
        (event,) = part
        batch.too_large -= {id(event)}
        if answer.verdict is Verdict.REJECTED:
            self._note_refusal(event, answer)
            may_be_billed = id(event) in batch.ambiguous
        else:
            # A refusal of what an event says holds for every attempt. One of its size does not: an
            # earlier attempt may have taken a way without that limit.
            may_be_billed = id(event) in batch.attempted
        if may_be_billed:
            message = (
                f"an earlier request with this event had no answer of Stripe; {answer.message}"
            )
            answer = replace(answer, message=message)
            settle(part, Outcome.UNCERTAIN, DeadLetterReason.UNCERTAIN, answer)
        else:
            settle(part, Outcome.DEAD_LETTERED, DeadLetterReason.REJECTED, answer)

    def _note_refusal(self, event: MeterEvent, answer: Answer) -> None:
        seconds = self._brake.refused(event, answer.code, answer.message)
        if seconds is not None:
            self._log.say(
                "meter_agent.events_paused",
                WARNING,
                error=answer.message,
                code=answer.code,
                seconds=seconds,
            )

    def _halves(self, part: list[MeterEvent], answer: Answer) -> list[list[MeterEvent]]:
        self._traffic.splits.up()
        self._log.say(
            "meter_agent.batch_split",
            INFO,
            events=len(part),
            code=answer.code,
            request_id=answer.request_id,
        )
        middle = len(part) // 2
        return [part[middle:], part[:middle]]

    def _set_aside_too_old(
        self, batch: Batch, part: list[MeterEvent], settle: Settle
    ) -> list[MeterEvent]:
        horizon = self._window.horizon()
        if batch.oldest_timestamp >= horizon:
            return part
        too_old = [event for event in part if event.timestamp < horizon]
        uncertain = batch.attempted_of(too_old)
        never_sent = _without(too_old, uncertain)
        if never_sent:
            settle(never_sent, Outcome.DEAD_LETTERED, DeadLetterReason.TOO_OLD, None)
        if uncertain:
            settle(uncertain, Outcome.UNCERTAIN, DeadLetterReason.UNCERTAIN, None)
        return _without(part, too_old)

    def _set_aside_too_late(
        self, batch: Batch, part: list[MeterEvent], answer: Answer, settle: Settle
    ) -> list[MeterEvent]:
        late = self._window.past(batch, part)
        settle(late, Outcome.UNCERTAIN, DeadLetterReason.UNCERTAIN, answer)
        return _without(part, late)

    # -- attempts ------------------------------------------------------------------------------

    def _attempt_until_final(self, batch: Batch, part: list[MeterEvent]) -> Answer | None:
        # None: the agent closes.
        first = self._attempt(batch, part)
        if first is None or not _again(first):
            return first  # nearly always, and tenacity's bookkeeping costs as much as 30 events
        answers = [first]

        def attempt() -> Answer | None:
            return answers.pop() if answers else self._attempt(batch, part)

        last: Answer | None = self._retrying(attempt)
        return last

    def _attempt(self, batch: Batch, part: list[MeterEvent]) -> Answer | None:
        # None: the agent closes.
        ticket = self._pace.admit(len(part))
        if ticket is None:
            return None
        try:
            if too_late := self._window.too_late(batch, part):
                return too_late
            doubt = self._window.in_doubt(batch, part)
            answer, free = (doubt, False) if doubt else self._exchange(batch, part)
            if answer is None:
                return None
            if answer.message:
                self._traffic.last_error = answer.message
            self._traffic.key_refused = answer.refuses_key and not free
            if _is_too_large_for_others(answer):
                if len(part) == 1:
                    self._pace.failed(ticket, slowly=True)
            elif _again(answer) and not free:
                self._pace.failed(
                    ticket,
                    at_least_seconds=answer.retry_after_seconds,
                    slowly=answer.slowly,
                )
            elif not free:
                self._pace.succeeded(ticket)
            return answer
        finally:
            self._pace.returned(ticket)

    def _exchange(self, batch: Batch, part: list[MeterEvent]) -> tuple[Answer | None, bool]:
        # None: the agent has closed. The second value: may it be tried again at once, as if
        # nothing had been asked?
        token = self._sessions.token(self._stream.open_session)
        if isinstance(token, Answer):
            return token, False
        if too_late := self._window.too_late(batch, part):
            return too_late, True  # opening the session took its time
        answer = self._send(batch, part, token)
        if answer is None:
            return None, True
        if answer.verdict not in {Verdict.SESSION_EXPIRED, Verdict.UNAUTHORIZED}:
            self._refused_tokens_in_a_row = 0
            return answer, False
        # A refused token is dropped and one new session is tried at once; when that one is refused
        # as well, something else is wrong, and the back-off rules.
        self._sessions.drop(token)
        self._refused_tokens_in_a_row += 1
        return answer, self._refused_tokens_in_a_row == 1

    def _send(self, batch: Batch, part: list[MeterEvent], token: str) -> Answer | None:
        attempted, ambiguous = batch.attempted, batch.ambiguous
        if not self._attempts.begin_attempt(batch, part):
            return None
        answer = self._stream.send(
            token,
            [event.body for event in part],
            may_repeat=lambda: self._window.allows(batch, part),
        )
        if answer.verdict is Verdict.ACCEPTED:
            self._traffic.last_success_at = self._runtime.clock.time()
        elif not answer.maybe_accepted:
            batch.ambiguous = ambiguous
        if not _may_hold(answer, part):
            self._attempts.forget_attempt(batch, attempted)
        return answer

    def _after_failure(self, state: RetryCallState) -> None:
        # tenacity calls this after an attempt that will be made again: outside every lock.
        answer: Answer | None = state.outcome.result() if state.outcome else None
        if answer is None or not _again(answer):
            return
        self._traffic.retries.up()
        refused = answer.refuses_key
        if answer.verdict is not Verdict.SESSION_EXPIRED:
            self._log.say(
                "meter_agent.credentials_refused" if refused else "meter_agent.request_failed",
                ERROR if refused else WARNING,
                error=answer.message,
                status=answer.status,
                request_id=answer.request_id,
                attempt=state.attempt_number,
            )
        self._on_error(answer.error())


_REFUSED = frozenset({Verdict.REJECTED, Verdict.TOO_LARGE, Verdict.DUPLICATE})


def _again(answer: Answer) -> bool:
    return answer.verdict in SAME_BYTES_AGAIN


def _is_too_large_for_others(answer: Answer) -> bool:
    return answer.verdict is Verdict.TOO_LARGE and not answer.is_stripes


def _parts(batch: Batch) -> list[list[MeterEvent]]:
    # Events that are too large are sent alone, so that nothing is learned from their sum.
    parts = [[event] for event in batch.open if id(event) in batch.too_large]
    rest = (
        [event for event in batch.open if id(event) not in batch.too_large] if parts else batch.open
    )
    return [*parts, list(rest)] if rest else parts


def _may_hold(answer: Answer, part: list[MeterEvent]) -> bool:
    # Whether Stripe may have events of *part* after this answer.
    if answer.verdict is Verdict.REJECTED and len(part) > 1:
        return True  # whether it takes in the good events of a request that it refuses is not known
    return answer.maybe_accepted or answer.verdict in {Verdict.ACCEPTED, Verdict.DUPLICATE}


def _without(part: list[MeterEvent], others: list[MeterEvent]) -> list[MeterEvent]:
    ids = set(map(id, others))
    return [event for event in part if id(event) not in ids]
