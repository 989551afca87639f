"""What the command line says about an import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meter_agent.cli.importing.csv_dialect import CsvDialect
from meter_agent.cli.importing.row_mapping import RowMapping

__all__ = ["ImportOptions"]


@dataclass(frozen=True)
class ImportOptions:
    """The options of `meter-agent import`."""

    mapping: RowMapping
    file_format: str | None
    dialect: CsvDialect
    resume: bool
    in_addition: bool
    rejects: Path | None
    state_dir: Path
    patience: float
    as_json: bool
