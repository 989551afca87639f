"""How an agent is doing: what a probe may know of it, apart from how Stripe is doing.

A failing Stripe is what the buffer is for. Restarting the service, or taking it out of rotation,
would lose what waits in memory and serve nobody, so neither answer depends on Stripe.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from meter_agent._frozen import FrozenDict
from meter_agent._ledger import DropReason, Stats

__all__ = ["NEARLY_FULL", "OLD_EVENT_SECONDS", "Health", "Problem", "Room", "diagnose"]

OLD_EVENT_SECONDS = 300.0
"""An event that is older than this should have been settled, one outage or not."""

NEARLY_FULL = 0.8
"""The share of the buffer above which somebody should look."""


class Room(NamedTuple):
    """What waiting events may take up, and how much of it is taken."""

    used: int
    capacity: int
    in_bytes: bool = False
    """True: bytes of the spool, shared with other processes. False: events in memory."""


class Problem(enum.StrEnum):
    """What can be wrong with an agent; the keys of `Health.problems`."""

    NOBODY_SENDS = "nobody_sends"
    """Events wait, and threads that send them cannot be started, or die one after the other."""

    NOT_CONFIGURED = "not_configured"
    """The default agent could not be built from the environment; every event is dropped."""

    CLOSED = "closed"
    """The agent was closed; what is recorded now is dropped."""

    KEY_REFUSED = "key_refused"
    """Stripe refuses the API key, or there is none to be read. Events are kept."""

    REQUESTS_FAIL = "requests_fail"
    """The last request to Stripe failed. Events are kept and sent again."""

    EVENTS_PAUSED = "events_paused"
    """Stripe refuses every event of a name. Those events are kept, and one is tried now and then;
    other events are sent."""

    OLD_EVENTS = "old_events"
    """The oldest event has waited for more than five minutes."""

    NEARLY_FULL = "nearly_full"
    """The buffer, or the spool, is more than 80 % full."""

    SPOOL_FAILS = "spool_fails"
    """The spool cannot be written. Events are in memory, and would not survive a crash."""

    DEAD_LETTERS_FAIL = "dead_letters_fail"
    """The last dead letter could not be written to its file. It was counted, logged and handed to
    *on_dead_letter*, and its event is nowhere else."""

    SPOOL_DELETED = "spool_deleted"
    """Files of the spool were deleted while in use, in the last ten minutes. Their events are
    written to new files every 30 seconds and when the agent closes; a crash before that loses
    them."""

    FOREIGN_EVENTS = "foreign_events"
    """Segments in the spool directory are for another account, mode or host, or may be: this agent
    does not send them. `meter-agent spool ls` shows for whom they are."""


@dataclass(frozen=True, slots=True)
class Health:
    """How an agent is doing at one moment.

    Example:
        >>> from meter_agent import Health
        >>> Health(problems={"key_refused": "HTTP 401"}).as_dict()["ready"]
        True
    """

    alive: bool = True
    """False: events wait and this process cannot send them; only a restart would help. Never
    because of Stripe, the network, the key or the disk."""

    ready: bool = True
    """False: what is recorded now is dropped, because the agent is closed or was never configured.
    Never because of Stripe; an agent that is *disabled* on purpose is ready."""

    problems: Mapping[str, str] = field(default_factory=FrozenDict)
    """What is wrong, in words, by `Problem`; empty when all is well. Cannot be changed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "problems", FrozenDict(self.problems))

    @property
    def degraded(self) -> bool:
        """Whether there is any problem: for a human to look at, not for a probe to act on."""
        return bool(self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Return what a health endpoint answers, as `json.dumps` takes it."""
        return {
            "alive": self.alive,
            "ready": self.ready,
            "degraded": self.degraded,
            "problems": dict(self.problems),
        }


def diagnose(
    stats: Stats,
    room: Room,
    *,
    refusal: DropReason | None,
    nobody_sends: bool,
    key_refused: bool,
    requests_fail: bool,
    others: dict[Problem, str],
) -> Health:
    """Return the health of an agent in this state; *others* are what only their owners know of."""
    age = stats.oldest_event_age_seconds or 0.0
    used = room.used / room.capacity
    waiting = stats.buffered + stats.in_flight
    failed = requests_fail and not key_refused
    signs: dict[Problem, Any] = {
        Problem.NOBODY_SENDS: nobody_sends and f"{waiting} events wait, and no thread can send",
        Problem.NOT_CONFIGURED: refusal is DropReason.NOT_CONFIGURED
        and "the settings are wrong, and every event is dropped; the log says what to set",
        Problem.CLOSED: refusal is DropReason.CLOSED
        and "the agent was closed, and what is recorded now is dropped",
        Problem.KEY_REFUSED: key_refused and (stats.last_error or "the API key is refused"),
        Problem.REQUESTS_FAIL: failed and (stats.last_error or "requests to Stripe fail"),
        Problem.OLD_EVENTS: age > OLD_EVENT_SECONDS and f"the oldest event waits for {age:.0f} s",
        Problem.NEARLY_FULL: used > NEARLY_FULL
        and f"the {'spool' if room.in_bytes else 'buffer'} is {used:.0%} full",
    } | others
    problems = {problem.value: str(sign) for problem, sign in signs.items() if sign}
    return Health(
        alive=not nobody_sends,
        ready=refusal not in {DropReason.NOT_CONFIGURED, DropReason.CLOSED},
        problems=problems,
    )
