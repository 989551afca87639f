"""What a simulated application knows about its events, and what must be true of them at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meter_agent import Stats
from tests.simulation.network import Network
from tests.simulation.runtime import START
from tests.simulation.scheduler import BrokenPromiseError

__all__ = ["Books"]

_STEPS_SECONDS = 0.001


class Books:
    """Every event has a number, which is its value."""

    def __init__(self) -> None:
        self.called: list[int] = []
        self.returned: dict[int, bool] = {}
        self.poison: set[int] = set()
        self.invalid: set[int] = set()
        self.archived: set[int] = set()
        """Events that the server has refused while their meter was archived."""
        self.announced: list[int] = []
        self.final: Stats | None = None

    def next_number(self) -> int:
        return len(self.called) + 1

    def begins(self, number: int, *, poison: bool, invalid: bool) -> None:
        self.called.append(number)
        if poison:
            self.poison.add(number)
        if invalid:
            self.invalid.add(number)

    def ends(self, number: int, *, held: bool) -> None:
        self.returned[number] = held

    def held_for_sure(self) -> set[int]:
        """Events whose `record()` has returned True."""
        return {number for number, held in self.returned.items() if held}

    @staticmethod
    def number_of(event: Mapping[str, Any]) -> int:
        """The number of an event in a dead letter, in wire form or as it was recorded."""
        return int(event["payload"]["value"] if "value" not in event else event["value"])

    def never_sent(self, letters: Mapping[int, str], network: Network) -> set[int]:
        """Events that are uncertain and were in no request."""
        uncertain = {number for number, reason in letters.items() if reason == "uncertain"}
        return uncertain - {network.value_of(identifier) for identifier in network.last_sent_at}

    def check(self, stats: Stats, letters: Mapping[int, str], ledger: Sequence[Any]) -> None:
        """Compare the agent's account with the application's and the server's."""
        held = self.held_for_sure()
        billed = [int(row["value"]) for row in ledger]
        uncertain = {number for number, reason in letters.items() if reason == "uncertain"}
        dead = set(letters) - uncertain
        promises = {
            "every call is recorded": stats.recorded == len(self.called),
            "no call is left open": set(self.called) == set(self.returned),
            "each number is billed once": len(billed) == len(set(billed)),
            "nothing refused is billed": not set(billed) - held,
            "nothing refused has a letter": not set(letters) - held,
            "nothing poisoned is billed": not set(billed) & (self.poison | self.invalid),
            "a dead letter is not billed": not set(billed) & dead,
            "a good event is not a dead letter": dead <= self.poison | self.invalid | self.archived,
            "dead letters are counted": len(dead) == stats.dead_lettered,
            "uncertain events are counted": len(uncertain) == stats.uncertain,
            "what is billed was delivered": len(set(billed) - uncertain) == stats.delivered,
            "drops are counted": len(self.called) - len(held) <= stats.dropped_total,
            "what was held has ended": (
                len(held)
                == stats.delivered
                + stats.dead_lettered
                + stats.uncertain
                + (stats.dropped_total - (len(self.called) - len(held)))
            ),
            "a letter is announced once": len(self.announced) == len(set(self.announced)),
            "what is announced is in the file": set(self.announced) <= set(letters),
        }
        broken = [promise for promise, kept in promises.items() if not kept]
        if broken:
            raise BrokenPromiseError(
                f"not true: {broken}\n{stats}\nletters {dict(letters)}\nbilled {billed}\n"
                f"held {sorted(held)}\npoison {self.poison} invalid {self.invalid} "
                f"archived {self.archived}"
            )

    @staticmethod
    def resent_too_late(
        network: Network,
        ledger: Sequence[Any],
        window_seconds: float,
        clock_error_seconds: float,
    ) -> dict[str, float]:
        """Accepted identifiers that went out again after the window, and how long after."""
        late = {}
        for row in ledger:
            accepted_at = row["received_at"] - START
            after = network.last_sent_at[row["identifier"]] - accepted_at
            # Between the look at the clock and the wire a thread may be held up; that is what the
            # hour between our window and Stripe's is for.
            held_up = network.scheduler.stalled_since(accepted_at)
            if after >= window_seconds + clock_error_seconds + held_up + _STEPS_SECONDS:
                late[row["identifier"]] = after
        return late
