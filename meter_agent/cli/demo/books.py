"""The comparison: what was passed to `record()` against what the sandbox has.

Two sides that share nothing: here the sums that the producers kept, there `GET /_sandbox/totals`.
The agent's own ledger is the third witness, and has to agree with both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from meter_agent import DeadLetter, Stats
from meter_agent.cli.demo.replay import METERS, Account

__all__ = ["Books"]


@dataclass(frozen=True)
class Books:
    """Both sides of a replay."""

    events: int
    """How often `record()` was called."""

    passed: Mapping[Account, int]
    """Tokens passed to `record()`."""

    letters: Sequence[DeadLetter]
    """What the agent could not deliver."""

    stats: Stats
    """The agent's ledger after `close()`."""

    sandbox: Mapping[str, Any]
    """The answer of `GET /_sandbox/totals`."""

    uncertain: Mapping[str, bool] = field(default_factory=dict)
    """Identifiers of uncertain letters, and whether the sandbox turned out to have the event."""

    def dead(self) -> dict[Account, Decimal]:
        """Tokens in dead letters, and in uncertain ones that the sandbox turned out not to have."""
        sums: defaultdict[Account, Decimal] = defaultdict(Decimal)
        for letter in self.letters:
            payload = letter.event.get("payload")
            # An event of another shape was never sent. Then its account stays open and is told.
            is_dead = not letter.uncertain or self._is_missing(letter)
            if is_dead and isinstance(payload, Mapping):
                account = Account(letter.event["event_name"], payload["stripe_customer_id"])
                sums[account] += Decimal(payload["value"])
        return dict(sums)

    def _is_missing(self, letter: DeadLetter) -> bool:
        return self.uncertain.get(letter.event["identifier"]) is False

    def received(self) -> dict[Account, Decimal]:
        """Tokens that the sandbox has."""
        return {
            Account(meter, customer): Decimal(text)
            for meter, customers in self.sandbox["totals"].items()
            for customer, text in customers.items()
        }

    def meter_totals(self) -> dict[str, dict[str, Decimal]]:
        """Tokens per meter on both sides."""
        return {
            meter: {
                "recorded": _total(meter, self.passed),
                "dead_lettered": _total(meter, self.dead()),
                "sandbox": _total(meter, self.received()),
            }
            for meter in METERS
        }

    def differences(self) -> list[str]:
        """Return a line for each thing that does not agree; none: the books balance."""
        return [*self._ledger_differences(), *self._account_differences()]

    def _ledger_differences(self) -> Iterator[str]:
        stats, accepted = self.stats, self.sandbox["accepted"]
        delivered = stats.delivered + sum(self.uncertain.values())
        pairs = (
            ("record() was called", self.events, "the agent recorded", stats.recorded),
            ("the agent delivered", delivered, "the sandbox accepted", accepted),
            ("the agent dead-lettered", stats.dead_lettered, "letters came", self._letters()),
        )
        for one, count, other, number in pairs:
            if count != number:
                yield f"events: {one} {count}, {other} {number}"
        if unclear := stats.uncertain - len(self.uncertain):
            yield f"events: {unclear} uncertain"
        for name in ("dropped_total", "buffered", "in_flight"):
            if getattr(stats, name):
                yield f"events: {getattr(stats, name)} {name.removesuffix('_total')}"
        if not stats.balanced:
            yield f"events: the agent's own ledger does not add up: {stats}"

    def _letters(self) -> int:
        return sum(not letter.uncertain for letter in self.letters)

    def _account_differences(self) -> Iterator[str]:
        dead, received = self.dead(), self.received()
        for account in sorted({*self.passed, *dead, *received}):
            passed = self.passed.get(account, 0)
            lost, has = dead.get(account, Decimal(0)), received.get(account, Decimal(0))
            if passed != lost + has:
                yield (
                    f"{account.meter} {account.customer}: recorded {passed}, dead-lettered {lost}, "
                    f"sandbox has {has} ({lost + has - passed:+})"
                )


def _total(meter: str, sums: Mapping[Account, int] | Mapping[Account, Decimal]) -> Decimal:
    return sum((Decimal(sums[each]) for each in sums if each.meter == meter), Decimal(0))
