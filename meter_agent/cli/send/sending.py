"""One event to Stripe: through an agent, or to the endpoint that checks it at once."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from meter_agent import Config, DeadLetter, MeterAgent, Stats
from meter_agent._answer import Answer
from meter_agent._answer import Verdict as Act
from meter_agent._connection import open_stream
from meter_agent._event import MeterEvent, RecordedEvent
from meter_agent._ledger import Traffic
from meter_agent._runtime import SystemRuntime
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.interrupts import Interrupts
from meter_agent.cli.patience import GaveUpError, Patience
from meter_agent.cli.send.verdict import verdict_of

__all__ = ["Outcome", "Sent", "send_event", "validate_event"]

_LOOK_SECONDS = 0.1
_CLOSE_SECONDS = 2.0


class Outcome(enum.StrEnum):
    """What became of the event."""

    DELIVERED = "delivered"
    """Stripe received it, and checks it later."""

    VALID = "valid"
    """Stripe checked it, and recorded it."""

    REFUSED = "refused"
    """Stripe refused it."""

    UNCERTAIN = "uncertain"
    """Stripe may have it. Under the same identifier it can be sent again for 24 hours."""

    NOT_SENT = "not_sent"
    """Stripe does not have it."""


@dataclass(frozen=True)
class Sent:
    """The end of an event."""

    outcome: Outcome
    exit_code: ExitCode
    code: str | None = None
    """Stripe's code."""
    message: str | None = None
    """Stripe's words, or why it was not sent."""
    request_id: str | None = None

    def to_document(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        verdict = verdict_of(self.code)
        return {
            "outcome": self.outcome.value,
            "code": self.code,
            "meaning": verdict.meaning if verdict else None,
            "fix": verdict.fix if verdict else None,
            "message": self.message,
            "request_id": self.request_id,
        }


def send_event(config: Config, event: RecordedEvent, *, patience_seconds: float) -> Sent:
    """Deliver *event* as an agent does, with retries, and wait for its end."""
    letters: list[DeadLetter] = []
    patience = Patience(patience_seconds)
    agent = MeterAgent(config, on_dead_letter=letters.append, on_error=patience.hear)
    exit_code, why = ExitCode.OK, None
    try:
        with Interrupts() as interrupts:
            _, name, customer, value, timestamp, identifier, payload = event
            agent.record(
                name, customer, value, timestamp=timestamp, identifier=identifier, payload=payload
            )
            while not agent.flush(_LOOK_SECONDS):
                interrupts.check()
                patience.check(agent.stats())
    except GaveUpError as error:
        exit_code, why = error.exit_code, str(error)
    except KeyboardInterrupt:
        exit_code, why = ExitCode.INTERRUPTED, "interrupted"
    finally:
        stats = agent.close(_CLOSE_SECONDS if exit_code is ExitCode.INTERRUPTED else 0.0)
    return _end(stats, letters, exit_code, why)


def _end(stats: Stats, letters: list[DeadLetter], exit_code: ExitCode, why: str | None) -> Sent:
    if stats.delivered:
        return Sent(Outcome.DELIVERED, ExitCode.OK)
    letter = letters[0] if letters else None
    if stats.dead_lettered and letter is not None:
        return Sent(Outcome.REFUSED, ExitCode.BAD, letter.code, letter.message, letter.request_id)
    if stats.uncertain:
        return Sent(Outcome.UNCERTAIN, exit_code or ExitCode.PARTLY, message=why)
    return Sent(Outcome.NOT_SENT, exit_code or ExitCode.BAD, message=why)


def validate_event(config: Config, event: MeterEvent) -> Sent:
    """Have Stripe check *event* at once, which records it if it is good. Asked once."""
    stream = open_stream(config, SystemRuntime(), traffic=Traffic(), seconds_left=lambda: None)
    try:
        answer = stream.check(event.body)
    finally:
        stream.close()
    outcome, exit_code = _judge(answer)
    return Sent(outcome, exit_code, answer.code, answer.message or None, answer.request_id)


def _judge(answer: Answer) -> tuple[Outcome, ExitCode]:
    if answer.verdict is Act.ACCEPTED:
        return Outcome.VALID, ExitCode.OK
    if answer.verdict is Act.UNAUTHORIZED:
        return Outcome.NOT_SENT, ExitCode.AUTHENTICATION
    if answer.verdict in {Act.REJECTED, Act.DUPLICATE, Act.TOO_LARGE}:
        return Outcome.REFUSED, ExitCode.BAD
    known = verdict_of(answer.code) is not None
    uncertain = answer.maybe_accepted and not known
    return (Outcome.UNCERTAIN if uncertain else Outcome.NOT_SENT), ExitCode.UNREACHABLE
