"""The log lines of the package, by the name of their event."""

from __future__ import annotations

import logging

import pytest

__all__ = ["events_of", "lines_of"]


def events_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the event names of the package's lines, in order."""
    return [str(each.__dict__["event"]) for each in caplog.records if each.name == "meter_agent"]


def lines_of(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    """Return the lines of one event."""
    return [each for each in caplog.records if each.__dict__.get("event") == event]
