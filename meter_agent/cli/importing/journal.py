"""How far an import came: a file of JSON Lines that is known by the content of the imported file.

Before a chunk leaves, it is noted as begun; afterwards, what came of it. So a run that is killed
leaves at most one chunk behind of which nobody knows the end. Its rows go out again under their
identifiers, as long as Stripe still knows those.

A line that was torn by a crash does not count. Journals hold no usage, only counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pwd
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import click

from meter_agent import Config
from meter_agent.cli.importing.ledger import ImportLedger

__all__ = [
    "Begun",
    "Journal",
    "Known",
    "StartLock",
    "destination_of",
    "known_imports",
    "state_directory",
]

_SUFFIX = ".journal"


class Begun(NamedTuple):
    """A chunk that may have been sent, at least in part."""

    first_row: int
    last_row: int
    at: float
    """Unix seconds before its first attempt."""


class Known(NamedTuple):
    """An import of before, as its journal tells."""

    path: Path
    header: Mapping[str, Any]


class StartLock:
    """The right to begin an import; a context manager, which waits for it.

    It is held from the look at other imports until the journal says that this one has begun. So of
    two that begin at once, the second sees the first.

    Args:
        directory: Where journals are.
    """

    def __init__(self, directory: Path) -> None:
        self._descriptor: int | None = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)

    def release(self) -> None:
        """Let the next one begin."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        if self._descriptor is not None:
            # NFS locks files only.
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()


