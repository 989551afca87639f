"""How long tests wait for what must happen: a bound for hangs, never a measure of speed."""

from __future__ import annotations

__all__ = ["PATIENCE_SECONDS"]

PATIENCE_SECONDS = 180.0
"""A process that starts, serves and ends; on two cores that eight other processes share, too."""
