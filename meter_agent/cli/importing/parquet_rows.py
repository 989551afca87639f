"""Rows of Parquet, with the package pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import click

from meter_agent.cli.importing.input_file import InputFile
from meter_agent.cli.importing.json_rows import flat
from meter_agent.cli.importing.row import Row, UnreadableError

__all__ = ["ParquetRows"]

_ROWS = 4096


class ParquetRows:
    """Rows with the types of their columns."""

    format = "parquet"
    unit = "row"

    def __init__(self, file: InputFile, reader: BinaryIO) -> None:
        from meter_agent.cli.extras import missing_extra

        complaint = missing_extra("parquet")
        if complaint is not None:
            raise click.UsageError(complaint)
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        self._failures = (pa.ArrowException, OSError)
        self._name = file.name
        self._file = reader
        try:
            self._parquet = ParquetFile(self._file)
        except self._failures as error:
            raise click.UsageError(f"{file.name} is no Parquet file: {error}") from None
        self.columns: list[str] = [column.path for column in _leaves(self._parquet)]
        names = self._parquet.schema_arrow.names
        if len(set(names)) < len(names):
            doubled = min(name for name in names if names.count(name) > 1)
            raise click.UsageError(f"{file.name}: two columns are called {doubled!r}")
        self.total: int = self._parquet.metadata.num_rows

    def advice(self, _wanted: set[str]) -> str | None:
        """Return nothing: its columns are what they are."""
        return None

    def __iter__(self) -> Iterator[Row]:
        number = 0
        batches = self._parquet.iter_batches(batch_size=_ROWS)
        while True:
            try:
                documents = next(batches).to_pylist()
            except StopIteration:
                return
            except self._failures as error:
                raise UnreadableError(f"{self._name}: behind row {number}: {error}") from None
            for document in documents:
                number += 1
                try:
                    yield Row(number, number, flat(document), document)
                except ValueError as error:
                    yield Row(number, number, {}, document, str(error))

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._file.close()


def _leaves(parquet: Any) -> list[Any]:
    schema = parquet.schema
    return [schema.column(index) for index in range(len(schema.names))]
