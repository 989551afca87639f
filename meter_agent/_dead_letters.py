"""Append-only JSON Lines of what could not be billed, and why.

One line per event, written with one `write` to a file opened for appending, so that several
processes may share the file. A line that its writer did not finish, because the disk was full or
the process was killed, is ended by the next one. Mode 0600: usage is business data.

The file never grows beyond 256 MiB. From then on letters are still counted, logged and handed to
*on_dead_letter*, but no longer written, and the log says so.

Only a regular file is written to: a FIFO would wait for a reader and give nothing back, and a
device keeps nothing. A file system that does not answer, as NFS without its server, cannot be found
out beforehand, and a call that waits for it cannot be interrupted. So senders write in their own
threads, and `close()` has another thread write, for which it waits as long as its time allows.
"""

from __future__ import annotations

import enum
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meter_agent._event import MeterEvent, format_timestamp
from meter_agent._health import Problem
from meter_agent._log import ERROR, EventLog
from meter_agent._progress import Progress
from meter_agent._runtime import Runtime, SystemRuntime
from meter_agent.exceptions import InvalidEventError

__all__ = ["DeadLetter", "DeadLetterFile", "DeadLetterReason", "format_anyhow", "letter_of"]

FILE_BYTES_MAX = 256 * 1024 * 1024
# O_NONBLOCK: a FIFO without a reader is an error then. O_NOCTTY: no terminal becomes ours.
_OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_LETTERS_OF_A_WRITE = 100
_LOOKS_AT_THE_END, _LOOK_AGAIN_SECONDS = 6, 0.01
_TOO_SLOW = "the file system does not answer, or threads that compute leave no time for it"


class DeadLetterReason(enum.StrEnum):
    """Why an event is not billed."""

    INVALID = "invalid"
    """The event breaks a rule that the agent knows; it was never sent."""

    REJECTED = "rejected"
    """Stripe refused it when it stood alone."""

    TOO_OLD = "too_old"
    """Its timestamp is more than 35 days back, which Stripe refuses."""

    DROPPED = "dropped"
    """The agent gave it up before it was ever sent: the buffer was full, or the agent closed."""

    UNCERTAIN = "uncertain"
    """Stripe may have it, and sending it again could bill it twice."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event that could not be billed, with everything needed to mend and send it again."""

    event: Mapping[str, Any]
    """The event: as it would have gone over the wire or, when invalid, as it was recorded."""

    reason: str
    """One of `DeadLetterReason`."""

    message: str
    """What was wrong: the broken rule, or Stripe's own words."""

    code: str | None
    """Stripe's error code, if it gave one."""

    request_id: str | None
    """Stripe's `Request-Id` of the refusing answer."""

    recorded_at: str
    """When `record()` took the event (RFC 3339, UTC)."""

    attempted_at: str | None
    """When it was first sent; None when it never was."""

    settled_at: str
    """When this letter was written."""

    @property
    def uncertain(self) -> bool:
        """Whether Stripe may have the event all the same."""
        return self.reason == DeadLetterReason.UNCERTAIN

    def to_json(self) -> str:
        """Return the line of the dead-letter file."""
        import json  # noqa: PLC0415 - letters are rare, and it costs 3 ms

        # Not `asdict()`, which copies the event deeply and takes five times as long. Beside threads
        # that compute, `close()` has a ninth of the interpreter to write up to 800 of them.
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["uncertain"] = self.uncertain
        return json.dumps(fields, separators=(",", ":"))


def letter_of(
    event: MeterEvent,
    reason: DeadLetterReason,
    *,
    message: str,
    attempted_at: float | None,
    settled_at: float,
    code: str | None = None,
    request_id: str | None = None,
) -> DeadLetter:
    """Return the letter of an event that had its wire form; times are unix seconds."""
    import json  # noqa: PLC0415

    return DeadLetter(
        event=json.loads(event.body),
        reason=reason.value,
        message=message,
        code=code,
        request_id=request_id,
        recorded_at=format_anyhow(event.recorded_at),
        attempted_at=None if attempted_at is None else format_anyhow(attempted_at),
        settled_at=format_anyhow(settled_at),
    )


def format_anyhow(unix_seconds: float) -> str:
    """Return RFC 3339, or the bare number where the calendar ends.

    The clock of a host may be far off; the letters of its events must be written still.
    """
    try:
        return format_timestamp(unix_seconds)
    except InvalidEventError:
        return str(unix_seconds)


