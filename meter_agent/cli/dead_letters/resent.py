"""What has been sent again or discarded: an append-only file of JSON Lines beside the letters.

Nothing is ever changed in the letters themselves. Before an event leaves, *sending* is noted, and
afterwards what came of it. So whoever is killed in between leaves a letter behind that may have
been sent, and the next one does not send it again by itself.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from meter_agent._event import format_timestamp
from meter_agent.cli.dead_letters.letters import Letter

__all__ = ["Resent", "State"]


class State(enum.StrEnum):
    """How far a letter has come."""

    SENDING = "sending"
    """Stripe may have it."""

    DELIVERED = "delivered"
    """Stripe has it."""

    FAILED = "failed"
    """It became a dead letter again: the newer one counts."""

    NOT_SENT = "not_sent"
    """It was about to be sent, and surely was not."""

    DISCARDED = "discarded"
    """Somebody decided that it is not to be sent."""


class Resent:
    """The states of the letters in a file; as a context manager, the right to change them.

    Args:
        letters: The file of the letters.
    """

    def __init__(self, letters: Path) -> None:
        self.path = letters.with_name(letters.name + ".resent")
        self._descriptor: int | None = None
        # A hundred bytes for each letter that was ever sent again.
        self._states: dict[bytes, State] = {}
        self._reasons: dict[bytes, str] = {}
        self._read()

    def state(self, letter: Letter) -> State | None:
        """Return how far *letter* has come; None: it was never sent again."""
        return self._states.get(bytes.fromhex(letter.key))

    def because(self, letter: Letter) -> str | None:
        """Return why *letter* was discarded; None: it was not, or nobody said why."""
        return self._reasons.get(bytes.fromhex(letter.key))

    def note(self, letters: Collection[Letter], state: State, because: str | None = None) -> None:
        """Write down that *letters* have come so far, before anything else happens.

        Raises:
            OSError: It cannot be written, and then nothing is.
        """
        at = format_timestamp(time.time())
        lines = []
        for letter in letters:
            fields = {"letter": letter.key, "identifier": letter.identifier, "state": state.value}
            reason = {} if because is None else {"because": because}
            lines.append(json.dumps(fields | reason | {"at": at}) + "\n")
        self._append("".join(lines).encode())
        for letter in letters:
            self._take(letter.key, state, because)

    def _append(self, data: bytes) -> None:
        descriptor = self._descriptor
        if descriptor is None:
            raise RuntimeError("note() needs the context manager")
        size = os.fstat(descriptor).st_size
        written = 0
        try:
            written = os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            if written < len(data):
                os.ftruncate(descriptor, size)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _take(self, key: str, state: State, because: object) -> None:
        letter = bytes.fromhex(key)
        self._states[letter] = state
        self._reasons.pop(letter, None)
        if isinstance(because, str):
            self._reasons[letter] = because

    def __enter__(self) -> Self:
        """Begin to send again.

        Raises:
            BlockingIOError: Another process does it.
            OSError: The file cannot be written.
        """
        self._descriptor = os.open(
            self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode=0o600
        )
        try:
            # Not a POSIX lock, which would end as soon as the file is read below and closed.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                os.write(self._descriptor, b"\n")  # somebody was killed in the middle of a line
            self._read()  # what another process has sent since we looked
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _read(self) -> None:
        self._states.clear()
        self._reasons.clear()
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    noted = json.loads(line)
                    self._take(noted["letter"], State(noted["state"]), noted.get("because"))
