"""How much is measured: the quick mode and the full one."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.sinks import Sink


@dataclass(frozen=True)
class Plan:
    """What a measurement is told."""

    sink: Sink
    quick: bool

    def pick(self, quick: int, full: int) -> int:
        """Return the number for this mode."""
        return quick if self.quick else full
