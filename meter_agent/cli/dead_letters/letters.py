"""A file of dead letters, read line by line; it may have any length, and grow meanwhile."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from meter_agent.cli.printing import printable, say

__all__ = ["Choice", "Letter", "Letters"]

_LINE_BYTES_MAX = 1024 * 1024
"""Far more than any letter has."""


class Letter(NamedTuple):
    """One line of the file."""

    line: int
    """Its number, from 1."""
    key: str
    """Names it wherever it is moved: a digest of the line."""
    fields: dict[str, Any]

    @property
    def reason(self) -> str:
        """Why the event was not billed."""
        return str(self.fields["reason"])

    @property
    def event(self) -> dict[str, Any]:
        """The event: its wire form or, when invalid, a picture of it."""
        event: dict[str, Any] = self.fields["event"]
        return event

    @property
    def identifier(self) -> str | None:
        """The identifier of the event, if it has one."""
        identifier = self.event.get("identifier")
        return identifier if isinstance(identifier, str) else None

    @property
    def names(self) -> frozenset[str]:
        """What the event can be called by: its identifier, also as it is printed."""
        identifier = self.identifier
        return frozenset() if identifier is None else frozenset({identifier, printable(identifier)})


@dataclass(frozen=True)
class Choice:
    """Which letters are meant; an empty collection means all."""

    reasons: Collection[str] = ()
    identifiers: Collection[str] = ()
    lines: Collection[int] = field(default=())

    def takes(self, letter: Letter) -> bool:
        """Whether *letter* is meant."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.identifiers or not letter.names.isdisjoint(self.identifiers))
            and (not self.lines or letter.line in self.lines)
        )


class Letters:
    """Iterates over the chosen letters of a file, as it was when this was made.

    Args:
        path: The file.
        choice: Which letters.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, choice: Choice) -> None:
        self._path = path
        self._choice = choice
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        path.open("rb").close()
        self._bytes = status.st_size
        self.unread = 0
        """Lines of the last iteration that are no letters."""
        self.found = 0
        """Chosen letters of the last iteration."""
        self._missing: set[str | int] = set()

    @property
    def missing(self) -> str | None:
        """What was chosen by name and was not among the letters of the last iteration, in words."""
        names = sorted(each for each in self._missing if isinstance(each, str))
        lines = sorted(each for each in self._missing if isinstance(each, int))
        if not self._missing:
            return None
        told = [f"with the identifier {name!r}" for name in names]
        told += [f"in line {number}" for number in lines]
        of_reason = f" of the reason {', '.join(self._choice.reasons)}" * bool(self._choice.reasons)
        return f"{self._path} has no letter{of_reason} {' and none '.join(told)}"

    def __iter__(self) -> Iterator[Letter]:
        self.unread = self.found = 0
        self._missing = {*self._choice.identifiers, *self._choice.lines}
        with self._path.open("rb") as file:
            number = 0
            while file.tell() < self._bytes and (line := file.readline(_LINE_BYTES_MAX)):
                number += 1
                if line == b"\n":
                    continue  # two processes ended the same unfinished line
                letter = _read(number, line)
                while not line.endswith(b"\n") and (line := file.readline(_LINE_BYTES_MAX)):
                    letter = None
                if letter is None:
                    self.unread += 1
                    say(f"line {number} of {self._path} is no dead letter", err=True)
                elif self._choice.takes(letter):
                    self.found += 1
                    self._missing -= {*letter.names, letter.line}
                    yield letter


def _read(number: int, line: bytes) -> Letter | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("event"), dict):
        return None
    if not isinstance(fields.get("reason"), str):
        return None
    key = hashlib.blake2b(line.strip(), digest_size=16).hexdigest()
    return Letter(number, key, fields)
