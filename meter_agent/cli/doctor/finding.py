"""What a check found, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from meter_agent.cli.exit_codes import ExitCode

__all__ = ["Finding", "State", "failed", "not_checked", "ok", "warning"]


class State(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    """It passed."""

    WARNING = "warning"
    """It works, and is worth a change."""

    FAILED = "failed"
    """Events are lost, refused or stuck until it is mended."""

    NOT_CHECKED = "not checked"
    """It cannot be seen from here, or rests on something that failed."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    check: str
    state: State
    detail: str
    advice: str | None = None
    """What makes the check pass; commands stand in backquotes."""
    exit_code: ExitCode = ExitCode.OK
    """What the doctor ends with, if this is the first that failed."""

    def to_document(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "check": self.check,
            "state": self.state.value,
            "detail": self.detail,
            "advice": self.advice,
        }


def ok(check: str, detail: str) -> Finding:
    """Return the finding of a check that passed."""
    return Finding(check, State.OK, detail)


def warning(check: str, detail: str, advice: str) -> Finding:
    """Return the finding of a check that passed, with a remark."""
    return Finding(check, State.WARNING, detail, advice)


def failed(check: str, detail: str, advice: str, exit_code: ExitCode = ExitCode.USAGE) -> Finding:
    """Return the finding of a check that failed."""
    return Finding(check, State.FAILED, detail, advice, exit_code)


def not_checked(check: str, why: str) -> Finding:
    """Return the finding of a check that was not made."""
    return Finding(check, State.NOT_CHECKED, why)
