"""Options of the form NAME=TEXT."""

from __future__ import annotations

from collections.abc import Iterable

import click

__all__ = ["parse_pairs"]


def parse_pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the pairs of *texts*; a name that comes twice or is empty is a usage error."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.UsageError(f"{option} {text!r}: must have the form NAME=TEXT")
        if name in pairs:
            raise click.UsageError(f"{option}: {name!r} is given twice")
        pairs[name] = value
    return pairs
