"""The warnings of an agent, as lines for people."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from meter_agent.cli.printing import printable

__all__ = ["warnings_said"]


@contextlib.contextmanager
def warnings_said(say: Callable[[str], None]) -> Iterator[None]:
    """Hand what the agents of this process warn of to *say*, from whatever thread it comes."""
    logger = logging.getLogger("meter_agent")
    handler = _Lines(say)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Lines(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(printable(record.getMessage()))
