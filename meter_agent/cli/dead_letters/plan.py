"""What a resend would do, told before it does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from meter_agent._event import RecordedEvent
from meter_agent.cli.dead_letters.judging import Judge, Stay
from meter_agent.cli.dead_letters.letters import Letter, Letters
from meter_agent.cli.dead_letters.resent import Resent
from meter_agent.cli.printing import counted

__all__ = ["NOTHING", "Item", "Plan", "make_parts"]


class Item(NamedTuple):
    """A letter to be sent."""

    letter: Letter
    event: RecordedEvent


NOTHING = {"to_send": {}, "may_bill_twice": 0, "stay": {}, "unread": 0}
"""The plan where there are no letters, ready for JSON."""


class Plan:
    """The chosen letters, counted.

    Args:
        letters: The chosen letters.
        judge: Says of each whether it may be sent.
        resent: What has been sent before.
    """

    def __init__(self, letters: Letters, judge: Judge, resent: Resent) -> None:
        self.reasons: Counter[str] = Counter()
        """Letters to be sent, by reason."""
        self.stay: Counter[Stay] = Counter()
        """Letters that are not sent, by why."""
        self.may_bill_twice = 0
        for letter in letters:
            judgement = judge.judge(letter, resent.state(letter))
            if judgement.stay is not None:
                self.stay[judgement.stay] += 1
            else:
                self.reasons[letter.reason] += 1
                self.may_bill_twice += judgement.may_bill_twice
        self.unread = letters.unread

    @property
    def total(self) -> int:
        """How many letters are to be sent."""
        return self.reasons.total()

    @property
    def complete(self) -> bool:
        """Whether every letter that was chosen is to be sent, was sent before, or discarded."""
        return not self.unread and set(self.stay) <= {Stay.SENT_BEFORE, Stay.DISCARDED}

    def to_document(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return NOTHING | {
            "to_send": dict(self.reasons),
            "may_bill_twice": self.may_bill_twice,
            "stay": {why.value: count for why, count in self.stay.items()},
            "unread": self.unread,
        }

    def to_lines(self) -> Iterator[str]:
        """Return it for people."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        yield f"{counted(self.total, 'letter')} to be sent" + (f": {reasons}" if reasons else "")
        if self.may_bill_twice:
            yield (
                f"{self.may_bill_twice} of them were sent more than 24 hours ago, and Stripe bills "
                "them twice if it has them: compare its event summaries first"
            )
        for why, count in self.stay.items():
            yield f"{count} stay: they {why.text}"


def make_parts(
    letters: Letters, judge: Judge, resent: Resent, *, at_a_time: int
) -> Iterator[list[Item]]:
    """Yield what is to be sent; no identifier twice in one part."""
    part: list[Item] = []
    identifiers: set[str | None] = set()
    for letter in letters:
        if len(part) == at_a_time or letter.identifier in identifiers:
            yield part
            part, identifiers = [], set()
        # Judged when all before it have been sent: it may stand twice in the file.
        event = judge.judge(letter, resent.state(letter)).event
        if event is not None:
            part.append(Item(letter, event))
            identifiers.add(letter.identifier)
    if part:
        yield part
