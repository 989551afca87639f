"""A file that is read twice: once to know it by its content, and once for its rows."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, BinaryIO, Self

from meter_agent.cli.importing.signatures import piped

__all__ = ["FileChangedError", "InputFile"]

_BLOCK_BYTES = 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class FileChangedError(Exception):
    """The file is not what it was when the import began."""


class InputFile:
    """An open file; a context manager.

    What can be read only once, standard input and pipes, is copied to a temporary file first: its
    identity is that of its content, which is known when it has ended.

    Args:
        path: Where it is; None: standard input.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self.name = "-" if path is None else str(path)
        self.path = path
        self._file = _opened(path)
        status = os.fstat(self._file.fileno())
        self.size_bytes = status.st_size
        self._version = _version_of(status)
        self.digest = ""
        """Names the content; known after `look_through`."""
        self.text_digest = ""
        """Names the text without its mark of UTF-8 and whatever its line ends; known likewise."""
        self.lines = 0
        """About how many rows a text has; known after `look_through`."""

    def look_through(self, lengths: Collection[int] = ()) -> dict[int, str]:
        """Read all of it for its digest; returns the digests of its beginnings of these *lengths*.

        Raises:
            OSError: It cannot be read.
        """
        beginnings: dict[int, str] = {}
        stops = sorted(length for length in lengths if length < self.size_bytes)
        digest, text, read, last = hashlib.blake2b(digest_size=16), _TextDigest(), 0, b"\n"
        self._file.seek(0)
        while block := self._file.read(
            min(_BLOCK_BYTES, (stops or [_BLOCK_BYTES + read])[0] - read)
        ):
            digest.update(block)
            text.update(block)
            self.lines += block.count(b"\n")
            read += len(block)
            last = block[-1:]
            if stops and read == stops[0]:
                beginnings[stops.pop(0)] = digest.hexdigest()
        self.digest, self.text_digest = digest.hexdigest(), text.hexdigest()
        self.lines += last != b"\n"
        return beginnings

    def reopen(self) -> BinaryIO:
        """Return a reader from the start, which may be closed. One at a time."""
        self._file.seek(0)
        return os.fdopen(os.dup(self._file.fileno()), "rb")

    def check_unchanged(self) -> None:
        """Look whether somebody wrote to it.

        Raises:
            FileChangedError: Somebody did.
        """
        if _version_of(os.fstat(self._file.fileno())) != self._version:
            raise FileChangedError(self._changed())

    def _changed(self) -> str:
        if os.fstat(self._file.fileno()).st_size <= self.size_bytes:
            return f"{self.name} has changed while it was read; restore it as it was"
        before = piped(f"head -c {self.size_bytes} {{}}", self.name)
        return f"{self.name} has grown while it was read; without its new rows it is {before}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()


class _TextDigest:
    """Digest of a text that editors, spreadsheets and transfers save in other ways."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._held = b""
        self._is_first = True

    def update(self, block: bytes) -> None:
        text = (self._held + block).replace(b"\r\n", b"\n")
        if self._is_first and len(text) < len(_BOM):
            self._held = text
            return
        if self._is_first:
            text, self._is_first = text.removeprefix(_BOM), False
        # A line end at the end may go on in the next block, or be that of the last line.
        body = text.rstrip(b"\r\n")
        self._digest.update(body)
        self._held = text[len(body) :]

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _version_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _opened(path: Path | None) -> IO[bytes]:
    if path is None:
        return _copied(sys.stdin.buffer)
    file = path.open("rb")
    try:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode):
            return file
        return _copied(file)
    except BaseException:
        file.close()
        raise


def _copied(source: IO[bytes]) -> IO[bytes]:
    # It has no name, so that nothing of it is left behind, whatever becomes of this process.
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the `InputFile`
    try:
        shutil.copyfileobj(source, copy, _BLOCK_BYTES)
        copy.flush()
    except BaseException:
        copy.close()
        raise
    return copy
