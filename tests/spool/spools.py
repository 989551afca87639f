"""Spool buffers for tests, and the death of their process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meter_agent._batch import Batch
from meter_agent._destination import NOT_SAID
from meter_agent._event import EventEncoder
from meter_agent._event_buffer import Terms
from meter_agent._ledger import Outcome
from meter_agent._runtime import Runtime
from meter_agent._spool import SpoolBuffer
from meter_agent._spool_body import InvalidRecord
from meter_agent._spool_directory import SpoolDirectory
from meter_agent._spool_header import HEADER_BYTES, read_header

ENCODER = EventEncoder()
MEBIBYTE = 1024 * 1024


class Spool:
    """A buffer on *path*, with what it said and how often it woke a sender."""

    def __init__(self, path: Path, runtime: Runtime, **options: Any) -> None:
        self.wakes: list[None] = []
        self.said: list[tuple[str, dict[str, Any]]] = []
        spool_bytes = options.pop("bytes_max", 16 * MEBIBYTE)
        destination = options.pop("destination", NOT_SAID)
        defaults: dict[str, Any] = {
            "memory_events": 1000,
            "sync_seconds": 0.0,
        }
        terms = Terms("drop_newest", 0.0, lambda: self.wakes.append(None), lambda: None)
        terms = terms._replace(
            **{name: options.pop(name) for name in Terms._fields if name in options}
        )
        self.buffer = SpoolBuffer(
            runtime,
            terms,
            directory=SpoolDirectory(path, spool_bytes, runtime, destination),
            check=ENCODER.check,
            bytes_max=spool_bytes,
            say=lambda event, _level, **fields: self.said.append((event, fields)),
            **(defaults | options),
        )
        self.record = self.buffer.recorder()

    def die(self) -> None:
        """What the kernel does for a process that was killed: locks end, files stay."""
        buffer = self.buffer
        buffer._own.gate.shut()
        for segment in (*buffer._own.segments, *buffer._adopted.segments, buffer._own.prepared):
            if segment is not None:
                segment.release()


def freeze(buffer: SpoolBuffer, batch: Batch) -> None:
    recorded = buffer.recorded(batch)
    places = [n for n, (_, event) in enumerate(recorded) if not isinstance(event, InvalidRecord)]
    events = [ENCODER.encode(recorded[n][1], recorded[n][0]) for n in places]
    assert buffer.freeze(batch, events, places)
    buffer.settle_claim(batch)


def take(buffer: SpoolBuffer, limit: int = 100) -> Batch:
    """Take a batch and make its wire form, as a sender does."""
    batch = buffer.take(limit)
    assert batch is not None
    freeze(buffer, batch)
    return batch


def take_all(buffer: SpoolBuffer) -> dict[str, bytes]:
    """Deliver everything; returns the bodies by identifier."""
    bodies: dict[str, bytes] = {}
    while (batch := buffer.take(100)) is not None:
        freeze(buffer, batch)
        bodies |= {event.identifier: event.body for event in batch.open}
        assert buffer.begin_attempt(batch, batch.open)
        assert buffer.settle(batch, batch.open, Outcome.DELIVERED)
    return bodies


def segments(path: Path) -> list[Path]:
    """The files in which events are."""
    return sorted(path.glob("*.segment"))


def left_by_a_dead_process(path: Path, runtime: Runtime, events: int = 10, **options: Any) -> Path:
    """One file of *events* events, whose process is dead."""
    before = set(segments(path))
    spool = Spool(path, runtime, **options)
    for n in range(events):
        assert spool.record("tokens", "cus_1", n)
    spool.die()
    (segment,) = set(segments(path)) - before
    return segment


def as_version_1(segment: Path) -> None:
    """Rewrite a segment as that version would have written it."""
    content = segment.read_bytes()
    header = read_header(content)
    assert header is not None
    old = header._replace(version=1, inode=0, generation=0, destination=None).to_bytes()
    segment.write_bytes((old + content[HEADER_BYTES:]).ljust(len(content), b"\0"))


def heir_of(path: Path, runtime: Runtime, **options: Any) -> Spool:
    """One who has adopted what was there."""
    spool = Spool(path, runtime, **options)
    spool.buffer.tend()
    return spool


def values(bodies: dict[str, bytes]) -> list[int]:
    """What was billed."""
    return sorted(int(json.loads(body)["payload"]["value"]) for body in bodies.values())
