"""One part of the status: its facts for JSON, its lines for people, and what asks for a human."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Section"]


@dataclass(frozen=True)
class Section:
    """The state of one thing."""

    name: str
    document: Any
    """For JSON; None: there is no such thing here."""
    lines: tuple[str, ...]
    """For people."""
    attention: tuple[str, ...] = ()
    """What needs a human, each with the command that helps."""
    unreachable: bool = False
    """Whether it is a server that does not answer."""
