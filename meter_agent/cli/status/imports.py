"""Imports of files, as their journals tell; nothing is locked, and nothing changed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meter_agent.cli.printing import counted
from meter_agent.cli.status.section import Section

__all__ = ["imports_section"]

_LOCKS = Path("/proc/locks")
_SHOWN_MAX = 10


def imports_section(directory: Path | None) -> Section:
    """Return the imports whose journals are in *directory*; None: nobody knows where they are."""
    if directory is None:
        line = "unknown, for there is no home directory: --state-dir says where they are noted"
        return Section("imports", None, (line,))
    found = sorted(_imports(directory), key=lambda each: str(each["started_at"]))
    unfinished = [each for each in found if each["state"] == "broken off"]
    shown = [*unfinished, *(each for each in found if each not in unfinished)][:_SHOWN_MAX]
    lines = [_line(each) for each in shown]
    if len(found) > len(shown):
        lines.append(f"and {len(found) - len(shown)} more in {directory}")
    return Section(
        "imports",
        found,
        tuple(lines) or ("none",),
        tuple(attention for each in found for attention in _attention(each)),
    )


def _attention(each: dict[str, Any]) -> Iterator[str]:
    if each["state"] == "broken off":
        yield (
            f"{each['file']}: the import was broken off behind row {each['last_row']}; the same"
            " command with --resume goes on with it"
        )
    if each["state"] != "done":
        return
    # Nothing says that somebody has dealt with them but that the file has been taken away.
    ledger = each["ledger"]
    rejected = ledger.get("rejected", 0) + ledger.get("dead_lettered", 0)
    if rejected and (there := [path for path in each["rejected_in"] if os.path.exists(path)]):
        yield _further(each, f"{counted(rejected, 'row')} not billed", there)
    letters = str(Path(each["journal"]).with_suffix(".uncertain.jsonl"))
    if ledger.get("uncertain") and os.path.exists(letters):
        yield _further(each, f"{counted(ledger['uncertain'], 'row')} maybe billed", [letters])


def _further(each: dict[str, Any], what: str, paths: list[str]) -> str:
    return f"{each['file']}: {what}, see {', '.join(paths)}: move it away when that is dealt with"


def _line(each: dict[str, Any]) -> str:
    ledger = each["ledger"]
    counts = ", ".join(
        f"{ledger.get(name, 0)} {name.replace('_', '-')}"
        for name in ("delivered", "dead_lettered", "uncertain", "rejected")
        if ledger.get(name) or name == "delivered"
    )
    unbilled = ledger.get("rejected", 0) + ledger.get("dead_lettered", 0)
    where = f"; the others are in {each['rejects']}" if unbilled else ""
    return f"{each['file']}: {counted(each['last_row'], 'row')}, {counts}; {each['state']}{where}"


def _imports(directory: Path) -> Iterator[dict[str, Any]]:
    held = _held_files()
    for path in directory.glob("*.journal"):
        # A journal without a whole first line belongs to an import that has sent nothing.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            yield _read(path, held)


def _read(path: Path, held: set[tuple[int, int, int]]) -> dict[str, Any]:
    header: dict[str, Any] | None = None
    ledger: dict[str, int] = {}
    begun: dict[str, int] = {}
    last_row, done, has_begun = 0, False, False
    rejected_in: list[str] = []
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        for line in file:
            note = json.loads(line) if line.endswith(b"\n") else {}
            header = note.get("import", header)
            rejected_in += [note["rejects"]] if "rejects" in note else []
            ledger, last_row = note.get("ledger", ledger), note.get("ended", last_row)
            # What is known of a chunk that has not ended.
            begun = note.get("broken_off", {} if note.keys() & {"begun", "ended"} else begun)
            has_begun = has_begun or not note.keys() <= {"import", "rejects"}
            done = done or "done" in note
    if header is None or not has_begun:
        raise ValueError
    running = (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino) in held
    state = "running" if running else "done" if done else "broken off"
    return {
        "file": header["file"],
        "started_at": header["started_at"],
        "rejects": rejected_in[-1] if rejected_in else header["rejects"],
        "rejected_in": [header["rejects"], *rejected_in],
        "journal": str(path),
        "state": state,
        "last_row": last_row,
        "ledger": {name: ledger.get(name, 0) + begun.get(name, 0) for name in {**ledger, **begun}},
    }


def _held_files() -> set[tuple[int, int, int]]:
    # Looked up and not tried: an import that began while we held its lock would give up.
    held = set()
    with contextlib.suppress(OSError):
        for line in _LOCKS.read_text().splitlines():
            words = line.split()
            if "FLOCK" in words and len(words) >= 6 and "->" not in words:
                major, minor, inode = words[5].split(":")
                held.add((int(major, 16), int(minor, 16), int(inode)))
    return held
