"""`dead-letters discard`: close letters that will not be sent."""

from __future__ import annotations

from typing import NamedTuple

from meter_agent.cli.dead_letters.letters import Letters
from meter_agent.cli.dead_letters.resent import Resent, State
from meter_agent.cli.printing import counted

__all__ = ["Discarded", "NotDiscardedError", "discard_letters"]

_CLOSED = {State.DELIVERED, State.FAILED, State.DISCARDED}


class NotDiscardedError(Exception):
    """Nothing was changed; the message says why."""


class Discarded(NamedTuple):
    """What was done."""

    discarded: int
    discarded_before: int

    def to_line(self) -> str:
        """Return it for people."""
        before = f", {self.discarded_before} discarded before" if self.discarded_before else ""
        return f"{counted(self.discarded, 'letter')} discarded{before}"


def discard_letters(letters: Letters, resent: Resent, because: str | None) -> Discarded:
    """Note that the chosen letters are not to be sent: all of them, or none.

    A letter that a resend delivered is billed, and one that failed again has a newer letter, which
    is the one that counts.

    Args:
        letters: The chosen letters.
        resent: Where it is noted; already entered.
        because: Why.

    Raises:
        NotDiscardedError: A letter that was named is not there, or was delivered.
        OSError: It cannot be noted.
    """
    chosen = [(letter, resent.state(letter)) for letter in letters]
    if letters.missing is not None:
        raise NotDiscardedError(f"{letters.missing}; nothing was changed")
    before = [letter for letter, state in chosen if state is State.DISCARDED]
    fresh = [letter for letter, state in chosen if state not in _CLOSED]
    closed = {letter.identifier for letter, state in chosen if state in _CLOSED}
    still_meant = {letter.identifier for letter in [*before, *fresh]}
    if delivered := sorted(str(name) for name in closed - still_meant):
        raise NotDiscardedError(
            f"{', '.join(map(repr, delivered))}: sent again before, so there is nothing to discard;"
            " nothing was changed"
        )
    if fresh:
        resent.note(fresh, State.DISCARDED, because)
    return Discarded(len(fresh), len(before))
