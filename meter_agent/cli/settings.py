"""Settings of the environment, for commands; what is wrong with them is a usage error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meter_agent import Config, ConfigError
from meter_agent.cli.shell_words import shell_words

__all__ = ["given_settings", "letter_file", "read_settings", "spool_directory"]


def read_settings(**overrides: Any) -> Config:
    """Return the settings of the environment; those given as *overrides* win, unless None."""
    try:
        return Config.from_env(**given_settings(**overrides))
    except ConfigError as error:
        raise click.UsageError(shell_words("; ".join(error.problems))) from None


def given_settings(**options: Any) -> dict[str, Any]:
    """Return those of *options* that were given."""
    return {name: value for name, value in options.items() if value is not None}


def spool_directory(given: Path | None) -> Path:
    """Return the directory to work on: *given*, or that of the environment."""
    path = given
    if path is None:
        # No key is needed to look at files.
        spool_dir = read_settings(disabled=True).spool_dir
        path = None if spool_dir is None else Path(spool_dir)
    if path is None:
        raise click.UsageError("which directory? Name it, or set METER_AGENT_SPOOL_DIR")
    if not path.is_dir():
        raise click.UsageError(f"{path} is not a directory")
    return path


def letter_file(given: Path | None) -> Path:
    """Return the file of dead letters to work on: *given*, or that of the environment."""
    path = given if given is not None else read_settings(disabled=True).dead_letter_path
    if path is None:
        raise click.UsageError(
            "which file? Name it, or set METER_AGENT_DEAD_LETTER_FILE or METER_AGENT_SPOOL_DIR"
        )
    return path
