"""What goes wrong with the files of the spool: counted at once, told by the next sender thread."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from meter_agent._log import WARNING

__all__ = ["SpoolTroubles"]

_UNTOLD_MAX = 100


class SpoolTroubles:
    """A short list between `record()`, which logs nothing, and the senders, who may.

    Args:
        say: Writes to the log.
        path: The directory of the spool, named in every line.
    """

    def __init__(self, say: Callable[..., object], path: str | os.PathLike[str]) -> None:
        self._say = say
        self._path = str(path)
        self.start_over()

    def start_over(self) -> None:
        """Forget what is untold: in a child of `fork`, the parent tells it."""
        self.failures = 0
        """Operations on files that failed."""
        self._untold: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_UNTOLD_MAX)

    def failed(self, error: Exception) -> None:
        """Count an operation that failed."""
        self.failures += 1
        self.note("meter_agent.spool_failed", error=f"{type(error).__name__}: {error}")

    def note(self, event: str, **fields: Any) -> None:
        """Keep something for the log."""
        self._untold.append((event, fields))

    def tell(self) -> None:
        """Write to the log what has come up since the last time."""
        while self._untold:
            event, fields = self._untold.popleft()
            self._say(event, WARNING, spool_dir=self._path, **fields)
