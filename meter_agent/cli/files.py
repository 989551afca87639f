"""Files that commands write."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

__all__ = ["always_json", "opened_output"]

always_json = click.option(
    "--json", is_flag=True, expose_value=False, help="JSON Lines, which are written in any case."
)


@contextlib.contextmanager
def opened_output(path: Path | None) -> Iterator[IO[str]]:
    """Open a new file, or stdout for None. What has been written is for its owner alone."""
    if path is None:
        yield sys.stdout
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode=0o600)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None
    with open(descriptor, "w", encoding="utf-8") as file:
        yield file
