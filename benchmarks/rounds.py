"""Taking turns.

What is compared is measured alternately, so that a machine that slows down for a second slows all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

Figures = dict[str, Any]
Measure = Callable[[], Figures]


def interleaved(subjects: Mapping[str, Measure], rounds: int) -> dict[str, Figures]:
    """Measure each of *subjects* once a round; return the median of each of its figures.

    A figure that is no number is taken from the last round. What every round gave is kept under
    `"rounds"`, in their order.
    """
    taken: dict[str, list[Figures]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, measure in subjects.items():
            taken[name].append(measure())
    return {name: _summary(figures) for name, figures in taken.items()}


def _summary(figures: list[Figures]) -> Figures:
    return {name: _middle([each[name] for each in figures]) for name in figures[-1]} | {
        "rounds": figures
    }


def _middle(values: list[Any]) -> Any:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return statistics.median(values)
    return values[-1]


def ratio(over: float | None, under: float | None) -> float | None:
    """Return *over* / *under*; None where one of them is missing."""
    return over / under if over is not None and under else None
