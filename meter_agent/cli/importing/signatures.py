"""What the first bytes of a file say about it, and the command that makes rows of it."""

from __future__ import annotations

import re
import shlex

import click

__all__ = ["BEGINNING_BYTES", "check_text", "is_parquet", "piped"]

BEGINNING_BYTES = 4096

# The longer of two that begin alike comes first.
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_COMPRESSORS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
_CONVERTED = (
    *((mark, each, f"iconv -f {each} -t UTF-8 {{}}") for mark, each in _BYTE_ORDER_MARKS),
    *((mark, f"compressed with {each}", f"{each} -dc {{}}") for mark, each in _COMPRESSORS),
)
_NOT_TEXT = (
    (b"\xd0\xcf\x11\xe0", "a workbook of old Excel"),
    (b"%PDF-", "PDF"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"ORC", "ORC"),
    (b"Obj\x01", "Avro"),
    (b"ARROW1", "Arrow IPC"),
    (b"FEA1", "Feather"),
    (b"<", "HTML or XML"),
)


def check_text(name: str, beginning: bytes) -> None:
    """Look whether a file with this *beginning* can be CSV or JSON Lines.

    Raises:
        click.UsageError: It cannot; the message has the command that helps.
    """
    for mark, kind, command in _CONVERTED:
        if _begins_with(mark, beginning):
            raise _refused(name, kind, command)
    if beginning.startswith(b"PK\x03\x04"):
        _refuse_zip(name, beginning)
    if is_parquet(beginning):
        raise click.UsageError(f"{name} is Parquet: --format parquet")
    if beginning[257:262] == b"ustar":
        raise _refused(name, "a tar archive", "tar -xOf {} MEMBER")
    for mark, kind in _NOT_TEXT:
        if _begins_with(mark, beginning):
            raise click.UsageError(
                f"{name} is {kind}: export it as CSV, JSON Lines or Parquet and import that"
            )
    first_line = re.split(rb"[\r\n]", beginning, maxsplit=1)[0]
    if b"\0" in first_line:
        _refuse_zeros(name, first_line)


def is_parquet(beginning: bytes) -> bool:
    """Whether a file with this *beginning* is Parquet."""
    return _begins_with(b"PAR1", beginning)


def _begins_with(mark: bytes, beginning: bytes) -> bool:
    # A header may begin with the letters of a signature: ORCID. What text has none of tells.
    return beginning.startswith(mark) and (
        not mark.isalnum() or re.search(rb"[\0-\x08\x0e-\x1f]", beginning) is not None
    )


def piped(command: str, name: str) -> str:
    """Return *command*, whose `{}` is the file, as a pipe into an import."""
    if name == "-":
        source = " ".join(command.replace("{}", "").split())
    else:
        source = command.replace("{}", shlex.quote(name))
    return f"`{source} | meter-agent import -` with the same options"


def _refused(name: str, kind: str, command: str) -> click.UsageError:
    return click.UsageError(f"{name} is {kind}, not plain UTF-8 text: {piped(command, name)}")


def _refuse_zip(name: str, beginning: bytes) -> None:
    if b"[Content_Types].xml" in beginning or b"xl/" in beginning:
        raise _refused(name, "an Excel workbook (save it as CSV)", "xlsx2csv {}")
    if b"opendocument.spreadsheet" in beginning:
        raise click.UsageError(f"{name} is an OpenDocument spreadsheet: save it as CSV")
    raise _refused(name, "a zip archive", "unzip -p {}")


def _refuse_zeros(name: str, first_line: bytes) -> None:
    half = len(first_line) // 4
    for encoding, zeros in (("UTF-16LE", first_line[1::2]), ("UTF-16BE", first_line[::2])):
        if zeros.count(0) > half:
            raise _refused(name, encoding, f"iconv -f {encoding} -t UTF-8 {{}}")
    raise click.UsageError(
        f"{name} has NUL bytes in its first line: it is not text, neither CSV nor JSON Lines"
    )