class Journal:
    """The journal of one import; a context manager, which is the right to go on with it.

    Args:
        directory: Where journals are.
        content: Digest of the file.
        destination: Digest of where its events go.
        plan: What makes events of its rows.
        start: Released when it has begun.
    """

    def __init__(
        self,
        directory: Path,
        content: str,
        destination: str,
        plan: Mapping[str, Any],
        start: StartLock,
    ) -> None:
        self._start = start
        self._content = content
        self.destination = destination
        """Digest of where the events go."""
        self.plan = plan
        """What makes events of the rows."""
        plan_digest = _digest(json.dumps(plan, sort_keys=True))
        self.mark = f"import-{_digest(content + plan_digest)}"
        """What the identifiers of its rows begin with."""
        self.path = directory / f"{content}-{destination[:8]}-{plan_digest[:16]}{_SUFFIX}"
        self.header: dict[str, Any] = {}
        self.rejects: list[str] = []
        """Where rejected rows are; the last one is written to."""
        self.last_row = 0
        """The last row of the chunks that have ended."""
        self.begun: Begun | None = None
        """The chunk that may have been sent and has not ended."""
        self.ledger = ImportLedger()
        """Of the chunks that have ended."""
        self.lengths: dict[str, int] = {}
        """How long the files beside it were when the last chunk ended."""
        self.done = False
        self._kept = False
        self._descriptor: int | None = None

    @property
    def exists(self) -> bool:
        """Whether something of this file may have been sent."""
        return bool(self.last_row or self.begun or self.done)

    def start(self, **facts: Any) -> None:
        """Note that an import begins, and what is known about it."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)  # of a start from which nothing was sent
        self.header = {
            "version": 1,
            "content": self._content,
            "destination": self.destination,
            "plan": self.plan,
            **facts,
        }
        self._note({"import": self.header})
        self.rejects = [self.header["rejects"]]

    def keep(self) -> None:
        """Let it stay, so that the import can be resumed, although nothing has been sent."""
        self._kept = True

    def change_rejects(self, path: str) -> None:
        """Note that rejected rows are written to *path* from now on."""
        self._note({"rejects": path})
        self.rejects.append(path)
        self.lengths["rejects"] = 0

    def begin(self, chunk: Begun) -> None:
        """Note that *chunk* is about to be sent for the first time."""
        self._note({"begun": chunk._asdict()})
        self._start.release()
        self.begun = chunk

    def end(self, last_row: int, ledger: ImportLedger, lengths: Mapping[str, int]) -> None:
        """Note that every row through *last_row* has ended."""
        total = self.ledger + ledger
        self._note({"ended": last_row, "ledger": total.to_document(), "lengths": dict(lengths)})
        self.last_row, self.begun = last_row, None
        self.ledger, self.lengths = total, dict(lengths)

    def break_off(self, ledger: ImportLedger) -> None:
        """Note what is known about the chunk that was begun; only a resume can end it."""
        self._note({"broken_off": ledger.to_document()})

    def withdraw(self) -> None:
        """Note that nothing of the chunk that was begun has been sent."""
        self.begun = None
        self._note({"withdrawn": True})

    def finish(self) -> None:
        """Note that the file has been imported to its end."""
        self.done = True
        self._note({"done": True})

    def __enter__(self) -> Self:
        """Take the journal.

        Raises:
            BlockingIOError: Another process has it.
            OSError: It cannot be written.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, mode=0o600)
        try:
            _lock(self._descriptor)
            self._read(self._descriptor)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        if not self.exists and not self._kept:
            # As if it had never been.
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _read(self, descriptor: int) -> None:
        with open(os.dup(descriptor), "rb") as file:
            file.seek(0)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(descriptor, whole)
        try:
            for line in data[:whole].splitlines():
                self._take(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise OSError(f"{self.path} is damaged: {error!r}") from None

    def _take(self, note: dict[str, Any]) -> None:
        if "import" in note:
            self.header = note["import"]
            self.rejects = [self.header["rejects"]]
        elif "rejects" in note:
            self.rejects.append(note["rejects"])
            self.lengths["rejects"] = 0
        elif "begun" in note:
            self.begun = Begun(**note["begun"])
        elif "ended" in note:
            self.last_row, self.begun = note["ended"], None
            self.ledger = ImportLedger(**note["ledger"])
            self.lengths = note["lengths"]
        elif "withdrawn" in note:
            self.begun = None
        elif "done" in note:
            self.done = True

    def _note(self, note: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            raise RuntimeError("a journal is written within its context")
        data = json.dumps(note, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError as error:
            error.filename = str(self.path)
            raise
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


def _lock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.fstat(descriptor).st_nlink:
        raise BlockingIOError  # its owner has just taken it away


def state_directory(given: Path | None) -> Path:
    """Return where journals are: *given*, or the place that the XDG specification names.

    Raises:
        click.UsageError: Nothing names a place.
    """
    if given is not None:
        # A resume may come from another directory.
        return Path(os.path.abspath(given))
    base = os.environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):
        home = _home()
        if home is None:
            raise click.UsageError(
                "there is no home directory in which the progress of imports could be noted: "
                "name a directory that stays by --state-dir or XDG_STATE_HOME"
            )
        base = f"{home}/.local/state"
    return Path(base) / "meter-agent" / "imports"


def _home() -> str | None:
    # POSIX: HOME is the user's home directory. Without it, the entry in the password database,
    # which a numeric user of a container does not have.
    try:
        home = os.environ["HOME"] if "HOME" in os.environ else pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
    return home if home.startswith("/") else None


def destination_of(config: Config) -> str:
    """Return a digest of the account that *config* bills, as far as it tells.

    The key itself is not part of it: a key that was rolled is the same account.
    """
    mode = "sandbox"
    if config.sandbox_url is None:
        mode = "test" if "_test_" in config.read_api_key() else "live"
    parts = (config.session_url, config.stream_url, config.stripe_account, config.stripe_context)
    return _digest(json.dumps([mode, *parts]))


def known_imports(directory: Path, destination: str) -> Iterator[Known]:
    """Yield the imports to *destination* of which something may have been sent."""
    for path in sorted(directory.glob(f"*-{destination[:8]}-*{_SUFFIX}")):
        with contextlib.suppress(OSError, ValueError, KeyError), path.open("rb") as file:
            header = json.loads(file.readline())["import"]
            if header["destination"] == destination and _has_sent(file):
                yield Known(path, header)


def _has_sent(notes: Iterable[bytes]) -> bool:
    # Rows that were all rejected, because a column had the wrong name, keep nobody from trying
    # again with the right one.
    begun, recorded = False, 0
    for line in notes:
        if not line.endswith(b"\n"):
            break  # torn by a crash
        try:
            note = json.loads(line)
        except ValueError:
            return True  # it cannot be read, so something may have been sent
        if "ended" in note:
            recorded = note["ledger"]["recorded"]
        begun = "begun" in note or (begun and not note.keys() & {"ended", "withdrawn"})
    return begun or recorded > 0


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