class DeadLetterFile:
    """Keeps dead letters: file, callback and log line.

    Args:
        path: The file, or None to keep no file.
        log: Where each letter is announced, without its payload.
        on_letter: The application's callback; already guarded, so it does not raise.
        runtime: Clock and threads.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        log: EventLog,
        on_letter: Callable[[DeadLetter], None] | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._runtime = runtime or SystemRuntime()
        self.failures = 0
        """How many letters could not be written, or not in time."""
        self._problem: str | None = None
        self._hangs = False
        self._path = path
        self._log = log
        self._on_letter = on_letter

    def write(self, *letters: DeadLetter) -> None:
        """Keep *letters*, at once. What cannot be written is counted and logged, never raised."""
        if self._path is not None and letters:
            try:
                lines = "".join(f"{letter.to_json()}\n" for letter in letters)
                self._append(lines.encode("utf-8", "backslashreplace"))
            except Exception as error:  # noqa: BLE001 - no letter is worth a sender
                self._failed(str(error), len(letters))
            else:
                self._problem = None

    def write_until(self, deadline: float, letters: Sequence[DeadLetter]) -> None:
        """Keep *letters*, and return at *deadline* (monotonic seconds) at the latest.

        What is not written by then is counted as failed, though the file system may still take it
        when it answers again. Where no thread can be started, they are written here.
        """
        if self._path is None or not letters:
            return
        written: list[int] = []
        progress = Progress(self._runtime)

        def write() -> None:
            for begin in range(0, len(letters), _LETTERS_OF_A_WRITE):
                part = letters[begin : begin + _LETTERS_OF_A_WRITE]
                self.write(*part)
                written.append(len(part))
            progress.tell()

        try:
            if not self._hangs:
                self._runtime.start_thread(write, "meter-agent-letters")
        except (RuntimeError, MemoryError):
            write()  # the interpreter ends, or is out of threads
        if not progress.wait_until(lambda: sum(written) == len(letters), deadline):
            self._hangs = True
            left = len(letters) - sum(written)
            self._failed(f"{left} letters not written in time: {_TOO_SLOW}", left)

    def problems(self) -> dict[Problem, str]:
        """Return what is wrong with the file since the last letter."""
        if self._problem is None:
            return {}
        return {Problem.DEAD_LETTERS_FAIL: f"{self._path}: {self._problem}"}

    def _failed(self, problem: str, letters: int) -> None:
        self.failures += letters
        self._problem = problem
        self._log.say("meter_agent.dead_letters_unwritable", ERROR, error=problem)

    def announce(self, letter: DeadLetter) -> None:
        """Log *letter* and hand it to the callback; call it outside every lock, once per letter."""
        event = "meter_agent.events_uncertain" if letter.uncertain else _ANNOUNCEMENT
        try:
            self._log.say(
                event,
                key=letter.reason,
                reason=letter.reason,
                identifier=letter.event.get("identifier"),
                code=letter.code,
                error=letter.message,
                request_id=letter.request_id,
            )
        finally:
            if self._on_letter is not None:
                self._on_letter(letter)

    def _append(self, line: bytes) -> None:
        if self._path is None:
            return
        descriptor = os.open(self._path, _OPEN_FLAGS, mode=0o600)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{self._path} is not a regular file: name one that is")
            size = status.st_size
            if size + len(line) > FILE_BYTES_MAX:
                raise OSError(f"the file has reached its limit of {FILE_BYTES_MAX} bytes")
            if _ends_within_a_line(self._path):
                line = b"\n" + line
            # One write call: appends of several processes do not mix. A short write means that the
            # disk is full.
            if os.write(descriptor, line) < len(line):
                raise OSError("the disk is full")
        finally:
            os.close(descriptor)


def _ends_within_a_line(path: str | os.PathLike[str]) -> bool:
    # A full disk and `kill -9` within a write leave the beginning of a line, and the next line
    # would go on in it. A write of another process that is not finished yet looks the same, but
    # not for long. A file that may only be written is taken to be whole.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return False
    try:
        for _ in range(_LOOKS_AT_THE_END):
            size = os.fstat(descriptor).st_size
            if not size or os.pread(descriptor, 1, size - 1) in {b"\n", b""}:
                return False
            time.sleep(_LOOK_AGAIN_SECONDS)
        return True
    finally:
        os.close(descriptor)


_ANNOUNCEMENT = "meter_agent.event_dead_lettered"
