"""Tables and numbers of the reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table whose columns but the first *left* are aligned to the right."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, rule, *rows])


def number(value: float | None, unit: str = "") -> str:
    """Return *value* with three digits that count; a dash for None."""
    if value is None:
        return "–"
    sign, size = "-" if value < 0 else "", abs(value)
    if size >= 1000:
        digits = 10 ** (len(str(int(size))) - 3)
        text = f"{round(size / digits) * digits:,}".replace(",", " ")
    elif size >= 100:
        text = f"{size:.0f}"
    elif size >= 10:
        text = f"{size:.1f}"
    elif size >= 0.1:
        text = f"{size:.2f}"
    else:
        text = f"{size:.2g}"
    return f"{sign}{text}{' ' if unit and unit != 'x' else ''}{unit}"
