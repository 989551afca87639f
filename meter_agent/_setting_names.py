"""Names that look like a setting and are none, each with the nearest one that is."""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["nearest", "unknown_names"]

_CALLBACKS = ("on_dead_letter", "on_error", "on_drop")


def nearest(name: str, known: Collection[str]) -> str | None:
    """Return the one of *known* that *name* is most like; None if none is like it."""
    import difflib  # noqa: PLC0415  only for a mistyped name

    # Where a unit was forgotten, the rest is right, however long the unit is.
    longer = [each for each in known if each.startswith(f"{name}_")]
    matches = longer or difflib.get_close_matches(name, known, n=1)
    return matches[0] if matches else None


def unknown_names(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Return a problem for each of *names* that is no setting."""
    return [_problem(name, known) for name in names if name not in known]


def _problem(name: str, known: Collection[str]) -> str:
    if name in _CALLBACKS:
        return f"{name} is no setting: it is an argument of MeterAgent() and configure()"
    like = nearest(name, [*known, *_CALLBACKS])
    advice = "the reference of the settings lists them" if like is None else f"use {like}"
    return f"{name} is no setting: {advice}"
