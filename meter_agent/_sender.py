"""What a sender thread does with one batch: freeze it, deliver it, settle every event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from meter_agent._answer import Answer
from meter_agent._batch import Batch
from meter_agent._dead_letters import (
    DeadLetter,
    DeadLetterFile,
    DeadLetterReason,
    format_anyhow,
    letter_of,
)
from meter_agent._delivery import Delivery
from meter_agent._event import EventEncoder, EventTuple, MeterEvent, describe
from meter_agent._event_buffer import EventBuffer
from meter_agent._ledger import Outcome
from meter_agent._own_identifiers import OwnIdentifiers
from meter_agent._runtime import Runtime
from meter_agent._spool_body import InvalidRecord
from meter_agent.exceptions import InvalidEventError

__all__ = ["Reporting", "Sender", "Work"]


class Work(Protocol):
    """What one sender thread does with a batch."""

    def process(self, batch: Batch) -> None:
        """Settle every event of *batch*, or return early because the agent closes."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class Sender:
    """Processes batches for one sender thread."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        buffer: EventBuffer,
        encoder: EventEncoder,
        delivery: Delivery,
        letters: DeadLetterFile,
        own_identifiers: OwnIdentifiers,
    ) -> None:
        self._runtime = runtime
        self._buffer = buffer
        self._encoder = encoder
        self._delivery = delivery
        self._letters = letters
        self._own_identifiers = own_identifiers

    def process(self, batch: Batch) -> None:
        """Settle every event of *batch*, or return early because the agent closes."""
        if batch.events is not None:
            self._freeze(batch)
        if not batch.open:
            return

        def settle(
            part: Sequence[MeterEvent],
            outcome: Outcome,
            reason: DeadLetterReason | None,
            answer: Answer | None,
        ) -> None:
            self._settle(batch, part, outcome, reason, answer)

        self._delivery.deliver(batch, settle)

    def close(self) -> None:
        """Close this sender's connections."""
        self._delivery.close()

    def _freeze(self, batch: Batch) -> None:
        # Nothing is counted before every event has been looked at, so that a batch whose sender
        # dies in between comes out the same for the next one.
        valid: list[MeterEvent] = []
        places: list[int] = []
        recorded: list[EventTuple] = []
        letters: list[DeadLetter] = []
        for place, (identifier, event) in enumerate(self._buffer.recorded(batch)):
            if isinstance(event, InvalidRecord):
                letters.append(self._refused(event.event, event.rule, event.recorded_at))
                continue
            try:
                valid.append(self._encoder.encode(event, identifier))
                places.append(place)
                recorded.append(event)
            except InvalidEventError as error:
                letters.append(self._invalid(event, str(error)))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - objects that misbehave
                letters.append(self._invalid(event, f"it cannot be read: {type(error).__name__}"))
        if self._buffer.freeze(batch, valid, places):
            self._keep(batch, letters)
            self._own_identifiers.note(zip(recorded, valid, strict=True))

    def _settle(
        self,
        batch: Batch,
        part: Sequence[MeterEvent],
        outcome: Outcome,
        reason: DeadLetterReason | None,
        answer: Answer | None,
    ) -> None:
        letters = [self._letter(batch, event, reason, answer) for event in part] if reason else []
        if self._buffer.claim(batch, part, outcome):
            self._keep(batch, letters)

    def _keep(self, batch: Batch, letters: list[DeadLetter]) -> None:
        # Counted last: when `flush()` says that an event is settled, its letter is in the file and
        # the callback has seen it. The file first, because a callback may take its time.
        stopped: BaseException | None = None
        for act in (self._letters.write, self._letters.announce):
            for letter in letters:
                try:
                    act(letter)
                except BaseException as error:  # noqa: BLE001 - raised again below
                    stopped = stopped or error
        self._buffer.settle_claim(batch)
        if stopped is not None:
            raise stopped

    def _invalid(self, event: Any, rule: str) -> DeadLetter:
        return self._refused(describe(event), rule, event[0])

    def _refused(self, event: Any, rule: str, recorded_at: float) -> DeadLetter:
        return DeadLetter(
            event=event,
            reason=DeadLetterReason.INVALID.value,
            message=rule,
            code=None,
            request_id=None,
            recorded_at=format_anyhow(recorded_at),
            attempted_at=None,
            settled_at=format_anyhow(self._runtime.clock.time()),
        )

    def _letter(
        self, batch: Batch, event: MeterEvent, reason: DeadLetterReason, answer: Answer | None
    ) -> DeadLetter:
        return letter_of(
            event,
            reason,
            message=answer.message if answer else "its timestamp is more than 35 days back",
            code=answer.code if answer else None,
            request_id=answer.request_id if answer else None,
            attempted_at=batch.sent_at.get(id(event)),
            settled_at=self._runtime.clock.time(),
        )


class Reporting:
    """A sender that reports drops between batches, because `record()` may not log."""

    def __init__(self, work: Work, report: Callable[[], None]) -> None:
        self._work = work
        self._report = report

    def process(self, batch: Batch) -> None:
        self._report()
        self._work.process(batch)

    def close(self) -> None:
        self._work.close()
