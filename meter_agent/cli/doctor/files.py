"""The files of an agent: the spool directory, and the file of dead letters."""

from __future__ import annotations

import fcntl
import mmap
import os
import shlex
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from meter_agent import Config
from meter_agent._dead_letters import FILE_BYTES_MAX
from meter_agent._runtime import SystemRuntime
from meter_agent._spool_directory import SpoolDirectory
from meter_agent._spool_files import allocate
from meter_agent.cli.doctor.file_systems import FileSystem, file_system_of
from meter_agent.cli.doctor.finding import Finding, State, failed, not_checked, ok, warning
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.printing import ago, counted
from meter_agent.cli.spool.state import SpoolState

__all__ = ["check_dead_letter_file", "check_spool", "judge_file_system", "judge_space"]

_SPOOL, _LETTERS = "spool", "dead letters"
_NEARLY = 0.9
_MEBIBYTE = 1024 * 1024


def check_spool(config: Config) -> Iterator[Finding]:
    """Yield what is wrong with the spool directory; nothing is made that stays."""
    if config.spool_dir is None:
        yield not_checked(
            _SPOOL, "METER_AGENT_SPOOL_DIR is not set: events wait in memory, and end with it"
        )
        return
    path = Path(config.spool_dir)
    if relative := _relative_path_in("METER_AGENT_SPOOL_DIR"):
        yield warning(
            _SPOOL,
            f"{relative} depends on where the service is started",
            f"`export METER_AGENT_SPOOL_DIR={shlex.quote(str(path))}`",
        )
    if not os.path.lexists(path):
        yield _check_missing(path, config.spool_bytes)
        return
    directory = SpoolDirectory(path, config.spool_bytes, SystemRuntime())
    trouble = _trouble_with(directory)
    if trouble is not None:
        yield trouble
        return
    file_system = file_system_of(path)
    remarks = [
        judge_file_system(path, file_system),
        judge_space(path, _free_bytes(path), directory.bytes_reserved(), config.spool_bytes),
        *_look_inside(path),
    ]
    found = [remark for remark in remarks if remark is not None]
    yield from found
    if not found:
        where = f" on {file_system.kind}" if file_system is not None else ""
        yield ok(_SPOOL, f"{path}{where} can be written, locked and mapped")


def _check_missing(path: Path, allowed: int) -> Finding:
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        space = judge_space(path, _free_bytes(above), 0, allowed)
        return space or ok(_SPOOL, f"{path} is not there yet; the first agent makes it")
    return failed(
        _SPOOL,
        f"{path} is not there, and this user cannot make it in {above}",
        f"`sudo install -d -m 700 -o {os.geteuid()} {shlex.quote(str(path))}`",
    )


def _trouble_with(directory: SpoolDirectory) -> Finding | None:
    path = directory.path
    quoted = shlex.quote(str(path))
    try:
        directory.check()
        _try_out(path)
    except NotADirectoryError as error:
        return failed(_SPOOL, str(error), "name a directory: METER_AGENT_SPOOL_DIR")
    except PermissionError as error:
        if os.lstat(path).st_uid != os.geteuid():
            advice = (
                "ask as the user of the service, with its environment; if that is this one: "
                f"`sudo chown -R {os.geteuid()} {quoted}`"
            )
        else:
            advice = f"`chmod 700 {quoted}`"
        return failed(_SPOOL, str(error), advice)
    except OSError as error:
        return failed(
            _SPOOL,
            f"{path}: no file can be made, locked and mapped: {error.strerror or error}",
            "make space there, or name a directory on a local disk: METER_AGENT_SPOOL_DIR",
        )
    return None


def _try_out(path: Path) -> None:
    # As a segment is used; the file has no name, or loses it at once.
    with tempfile.TemporaryFile(dir=path, prefix=".doctor-") as file:
        allocate(file.fileno(), mmap.PAGESIZE)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with mmap.mmap(file.fileno(), mmap.PAGESIZE) as data:
            data[:6] = b"doctor"
            data.flush()
        if os.pread(file.fileno(), 6, 0) != b"doctor":
            raise OSError("what is written to the mapping is not in the file")
    os.listdir(path)


def judge_file_system(path: Path, file_system: FileSystem | None) -> Finding | None:
    """Return what is to be said about where *path* is."""
    if file_system is None or not file_system.shared:
        return None
    return warning(
        _SPOOL,
        f"{path} is on {file_system.kind} ({file_system.mount_point}): other hosts may see it, and"
        " their locks may not reach here",
        "name a directory on a local disk, or one for each host: METER_AGENT_SPOOL_DIR",
    )


