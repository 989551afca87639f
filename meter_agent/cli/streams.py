"""The standard streams of a command: what cannot be written changes nothing but what is seen.

Rule: the exit code of a command that sends or changes something says what happened to the events,
never whether its output could be written: a script that repeats a command because a disk or a pipe
failed bills twice. Where the output is the whole result, a failed write ends the command, with
`ExitCode.OUTPUT`. What goes to stderr accompanies the result, and never decides.

A character that the encoding of a stream lacks is written as a backslash escape.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import select
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import click

__all__ = ["OutputError", "changes_something", "finish_output", "prepare_streams"]


class OutputError(Exception):
    """What a command prints cannot be written, and nobody would get the result."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the output cannot be written: {error.strerror}")
        self.is_broken_pipe = error.errno == errno.EPIPE
        """Whether the reader has gone away, which is its own affair (`| head`)."""


class _Output(io.FileIO):
    """A descriptor to which nothing more is written after the first failure."""

    failure: OSError | None = None
    must_succeed = False

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self.failure is not None:
            return size
        try:
            # None: the pipe is full, and another process has made it non-blocking.
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            self.failure = error
            if self.must_succeed:
                raise OutputError(error) from None
            return size
        return written


_stdout: _Output | None = None


def prepare_streams() -> None:
    """Replace the standard streams of this process, before anything is printed or opened."""
    global _stdout  # noqa: PLW0603 - the standard streams are global
    _open_closed_descriptors()
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - as long as the process
    _stdout = _Output(1, "wb", closefd=False)
    _stdout.must_succeed = True
    sys.stdout = _text(_stdout, sys.stdout)
    sys.stderr = _text(_Output(2, "wb", closefd=False), sys.stderr)


def changes_something(command: click.Command) -> None:
    """Declare that *command* sends or changes something, unless it is called as a dry run."""
    work = command.callback

    @functools.wraps(work or command)
    def run(*arguments: Any, **options: Any) -> Any:
        if _stdout is not None and not options.get("dry_run"):
            _stdout.must_succeed = False
        return work(*arguments, **options) if work is not None else None

    command.callback = run


def finish_output() -> str | None:
    """Write what is left; return why something was lost that nobody has been told of yet.

    Raises:
        OutputError: It cannot be written, and is the whole result of the command.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    failure = _stdout.failure if _stdout is not None else None
    if failure is None or failure.errno == errno.EPIPE:
        return None
    return str(OutputError(failure))


def _open_closed_descriptors() -> None:
    # `>&-`: the next file that is opened, a spool or a connection, would become stdout.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _text(output: _Output, before: TextIO | None) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=output.isatty(),
    )
