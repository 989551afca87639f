"""One file to Stripe, chunk by chunk: noted before it leaves, waited for, noted again."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import click

from meter_agent import Config, DeadLetter, MeterAgent, Stats
from meter_agent._dead_letters import DeadLetterReason, letter_of
from meter_agent._event import TIMESTAMP_PAST_SECONDS_MAX
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.importing.chunks import Chunk, Chunks, Rejected
from meter_agent.cli.importing.input_file import FileChangedError, InputFile
from meter_agent.cli.importing.journal import Begun, Journal
from meter_agent.cli.importing.ledger import ImportLedger
from meter_agent.cli.importing.row import UnreadableError
from meter_agent.cli.importing.row_mapper import Mapped
from meter_agent.cli.importing.side_file import RejectsFile, SideFile
from meter_agent.cli.importing.used_identifiers import UsedIdentifiers
from meter_agent.cli.interrupts import Interrupts
from meter_agent.cli.patience import GaveUpError, Patience, settled
from meter_agent.cli.progress import Pace, Progress

__all__ = ["CHUNK_ROWS", "FileImport", "Imported"]

CHUNK_ROWS = 10_000
"""So many rows are in memory, and in doubt after `kill -9`."""

_LOOK_SECONDS = 0.1
_CLOSE_SECONDS = 2.0
_CLOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Imported:
    """What came of a file."""

    ledger: ImportLedger
    exit_code: ExitCode
    ended: str
    """Why it ended."""
    can_go_on: bool = True
    """Whether the same command with --resume goes on."""


class FileImport:
    """Delivers the rows of one file and keeps the books about it.

    Args:
        config: Settings of an agent that keeps nothing on disk.
        file: The file.
        chunks: Its rows.
        journal: Where it is noted; already entered.
        rejects: Takes rows that are not billed.
        letters: Takes events of which it is not known whether they are billed.
        used: Knows the identifiers of other imports.
        in_addition: Whether the same usage is to be billed once more.
        patience_seconds: How long nothing may be delivered.
        shown: Told how far it is.
        total: About how many rows there are.
    """

    def __init__(
        self,
        config: Config,
        *,
        file: InputFile,
        chunks: Chunks,
        journal: Journal,
        rejects: RejectsFile,
        letters: SideFile,
        used: UsedIdentifiers,
        in_addition: bool,
        patience_seconds: float,
        shown: Progress,
        total: int,
    ) -> None:
        self._config = dataclasses.replace(
            config,
            spool_dir=None,
            dead_letter_file=None,
            strict=False,
            handle_sigterm=False,
            buffer_events=2 * CHUNK_ROWS,
            overflow="drop_newest",
        )
        self._file = file
        self._chunks = chunks
        self._journal = journal
        self._rejects = rejects
        self._letters = letters
        self._used = used
        self._in_addition = in_addition
        self._patience = Patience(patience_seconds)
        self._shown = shown
        self._total = total
        self._pace = Pace(journal.ledger.rows)
        self._heard: dict[str, DeadLetter] = {}
        self._open = ImportLedger()

    def run(self) -> Imported:
        """Deliver what is left, until the end, Ctrl-C, or a server that takes none."""
        exit_code, ended, can_go_on = ExitCode.OK, "done", True
        try:
            with Interrupts() as interrupts:
                self._deliver_all(interrupts)
        except GaveUpError as error:
            exit_code, ended = error.exit_code, str(error)
        except (FileChangedError, OSError) as error:
            exit_code = ExitCode.PARTLY if self._journal.exists else ExitCode.USAGE
            ended = str(error)
        except UnreadableError as error:
            exit_code, ended, can_go_on = ExitCode.PARTLY, str(error), False
        except KeyboardInterrupt:
            exit_code, ended = ExitCode.INTERRUPTED, "interrupted"
        ledger = self._journal.ledger + self._open
        if exit_code is ExitCode.OK and not ledger.complete:
            exit_code = ExitCode.PARTLY
        return Imported(ledger, exit_code, ended, can_go_on)

    def _deliver_all(self, interrupts: Interrupts) -> None:
        self._chunks.skip_through(self._journal.last_row, time.time())
        if self._journal.begun is not None:
            self._go_on_with(self._journal.begun, interrupts)
        agent = self._make_agent(self._config)
        try:
            while (chunk := self._take(time.time(), CHUNK_ROWS)) is not None:
                interrupts.check()
                self._claim(chunk)
                self._journal.begin(Begun(chunk.first_row, chunk.last_row, chunk.at))
                self._deliver(agent, chunk, interrupts, fresh=True)
        finally:
            agent.close(0)
        if self._journal.last_row:
            self._journal.finish()

    def _take(self, at: float, rows_max: int | None, last_row: int | None = None) -> Chunk | None:
        chunk = self._chunks.take(at, rows_max, last_row)
        # At the end as well: a file that was cut ends early.
        self._file.check_unchanged()
        return chunk

    def _claim(self, chunk: Chunk) -> None:
        conflicts = self._used.claim(chunk.events, chunk.at, once_more=self._in_addition)
        if not conflicts:
            return
        if len(conflicts) == len(chunk.events) and not self._journal.exists:
            raise click.UsageError(
                f"{self._file.name}: nothing was sent: {conflicts[0][1]}, and so with every row. "
                "Stripe counts an identifier once in 24 hours, whatever the meter. With --key "
                "COLUMN in place of a column of identifiers each meter has its own; a key that was "
                "used for this meter needs another --key"
            )
        refused = {id(mapped) for mapped, _ in conflicts}
        chunk.events = [mapped for mapped in chunk.events if id(mapped) not in refused]
        chunk.rejected += [Rejected(mapped.row, reason) for mapped, reason in conflicts]

    def _go_on_with(self, begun: Begun, interrupts: Interrupts) -> None:
        # The chunk in which an earlier run ended. Its events go out under their identifiers and
        # timestamps of before, which Stripe counts once; but only as long as it knows them.
        chunk = self._take(begun.at, None, begun.last_row)
        if chunk is None:
            raise FileChangedError(f"{self._file.name} ends before row {begun.first_row}")
        self._claim(chunk)
        now = time.time()
        age = now - begun.at
        left = self._config.resend_window_seconds - age
        if left <= 1 or age < -_CLOCK_SECONDS:
            late, chunk.events = chunk.events, []
        else:
            horizon = now - TIMESTAMP_PAST_SECONDS_MAX
            late = [each for each in chunk.events if each.wire.timestamp < horizon]
            chunk.events = [each for each in chunk.events if each.wire.timestamp >= horizon]
        window = min(self._config.resend_window_seconds, max(1.0, left))
        agent = self._make_agent(
            dataclasses.replace(
                self._config,
                resend_window_seconds=window,
                # It may be from a version whose chunks are larger.
                buffer_events=max(self._config.buffer_events, 2 * len(chunk.events)),
            )
        )
        try:
            self._deliver(agent, chunk, interrupts, fresh=False, late=late)
        finally:
            agent.close(0)

    def _make_agent(self, config: Config) -> MeterAgent:
        return MeterAgent(config, on_dead_letter=self._hear, on_error=self._patience.hear)

    def _hear(self, letter: DeadLetter) -> None:
        self._heard[str(letter.event.get("identifier"))] = letter

    def _deliver(
        self,
        agent: MeterAgent,
        chunk: Chunk,
        interrupts: Interrupts,
        *,
        fresh: bool,
        late: list[Mapped] | None = None,
    ) -> None:
        self._heard.clear()
        before = agent.stats()
        late = late or []
        try:
            for mapped in chunk.events:
                _, name, customer, value, timestamp, identifier, payload = mapped.event
                agent.record(
                    name,
                    customer,
                    value,
                    timestamp=timestamp,
                    identifier=identifier,
                    payload=payload,
                )
            while not agent.flush(_LOOK_SECONDS):
                interrupts.check()
                stats = agent.stats()
                self._show(before, stats)
                self._patience.check(stats)
        except BaseException as error:
            # What has no answer soon goes out again when the import is resumed.
            seconds = 0.0 if isinstance(error, GaveUpError) else _CLOSE_SECONDS
            after = agent.close(seconds)
            if _answered(after) - _answered(before) == len(chunk.events):
                self._conclude(chunk, before, after, late)
            else:
                self._break_off(chunk, before, after, fresh=fresh, late=len(late))
            raise
        after = agent.stats()
        self._conclude(chunk, before, after, late)
        self._show(after, after)

    def _break_off(
        self, chunk: Chunk, before: Stats, after: Stats, *, fresh: bool, late: int
    ) -> None:
        ended = settled(after) - settled(before)
        if fresh and not ended:
            self._journal.withdraw()
            self._used.release(chunk.events, chunk.at)
            return
        ledger = ImportLedger(
            rows=chunk.rows,
            recorded=len(chunk.events) + late,
            delivered=after.delivered - before.delivered,
            dead_lettered=after.dead_lettered - before.dead_lettered,
            uncertain=after.uncertain - before.uncertain + late,
            not_sent=len(chunk.events) - ended,
            rejected=len(chunk.rejected),
            repeated=chunk.repeated,
        )
        # What is told has been written before.
        self._journal.break_off(ledger)
        self._open = ledger

    def _conclude(self, chunk: Chunk, before: Stats, after: Stats, late: list[Mapped]) -> None:
        refused = list(chunk.rejected)
        dead_lettered = 0
        letters = [self._late_letter(mapped, chunk.at) for mapped in late]
        not_there: list[Mapped] = []
        for mapped in chunk.events if self._heard else ():
            letter = self._heard.get(mapped.wire.identifier)
            if letter is None:
                continue
            if letter.uncertain:
                letters.append(letter)
            else:
                dead_lettered += 1
                not_there.append(mapped)
                refused.append(Rejected(mapped.row, f"Stripe refused it: {letter.message}"))
        ledger = ImportLedger(
            rows=chunk.rows,
            recorded=len(chunk.events) + len(late),
            delivered=after.delivered - before.delivered,
            dead_lettered=dead_lettered,
            uncertain=len(letters),
            rejected=len(chunk.rejected),
            repeated=chunk.repeated,
        )
        if not ledger.balanced:
            raise click.ClickException(f"the books do not balance: {ledger}")
        # Until it is written, nobody but this process knows it.
        self._open = dataclasses.replace(
            ledger, delivered=0, dead_lettered=0, uncertain=ledger.recorded
        )
        self._used.release(not_there, chunk.at)
        self._rejects.append_rows(sorted(refused, key=lambda each: each.row.number))
        self._letters.append_letters(letters)
        lengths = {"rejects": self._rejects.length, "letters": self._letters.length}
        self._journal.end(chunk.last_row, ledger, lengths)
        self._open = ImportLedger()

    def _late_letter(self, mapped: Mapped, attempted_at: float) -> DeadLetter:
        return letter_of(
            mapped.wire,
            DeadLetterReason.UNCERTAIN,
            message="an import that was killed may have sent it, too long ago to send it again",
            attempted_at=attempted_at,
            settled_at=time.time(),
        )

    def _show(self, before: Stats, stats: Stats) -> None:
        ledger = self._journal.ledger
        rows = ledger.rows + settled(stats) - settled(before)
        total = max(self._total, rows)
        self._shown.show(
            rows,
            total,
            f"{self._pace.tell(rows, total)}  "
            f"delivered {ledger.delivered + stats.delivered - before.delivered}  "
            f"dead {ledger.dead_lettered + stats.dead_lettered - before.dead_lettered}  "
            f"rejected {ledger.rejected}  retries {stats.retries}",
        )


def _answered(stats: Stats) -> int:
    return stats.delivered + stats.dead_lettered
