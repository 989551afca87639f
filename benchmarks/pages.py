"""Writes the figures of a run into the documentation: tables between marks, and plots.

python -m benchmarks.pages [FILE]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import results, scaling, targets

EXPLANATION = Path(__file__).parents[1] / "docs" / "explanation"
PAGES = ("performance.md", "scaling.md", "json.md")
PLOTS = EXPLANATION / "plots"

_MISSING = "This was not measured in this run.\n"
_SECTION = re.compile(
    r"(?P<open><!-- measured: (?P<name>\w+) -->\n).*?(?P<close><!-- end -->)", re.DOTALL
)


def sections(run: dict[str, Any]) -> dict[str, str]:
    """Return what stands between the marks, by name."""
    made = run["measurements"]
    return {
        "machine": results.machine(run),
        "targets": targets.tables(made),
        "scaling": scaling.tables(made),
        **results.tables(run),
    }


def filled(text: str, tables: dict[str, str]) -> str:
    """Return *text* with the sections in their places."""
    return _SECTION.sub(
        lambda at: f"{at['open']}\n{tables.get(at['name'], _MISSING)}\n{at['close']}", text
    )


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else results.STORED
    run = results.load(path)
    tables = sections(run)
    for name in PAGES:
        page = EXPLANATION / name
        page.write_text(filled(page.read_text(), tables))
        print(f"wrote {page.relative_to(EXPLANATION.parents[1])}")
    from benchmarks import plots  # needs matplotlib, the tables do not

    for plot in plots.draw(run["measurements"], PLOTS):
        print(f"wrote {plot.relative_to(EXPLANATION.parents[1])}")


if __name__ == "__main__":
    main()
