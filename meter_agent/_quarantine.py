"""Where damaged pieces of segments are kept, each with a reason, for somebody to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from meter_agent import _spool_format as form
from meter_agent._segment_name import entries

__all__ = ["Quarantine"]

_FOLDER = "quarantine"


class Quarantine:
    """A folder below the spool directory; what is in it counts against *spool_bytes*.

    Args:
        spool: The spool directory.
        bytes_left: How much more the spool may take.
    """

    def __init__(self, spool: Path, bytes_left: Callable[[], int]) -> None:
        self._folder = spool / _FOLDER
        self._bytes_left = bytes_left

    def bytes_taken(self) -> int:
        """Return how much is kept."""
        try:
            return sum(map(_size, entries(self._folder)))
        except FileNotFoundError:
            return 0

    def keep(self, name: str, damage: form.Damage, data: bytes, reason: str) -> str:
        """Copy a damaged piece of the segment *name* here; returns what happened, in words."""
        told = f"{name}: {reason} in bytes {damage.offset} to {damage.end}"
        why = _facts(name, damage, reason)
        try:
            if len(data) + len(why) > self._bytes_left():
                return f"{told}; not kept, the spool is full"
            stem = self._stem(name, damage)
            _write(stem.with_name(f"{stem.name}.bytes"), data)
            _write(stem.with_name(f"{stem.name}.json"), why)
        except OSError as error:
            return f"{told}; not kept: {error}"
        return f"{told}; kept in {self._folder}"

    def keep_file(self, path: Path, size: int, reason: str) -> str:
        """Move a whole segment here; returns what happened, in words.

        Raises:
            OSError: It cannot be moved.
        """
        damage = form.Damage(0, size)
        stem = self._stem(path.name, damage)
        _write(stem.with_name(f"{stem.name}.json"), _facts(path.name, damage, reason))
        path.rename(stem.with_name(f"{stem.name}.bytes"))
        return f"{path.name}: {reason}; moved to {self._folder}"

    def _stem(self, name: str, damage: form.Damage) -> Path:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder / f"{name.removesuffix('.segment')}-{damage.offset}"


def _facts(name: str, damage: form.Damage, reason: str) -> bytes:
    facts = {"segment": name, "offset": damage.offset, "end": damage.end, "reason": reason}
    return json.dumps(facts).encode() + b"\n"


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode=0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