def judge_space(path: Path, free: int, used: int, allowed: int) -> Finding | None:
    """Return what is to be said about the space for a spool.

    Args:
        path: The directory.
        free: Bytes free on its disk.
        used: Bytes that segments and quarantine have.
        allowed: `spool_bytes`.
    """
    if used >= _NEARLY * allowed:
        return warning(
            _SPOOL,
            f"{_size(used)} of METER_AGENT_SPOOL_BYTES ({_size(allowed)}) are used in {path}",
            f"`meter-agent status` says why; `export METER_AGENT_SPOOL_BYTES={2 * allowed}`",
        )
    if free < allowed - used:
        fits = used + free // 2
        return warning(
            _SPOOL,
            f"{_size(free)} are free for {path}, which may take {_size(allowed - used)} more",
            f"make space, or `export METER_AGENT_SPOOL_BYTES={fits}`"
            if fits >= _MEBIBYTE  # a spool is no smaller
            else "make space there, or name another directory: METER_AGENT_SPOOL_DIR",
        )
    return None


def _look_inside(path: Path) -> Iterator[Finding]:
    state = SpoolState.look(path, time.time())
    quoted = shlex.quote(str(path))
    if state.quarantined:
        yield warning(
            _SPOOL,
            f"{counted(state.quarantined, 'damaged piece')} in {path}/quarantine",
            f"look at them, and take them away: `mv {quoted}/quarantine {quoted}-quarantine`",
        )
    if state.unread or state.damaged:
        yield failed(
            _SPOOL,
            f"{counted(state.damaged, 'damaged piece')} and {counted(state.unread, 'file')} not"
            f" readable, in {path}",
            f"`meter-agent spool verify {quoted}` tells more; an adopter sets damage aside:"
            f" `meter-agent spool replay {quoted}`",
            ExitCode.BAD,
        )
    elif state.orphaned_events:
        yield warning(
            _SPOOL,
            f"{counted(state.orphaned_events, 'event')} of dead processes in {path}, the oldest for"
            f" {ago(state.orphaned_seconds)}",
            f"an agent there adopts them in a minute; else `meter-agent spool replay {quoted}`",
        )


def check_dead_letter_file(config: Config) -> Finding:
    """Return whether dead letters are kept."""
    finding = _check_dead_letter_file(config)
    relative = _relative_path_in("METER_AGENT_DEAD_LETTER_FILE")
    if finding.state is not State.OK or relative is None:
        return finding
    return warning(
        _LETTERS,
        f"{relative} depends on where the service is started",
        f"`export METER_AGENT_DEAD_LETTER_FILE={shlex.quote(str(config.dead_letter_file))}`",
    )


def _relative_path_in(variable: str) -> str | None:
    path = os.path.expanduser(os.environ.get(variable, "").strip())
    return path if path and not os.path.isabs(path) else None


def _check_dead_letter_file(config: Config) -> Finding:
    path = config.dead_letter_path
    if path is None:
        return warning(
            _LETTERS,
            "no file: what cannot be billed is counted and logged, and gone",
            "`export METER_AGENT_DEAD_LETTER_FILE=/var/lib/SERVICE/dead-letters.jsonl`",
        )
    quoted = shlex.quote(str(path))
    if not os.path.lexists(path):
        return _check_place_of(path, spool=config.dead_letter_file is None)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        return failed(
            _LETTERS, f"{path} is not a regular file", "name one: METER_AGENT_DEAD_LETTER_FILE"
        )
    if not os.access(path, os.W_OK):
        return failed(
            _LETTERS,
            f"{path} cannot be written by this user",
            f"`sudo chown {os.geteuid()} {quoted} && chmod 600 {quoted}`",
        )
    if status.st_size >= _NEARLY * FILE_BYTES_MAX:
        finding = failed if status.st_size >= FILE_BYTES_MAX - _MEBIBYTE else warning
        return finding(
            _LETTERS,
            f"{path} has {_size(status.st_size)}, and takes {_size(FILE_BYTES_MAX)} at most",
            f"settle what is in it, or move it away, with its notes if there are any: "
            f"`mv {quoted} {quoted}.old`; `mv {quoted}.resent {quoted}.old.resent`",
        )
    return ok(_LETTERS, f"{path} can be written")


def _check_place_of(path: Path, *, spool: bool) -> Finding:
    folder = path.absolute().parent
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return ok(_LETTERS, f"{path} is not there yet; the first letter makes it")
    if spool:
        return not_checked(_LETTERS, f"{path} goes with the spool")
    quoted = shlex.quote(str(folder))
    if folder.is_dir():
        advice = f"`sudo chown {os.geteuid()} {quoted}`"
        return failed(_LETTERS, f"{path} cannot be made by this user", advice)
    return failed(
        _LETTERS,
        f"{path} cannot be made: {folder} is not a directory",
        f"`mkdir -p -m 700 {quoted}`",
    )


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _size(count: int) -> str:
    for unit, length in (("GiB", 1024**3), ("MiB", _MEBIBYTE)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"
