"""The state of agents on this host, from what they leave on the disk; nothing is changed."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from meter_agent import Config, ConfigError
from meter_agent._runtime import SystemRuntime
from meter_agent._spool_directory import SpoolDirectory
from meter_agent.cli.dead_letters.letters import Choice, Letters
from meter_agent.cli.dead_letters.resent import Resent, State
from meter_agent.cli.printing import ago, counted
from meter_agent.cli.sandbox_control import SandboxControlError, read_control
from meter_agent.cli.spool.state import SpoolState
from meter_agent.cli.status.imports import imports_section
from meter_agent.cli.status.section import Section

__all__ = ["sections"]

_MODE = re.compile(r"[a-z]+_(?:org_)?(?P<mode>test|live)_")


def sections(config: Config, *, disabled: bool, imports: Path | None) -> Iterator[Section]:
    """Yield the parts of the status.

    Args:
        config: The settings, which may lack a key.
        disabled: Whether the agent is off.
        imports: Where journals of imports are; None: no home directory is known.
    """
    yield _settings(config, disabled=disabled)
    yield _spool(config)
    yield _dead_letters(config)
    yield imports_section(imports)
    if config.sandbox_url is not None:
        yield _sandbox(config)


def _settings(config: Config, *, disabled: bool) -> Section:
    mode, key = "sandbox", None
    if config.sandbox_url is None:
        try:
            secret = config.read_api_key()
        except ConfigError:
            mode = "none"
        else:
            match = _MODE.match(secret)
            mode, key = match["mode"] if match else "unknown", repr(secret).strip("'")
    document = {
        "disabled": disabled,
        "events_go_to": config.sandbox_url or config.events_url,
        "mode": mode,
        "key": key,
    }
    told = f"events go to {document['events_go_to']}, " + {
        "sandbox": "a sandbox, without a key",
        "none": "but there is no key: see meter-agent doctor",
    }.get(mode, f"{mode} mode, with the key {key}")
    return Section("settings", document, (f"disabled; {told}" if disabled else told,))


def _spool(config: Config) -> Section:
    if config.spool_dir is None:
        return Section("spool", None, ("none: events wait in the memory of each process",))
    path = Path(config.spool_dir)
    if not path.is_dir():
        return Section("spool", None, (f"{path}: not there yet",))
    state = SpoolState.look(path, time.time())
    used = SpoolDirectory(path, config.spool_bytes, SystemRuntime()).bytes_reserved()
    document = {
        "directory": str(path),
        **state.to_document(),
        "bytes_used": used,
        "spool_bytes": config.spool_bytes,
    }
    owners = ", ".join(str(owner) if owner else "one unseen" for owner in state.owners)
    oldest = "" if state.oldest_seconds is None else f", the oldest for {ago(state.oldest_seconds)}"
    alive = f"alive: {owners}" if owners else "nobody alive"
    bytes_used = f"{used} of {config.spool_bytes} bytes used"
    lines = (
        (
            f"{path}: {counted(state.never_sent, 'event')} never sent, "
            f"{state.maybe_accepted} maybe accepted{oldest}"
        ),
        (
            f"{counted(state.segments, 'segment')} ({alive}; {counted(state.orphans, 'orphan')}), "
            f"{bytes_used}"
        ),
    )
    return Section("spool", document, lines, tuple(_spool_attention(path, state)))


def _spool_attention(path: Path, state: SpoolState) -> Iterator[str]:
    quoted = shlex.quote(str(path))
    if state.orphans and not state.owners:
        # With somebody alive beside them they are adopted within a minute.
        yield (
            f"{counted(state.orphaned_events, 'event')} of dead processes, and nobody alive has a "
            f"segment there: start the service, or `meter-agent spool replay {quoted}`"
        )
    if state.damaged or state.unread:
        yield (
            f"{counted(state.damaged, 'damaged piece')}, "
            f"{counted(state.unread, 'file')} not readable: "
            f"`meter-agent spool verify {quoted}`"
        )
    if state.quarantined:
        yield f"{counted(state.quarantined, 'damaged piece')} in {path}/quarantine"


def _dead_letters(config: Config) -> Section:
    path = config.dead_letter_path
    if path is None:
        return Section("dead_letters", None, ("no file: they are counted and logged alone",))
    try:
        letters, resent = Letters(path, Choice()), Resent(path)
    except FileNotFoundError:
        return Section("dead_letters", None, (f"{path}: none",))
    reasons: Counter[str] = Counter()
    sent_again, discarded, newest = 0, 0, ""
    for letter in letters:
        # What failed again has a newer letter, which counts.
        if resent.state(letter) in {State.DELIVERED, State.FAILED}:
            sent_again += 1
            continue
        if resent.state(letter) is State.DISCARDED:
            discarded += 1
            continue
        reasons[letter.reason] += 1
        newest = max(newest, str(letter.fields.get("settled_at") or ""))
    document = {
        "file": str(path),
        "open": reasons.total(),
        "by_reason": dict(sorted(reasons.items())),
        "newest_settled_at": newest or None,
        "sent_again": sent_again,
        "discarded": discarded,
        "unread_lines": letters.unread,
    }
    closed = f"{sent_again} sent again, {discarded} discarded"
    if not reasons and not letters.unread:
        return Section("dead_letters", document, (f"{path}: none open, {closed}",))
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    line = f"{path}: {told or 'none'}, the newest of {newest or '?'}; {closed}"
    listing = f"`meter-agent dead-letters ls {shlex.quote(str(path))}`"
    attention = f"{counted(reasons.total(), 'dead letter')}: {listing}"
    return Section("dead_letters", document, (line,), (attention,))


def _sandbox(config: Config) -> Section:
    try:
        totals = read_control(config, "totals")
    except SandboxControlError as error:
        return Section(
            "sandbox",
            {"url": config.sandbox_url, "error": str(error)},
            (f"{config.sandbox_url} does not answer: {error}",),
            unreachable=True,
        )
    meters = {name: _sum(customers) for name, customers in totals["totals"].items()}
    document = {
        "url": config.sandbox_url,
        "accepted": totals["accepted"],
        "duplicates": totals["duplicates"],
        "meters": meters,
    }
    lines = [
        (
            f"{counted(totals['accepted'], 'event')} accepted, "
            f"{counted(totals['duplicates'], 'duplicate')} absorbed"
        )
    ]
    lines += [
        f"{name}: {each['total']} (customers: {each['customers']})" for name, each in meters.items()
    ]
    return Section("sandbox", document, tuple(lines))


def _sum(customers: Mapping[str, str]) -> dict[str, Any]:
    total = sum(map(Decimal, customers.values()), Decimal())
    return {"customers": len(customers), "total": format(total, "f")}
