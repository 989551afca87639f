"""Rows of Parquet, with the package pyarrow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import click

from meter_agent.cli.importing.input_file import InputFile
from meter_agent.cli.importing.json_rows import flat
from meter_agent.cli.importing.row import Row, UnreadableError

__all__ = ["ParquetRows"]

_ROWS_MAX = 1024
_BATCH_BYTES = 4 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024


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

        # A value may be no Python object: a time that no calendar has.
        self._failures = (pa.ArrowException, OSError, ValueError, OverflowError)
        self._name = file.name
        self._file = reader
        try:
            self._parquet = ParquetFile(self._file, buffer_size=_BUFFER_BYTES)
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
        batches = self._batches()
        while True:
            try:
                batch = _without_nanoseconds(next(batches))
                documents = batch.to_pylist()
            except StopIteration:
                return
            except self._failures as error:
                raise UnreadableError(f"{self._name}: behind row {number}: {error}") from None
            size = batch.nbytes // max(1, len(documents))
            for values in documents:
                number += 1
                document = {name: _text(value) for name, value in values.items()}
                try:
                    yield Row(number, number, flat(document), document, None, size)
                except ValueError as error:
                    yield Row(number, number, {}, document, str(error), size)

    def _batches(self) -> Iterator[Any]:
        # Of long rows fewer are in memory, and pyarrow keeps pages until a reading ends.
        for index in range(self._parquet.num_row_groups):
            group = self._parquet.metadata.row_group(index)
            row_bytes = group.total_byte_size // max(1, group.num_rows)
            rows = max(1, min(_ROWS_MAX, _BATCH_BYTES // max(1, row_bytes)))
            yield from self._parquet.iter_batches(batch_size=rows, row_groups=[index])

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._file.close()


def _text(value: Any) -> Any:
    # Older writers, such as Hive and Impala, do not say that bytes are text.
    with contextlib.suppress(UnicodeDecodeError):
        return value.decode() if isinstance(value, bytes) else value
    return value


def _without_nanoseconds(batch: Any) -> Any:
    # Python's times have microseconds, and pyarrow refuses to drop the rest.
    import pyarrow as pa

    fields = [each.with_type(_in_microseconds(each.type)) for each in batch.schema]
    return pa.Table.from_batches([batch]).cast(pa.schema(fields), safe=False)


def _in_microseconds(kind: Any) -> Any:
    import pyarrow as pa

    types = pa.types
    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_time64(kind):
        return pa.time64("us")
    if types.is_list(kind):
        return pa.list_(_in_microseconds(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([each.with_type(_in_microseconds(each.type)) for each in kind])
    return kind


def _leaves(parquet: Any) -> list[Any]:
    schema = parquet.schema
    return [schema.column(index) for index in range(len(schema.names))]
