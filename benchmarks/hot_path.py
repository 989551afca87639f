"""What `record()` and the encoding of a batch cost, next to what they could cost at best.

Rivals take turns within each round, so that a machine that slows down slows all of them; the median
round is printed with the quartiles around it. Run it with `make bench`.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import orjson
import requests
from requests.adapters import BaseAdapter

from meter_agent import Config
from meter_agent._agent import build
from meter_agent._event import EventEncoder, RecordedEvent, format_timestamp

ROUNDS = 15
CALLS = 50_000
BATCH = 100
BATCHES = 50

Lap = Callable[[], float]


def main() -> None:
    print(f"record(): {CALLS:,} calls a round, {ROUNDS} rounds, one thread, the sender busy")
    _print_table(_race({"bare append": _append_lap, "record()": _record_lap}), "bare append")
    print(f"\nencoding: per event in batches of {BATCH}")
    _print_table(_race(_encoding_laps()), "json.dumps")
    print(
        "all start from recorded events; the agent's encoder also checks every field and keeps"
        " the bytes of each event apart, for retries and splits"
    )


def _append_lap() -> float:
    # What any agent has to do at the least: keep name, customer, value and moment.
    append, now = deque[tuple[str, str, int, float]]().append, time.time
    began_at = time.perf_counter()
    for _ in range(CALLS):
        append(("tokens", "cus_1", 1, now()))
    return (time.perf_counter() - began_at) / CALLS


def _record_lap() -> float:
    answer = threading.Event()
    agent = build(
        Config(sandbox_url="http://127.0.0.1:1", buffer_events=2 * CALLS, max_in_flight=1),
        open_adapter=lambda: _SilentAdapter(answer),
    )
    record = agent.record
    try:
        record("warm_up", "cus_123", 1)
        began_at = time.perf_counter()
        for _ in range(CALLS):
            record("api_requests", "cus_123", 1)
        lap = (time.perf_counter() - began_at) / CALLS
    finally:
        answer.set()
        agent.close(0)
    if agent.stats().recorded != CALLS + 1:
        raise RuntimeError("record() did not take every event")
    return lap


class _SilentAdapter(BaseAdapter):
    """A network that keeps the sender waiting, so that `record()` is measured alone."""

    def __init__(self, answer: threading.Event) -> None:
        super().__init__()
        self._answer = answer

    def send(self, *_args: Any, **_options: Any) -> requests.Response:
        self._answer.wait()
        raise requests.exceptions.ConnectionError("the lap is over")

    def close(self) -> None:
        pass


def _encoding_laps() -> dict[str, Lap]:
    now = time.time()
    events = [RecordedEvent(now, "tokens", f"cus_{n}", n, None, None, None) for n in range(BATCH)]
    names = [f"0b8a7c5e-9f1d-4a53-8c1e-{n:012d}" for n in range(BATCH)]
    encode = EventEncoder().encode
    msgspec_encode = msgspec.json.Encoder().encode

    def documents() -> dict[str, Any]:
        return {"events": [_document(*pair) for pair in zip(events, names, strict=True)]}

    def agent() -> bytes:
        pairs = zip(events, names, strict=True)
        return b'{"events":[' + b",".join([encode(*pair).body for pair in pairs]) + b"]}"

    return {
        "json.dumps": _lap(lambda: json.dumps(documents(), separators=(",", ":")).encode()),
        "orjson": _lap(lambda: orjson.dumps(documents())),
        "msgspec": _lap(lambda: msgspec_encode(documents())),
        "the agent's encoder": _lap(agent),
    }


def _document(event: RecordedEvent, identifier: str) -> dict[str, Any]:
    """What a JSON library has to be given; built without a single check."""
    return {
        "event_name": event.event_name,
        "identifier": identifier,
        "payload": {"stripe_customer_id": event.customer_id, "value": str(event.value)},
        "timestamp": format_timestamp(event.recorded_at),
    }


def _lap(encode_batch: Callable[[], bytes]) -> Lap:
    def lap() -> float:
        began_at = time.perf_counter()
        for _ in range(BATCHES):
            encode_batch()
        return (time.perf_counter() - began_at) / (BATCHES * BATCH)

    return lap


def _race(laps: Mapping[str, Lap]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in laps}
    for _ in range(ROUNDS):
        for name, lap in laps.items():
            times[name].append(lap())
    return times


def _print_table(times: Mapping[str, list[float]], reference: str) -> None:
    base = statistics.median(times[reference])
    for name, laps in times.items():
        low, middle, high = (1e9 * each for each in statistics.quantiles(laps, n=4))
        ratio = f"{middle / base / 1e9:6.2f} x {reference}"
        print(f"  {name:<20} {middle:8.0f} ns  ({low:.0f} to {high:.0f})  {ratio}")


if __name__ == "__main__":
    main()
