"""What it costs to turn recorded events into the bytes of a batch, next to JSON libraries.

All start from recorded events. The agent's encoder also checks every field and keeps the bytes of
each event apart, for retries and splits; the libraries check nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import child
from benchmarks.clients import BATCH, CUSTOMER, EVENT
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, interleaved, ratio

_BATCHES = 200
_WAYS = {
    "json": "`json.dumps`",
    "orjson": "orjson",
    "msgspec": "msgspec",
    "agent": "the agent's encoder",
}


def measure(plan: Plan) -> Figures:
    ways = {name: partial(child.call, "benchmarks.encoding:encode", name=name) for name in _WAYS}
    return interleaved(ways, plan.pick(3, 9))


def encode(name: str) -> Figures:
    """Encode batches in this process."""
    encode_batch = _encoder(name)
    encode_batch()
    laps = []
    for _ in range(_BATCHES):
        began = time.perf_counter_ns()
        body = encode_batch()
        laps.append(time.perf_counter_ns() - began)
    laps.sort()
    return {"nanoseconds": laps[_BATCHES // 2] / BATCH, "bytes": len(body) / BATCH}


def _encoder(name: str) -> Callable[[], bytes]:
    from meter_agent._event import (  # only in the process that measures it
        EventEncoder,
        RecordedEvent,
        format_timestamp,
    )

    now = time.time()
    events = [RecordedEvent(now, EVENT, f"{CUSTOMER}{n}", n) for n in range(BATCH)]
    identifiers = [f"0b8a7c5e-9f1d-4a53-8c1e-{n:012d}" for n in range(BATCH)]

    def documents() -> dict[str, Any]:
        return {
            "events": [
                {
                    "event_name": event.event_name,
                    "identifier": identifier,
                    "payload": {"stripe_customer_id": event.customer_id, "value": str(event.value)},
                    "timestamp": format_timestamp(event.recorded_at),
                }
                for event, identifier in zip(events, identifiers, strict=True)
            ]
        }

    def by_agent() -> bytes:
        pairs = zip(events, identifiers, strict=True)
        return b'{"events":[' + b",".join([encode_event(*pair).body for pair in pairs]) + b"]}"

    if name == "agent":
        encode_event = EventEncoder().encode
        return by_agent
    dumps = _library(name)
    return lambda: dumps(documents())


def _library(name: str) -> Callable[[Any], bytes]:
    if name == "orjson":
        import orjson

        dumps: Callable[[Any], bytes] = orjson.dumps
        return dumps
    if name == "msgspec":
        import msgspec

        encode_document: Callable[[Any], bytes] = msgspec.json.Encoder().encode
        return encode_document
    return lambda documents: json.dumps(documents, separators=(",", ":")).encode()


def tables(figures: Figures) -> str:
    floor = figures["json"]["nanoseconds"]
    rows = [
        [
            label,
            number(figures[name]["nanoseconds"]),
            number(ratio(figures[name]["nanoseconds"], floor), "x"),
            number(figures[name]["bytes"]),
        ]
        for name, label in _WAYS.items()
    ]
    return table(["encoding, batches of 100", "ns per event", "of json", "bytes per event"], rows)
