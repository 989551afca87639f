"""`dead-letters resend`: send events again, on a human's word.

A hundred at a time: noted before they leave, waited for, noted again. What is killed in the middle
leaves at most a hundred letters behind of which nobody knows the end, and their identifiers are
those of before, by which Stripe knows them for 24 hours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from meter_agent import Config, DeadLetter, Stats
from meter_agent._agent import build
from meter_agent.cli.dead_letters.letters import Letter
from meter_agent.cli.dead_letters.plan import Item
from meter_agent.cli.dead_letters.resent import Resent, State
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.interrupts import Interrupts
from meter_agent.cli.patience import GaveUpError, Patience
from meter_agent.cli.progress import Progress

__all__ = ["AT_A_TIME", "Resend"]

AT_A_TIME = 100
_LOOK_SECONDS = 0.1
_CLOSE_SECONDS = 2.0


class Resend:
    """Sends letters again and keeps the books about it.

    Args:
        config: Settings of an agent without a spool, whose new letters go to the same file.
        resent: Where it is noted; already entered.
        patience_seconds: How long nothing may be delivered.
        shown: Told how far it is.
        total: How many letters there are.
    """

    def __init__(
        self,
        config: Config,
        resent: Resent,
        *,
        patience_seconds: float,
        shown: Progress,
        total: int,
    ) -> None:
        self.states: Counter[State] = Counter()
        """How many letters ended how; those that are still *sending* may have been sent."""
        self.exit_code = ExitCode.OK
        self.ended = "done"
        """Why it ended."""
        self._resent = resent
        self._shown = shown
        self._total = total
        self._patience = Patience(patience_seconds)
        self._failed: set[str] = set()
        # What is not sent stays the letter that it is: it must not become another one.
        self._agent = build(
            config,
            on_dead_letter=self._hear_letter,
            on_error=self._patience.hear,
            keep_dropped=False,
        )

    def run(self, parts: Iterable[list[Item]]) -> None:
        """Send *parts* one after the other, until the end, Ctrl-C, or a server that takes none."""
        try:
            with Interrupts() as interrupts:
                for part in parts:
                    self._send(part, interrupts)
        except GaveUpError as error:
            self.exit_code, self.ended = error.exit_code, str(error)
        except KeyboardInterrupt:
            self.exit_code, self.ended = ExitCode.INTERRUPTED, "interrupted"
        except OSError as error:
            # What can no longer be noted may have been sent: it stays as noted before.
            self.exit_code, self.ended = ExitCode.PARTLY, f"{error.filename}: {error.strerror}"
        finally:
            self._agent.close(0)

    @property
    def unfinished(self) -> int:
        """How many letters were not delivered, as far as is known."""
        return self.states.total() - self.states[State.DELIVERED]

    def to_document(self) -> dict[str, Any]:
        """Return what has been done, ready for JSON."""
        ends = (state for state in State if state is not State.DISCARDED)
        counts = {state.value: self.states[state] for state in ends}
        counts["unknown"] = counts.pop(State.SENDING.value)
        return counts | {"ended": self.ended}

    def to_line(self) -> str:
        """Return what has been done, for people."""
        return (
            f"{self.states[State.DELIVERED]} delivered, {self.states[State.FAILED]} failed again, "
            f"{self.states[State.NOT_SENT]} not sent, {self.states[State.SENDING]} unknown"
        )

    def _send(self, part: list[Item], interrupts: Interrupts) -> None:
        before = self._agent.stats()
        self._failed.clear()
        self._resent.note([item.letter for item in part], State.SENDING)
        try:
            for _, event in part:
                _, name, customer, value, timestamp, identifier, payload = event
                self._agent.record(
                    name,
                    customer,
                    value,
                    timestamp=timestamp,
                    identifier=identifier,
                    payload=payload,
                )
            while not self._agent.flush(_LOOK_SECONDS):
                interrupts.check()
                self._show()
                self._patience.check(self._agent.stats())
        except BaseException as error:
            # What has no answer soon is dropped, or uncertain in a letter of its own.
            seconds = 0.0 if isinstance(error, GaveUpError) else _CLOSE_SECONDS
            self._conclude(part, before, self._agent.close(seconds))
            raise
        self._conclude(part, before, self._agent.stats())
        self._show()

    def _conclude(self, part: list[Item], before: Stats, after: Stats) -> None:
        failed = [item.letter for item in part if item.letter.identifier in self._failed]
        others = [item.letter for item in part if item.letter.identifier not in self._failed]
        self._note(failed, State.FAILED)
        delivered = after.delivered - before.delivered
        letters = after.dead_lettered + after.uncertain - before.dead_lettered - before.uncertain
        if letters != len(failed) or 0 < delivered < len(others):
            # The agent counts what it delivered and does not say which. They stay as noted.
            self.states[State.SENDING] += len(others)
        else:
            self._note(others, State.DELIVERED if delivered else State.NOT_SENT)

    def _note(self, letters: list[Letter], state: State) -> None:
        if letters:
            self._resent.note(letters, state)
            self.states[state] += len(letters)

    def _hear_letter(self, letter: DeadLetter) -> None:
        self._failed.add(str(letter.event.get("identifier")))

    def _show(self) -> None:
        stats = self._agent.stats()
        self._shown.show(
            self.states.total(),
            self._total,
            f"delivered {stats.delivered}  dead {stats.dead_lettered}  retries {stats.retries}",
        )
