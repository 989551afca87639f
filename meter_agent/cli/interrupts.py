"""Ctrl-C that is heard for certain."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupts"]


class Interrupts:
    """Remembers Ctrl-C, for the `KeyboardInterrupt` itself may be lost. A context manager.

    Python prints and swallows exceptions in callbacks of the garbage collector and of weak
    references, the import system's among them; an interrupt that strikes there ends nothing. A
    loop that asks `check()` at each turn ends all the same.
    """

    def __init__(self) -> None:
        self._seen = False
        self._handler_before: Any = None

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if Ctrl-C has been pressed, even if it had been swallowed."""
        if self._seen:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        self._handler_before = signal.getsignal(signal.SIGINT)
        # Whoever ignores it, like `nohup` or a shell's background job, has a reason.
        if self._handler_before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._handler_before is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt
