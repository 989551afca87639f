"""Signal handlers that strike at every place of a call where Python lets them run.

A trace function plays the handler. Python runs handlers behind calls, at the beginning of functions
and at the end of each turn of a loop; with 3.11's bytecode those are the places tried here. What a
handler raises comes out of the instruction before, so where an instruction and the next one have
different `except` or `finally` clauses around them, none is tried: the trace function can raise in
the next one only.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dis import _parse_exception_table, opname  # type: ignore[attr-defined]
from types import CodeType, FrameType, ModuleType
from typing import Any, TypeVar

__all__ = ["CtrlC", "each_strike"]

_Subject = TypeVar("_Subject")

_STRIKES_MAX = 1000
_BEHIND = {"CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD"} | {
    f"POP_JUMP_BACKWARD_IF_{condition}" for condition in ("TRUE", "FALSE", "NONE", "NOT_NONE")
}


class CtrlC(BaseException):
    """What a handler may raise."""


class _Handler:
    def __init__(self, strike: int, act: Callable[[], object], files: set[str | None]) -> None:
        self.place = ""
        self._strikes_left = strike
        self._act = act
        self._files = files
        self._before: dict[FrameType, tuple[str, int | None]] = {}

    def enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "opcode":
            code, at = frame.f_code, frame.f_lasti
            name, clause = self._before.get(frame, ("", None))
            self._before[frame] = opname[code.co_code[at]], _clause(code, at)
            if name in _BEHIND and clause == _clause(code, at):
                self._strikes_left -= 1
            if self._strikes_left == 0:
                sys.settrace(None)
                self.place = f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}+{at}"
                self._act()
        return self._step


def each_strike(
    make: Callable[[], _Subject],
    act: Callable[[_Subject], object],
    call: Callable[[_Subject], object],
    *modules: ModuleType,
) -> Iterator[tuple[str, _Subject]]:
    """Make something and *call* it, again and again, with *act* at another place each time.

    Yields each place, in *modules*, and what was struck there. Ends with the call that is over
    before its turn comes.
    """
    files = {module.__file__ for module in modules}
    for strike in range(1, _STRIKES_MAX):
        subject = make()
        handler = _Handler(strike, lambda: act(subject), files)  # noqa: B023 - used in this turn
        before = sys.gettrace()
        # A collection would run the destructors of earlier subjects within this call, and Python
        # prints what is raised there.
        gc.disable()
        sys.settrace(handler.enter)
        try:
            with suppress(CtrlC):
                call(subject)
        finally:
            sys.settrace(before)
            gc.enable()
        if not handler.place:
            return
        yield handler.place, subject
    raise AssertionError("the call has no end")


def _clause(code: CodeType, at: int) -> int | None:
    for entry in _parse_exception_table(code):
        if entry.start <= at < entry.end:
            target: int = entry.target
            return target
    return None
