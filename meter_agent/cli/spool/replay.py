"""`spool replay`: adopt what dead processes left, deliver it, and leave the rest where it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from meter_agent import Config, MeterAgent, Stats
from meter_agent._agent import recover_all
from meter_agent._health import Problem
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.interrupts import Interrupts
from meter_agent.cli.patience import GaveUpError, Patience, settled
from meter_agent.cli.printing import counted
from meter_agent.cli.progress import Progress

__all__ = ["Replayed", "replay"]

_LOOK_SECONDS = 0.05
_CLOSE_SECONDS = 2.0
"""After Ctrl-C, for answers that are on their way. What has none by then is sent again by whoever
adopts it."""


@dataclass(frozen=True)
class Replayed:
    """What came of a replay."""

    stats: Stats
    exit_code: ExitCode
    ended: str
    """Why it ended."""
    foreign: str | None
    """What was left alone because it is for another destination, if anything."""

    def to_document(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        stats = self.stats
        return {
            "recovered": stats.recovered,
            "delivered": stats.delivered,
            "dead_lettered": stats.dead_lettered,
            "uncertain": stats.uncertain,
            "left": left(stats),
            "foreign": self.foreign,
            "quarantined": stats.quarantined,
            "spool_failures": stats.spool_failures,
            "requests": stats.requests,
            "retries": stats.retries,
            "ended": self.ended,
        }

    def to_line(self) -> str:
        """Return it for people."""
        stats = self.stats
        return (
            f"{counted(stats.recovered, 'event')} adopted: {stats.delivered} delivered, "
            f"{stats.dead_lettered} dead-lettered, {stats.uncertain} uncertain, "
            f"{left(stats)} left in the spool"
        )


def left(stats: Stats) -> int:
    """Return how many events have not ended."""
    return stats.buffered + stats.in_flight


def replay(config: Config, *, patience_seconds: float, shown: Progress) -> Replayed:
    """Deliver the events of all orphans in the spool directory of *config*."""
    patience = Patience(patience_seconds)
    exit_code, ended, close_seconds = ExitCode.OK, "done", 0.0
    agent = MeterAgent(config, on_error=patience.hear)
    try:
        with Interrupts() as interrupts:
            _deliver(agent, interrupts, patience, shown)
    except GaveUpError as error:
        exit_code, ended = error.exit_code, str(error)
    except KeyboardInterrupt:
        exit_code, ended = ExitCode.INTERRUPTED, "interrupted"
        close_seconds = min(_CLOSE_SECONDS, config.shutdown_timeout_seconds)
    finally:
        foreign = agent.health().problems.get(Problem.FOREIGN_EVENTS)
        stats = agent.close(close_seconds)
    short = stats.delivered < stats.recovered + stats.quarantined + stats.spool_failures
    if exit_code is ExitCode.OK and (short or foreign):
        exit_code = ExitCode.PARTLY
    return Replayed(stats, exit_code, ended, foreign)


def _deliver(
    agent: MeterAgent, interrupts: Interrupts, patience: Patience, shown: Progress
) -> None:
    # Until nothing is stale and everything has ended: an agent takes some at a time, and a process
    # may die meanwhile.
    while True:
        interrupts.check()
        stats = agent.stats()
        shown.show(
            settled(stats),
            stats.recovered,
            f"delivered {stats.delivered}  in flight {stats.in_flight}  waiting {stats.buffered}  "
            f"dead {stats.dead_lettered}  uncertain {stats.uncertain}  retries {stats.retries}",
        )
        if not left(stats) and recover_all(agent) and not left(agent.stats()):
            return
        patience.check(stats)
        time.sleep(_LOOK_SECONDS)
