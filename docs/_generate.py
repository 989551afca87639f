"""Writes the pages of the documentation that are facts of the code.

python docs/_generate.py            # write them
python docs/_generate.py --check    # exit with 1 if one of them is stale
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parent

if not __package__:
    # Run as a file, which puts this folder on the path and not the one around it.
    sys.path.insert(0, str(DOCS.parent))

from docs._pages import (  # noqa: E402
    answers,
    commands,
    dead_letters,
    errors,
    health,
    logs,
    metrics,
    settings,
    stats,
)

PAGES: dict[Path, Callable[[], str]] = {
    DOCS / "reference" / "settings.md": settings.page,
    DOCS / "reference" / "stats.md": stats.page,
    DOCS / "reference" / "health.md": health.page,
    DOCS / "reference" / "metrics.md": metrics.page,
    DOCS / "reference" / "dead-letters.md": dead_letters.page,
    DOCS / "reference" / "logs.md": logs.page,
    DOCS / "reference" / "answers.md": answers.page,
    DOCS / "reference" / "errors.md": errors.page,
    DOCS / "reference" / "commands.md": commands.page,
}
"""Every generated page, and what makes its text."""


def stale_pages() -> list[Path]:
    """Return the pages whose text differs from what would be written."""
    return [path for path, text in PAGES.items() if not path.exists() or path.read_text() != text()]


def write_pages() -> None:
    """Write every page."""
    for path, text in PAGES.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text())


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` only look; return the exit status."""
    if arguments != ["--check"]:
        write_pages()
        return 0
    stale = stale_pages()
    for path in stale:
        print(f"{path.relative_to(DOCS.parent)} is stale: run python docs/_generate.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
