"""Speed is kept: against a floor in the same process, so that no machine is too slow for it.

`make bench` measures; here only what would be a step back by a factor is noticed.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.process.scripts import run_file
from tests.wire.servers import Listener, answer, listening

MEASURED = Path(__file__).with_name("measured.py")


def measured(name: str, url: str = "") -> Any:
    return json.loads(run_file(MEASURED, url, name).stdout)


def test_a_call_costs_no_more_than_a_few_bare_appends() -> None:
    assert 1 < measured("call_ratio")["ratio"] < 5


def test_a_crash_safe_call_costs_less_than_a_system_call_would() -> None:
    assert 1 < measured("crash_safe_call_ratio")["ratio"] < 15


def test_a_waiting_event_is_nothing_to_the_garbage_collector() -> None:
    figures = measured("waiting_events")
    assert 0 < figures["bytes"] < 100
    # The moment in it, and its share of a block of the deque, which holds 64 pieces.
    assert 0 < figures["blocks"] < 1.2
    assert figures["tracked"] < 0.01
    # What counts brings the next collection nearer, in the caller.
    assert figures["counted"] < 0.01


@contextmanager
def stripe() -> Iterator[Listener]:
    """Answer every request on real sockets, and keep the bytes that came."""
    session = {"authentication_token": "token_1", "created": "2020-01-01T00:00:00Z"}

    def accept(connection: socket.socket, request: bytes) -> None:
        path = request.split(b" ", 2)[1]
        opens = path.endswith(b"meter_event_session")
        body = json.dumps(session).encode() if opens else b"{}"
        answer(connection, body, "200 OK", "Request-Id: req_1")

    with listening(accept) as listener:
        yield listener


def test_a_batch_goes_over_the_line_in_a_few_calls_on_one_connection() -> None:
    with stripe() as listener:
        figures = measured("line_calls", listener.url)
    assert 20 <= figures["requests"] <= 30
    assert 2 <= sum(figures["calls"].values()) <= 6, figures
    assert listener.connections == 1


def test_a_batch_on_the_wire_is_compact_json_and_little_else() -> None:
    with stripe() as listener:
        measured("line_calls", listener.url)
    head, _, body = max(listener.requests, key=len).partition(b"\r\n\r\n")
    document = json.loads(body)
    assert len(document["events"]) == 100
    assert len(body) <= len(json.dumps(document, separators=(",", ":")))
    assert len(body) / 100 < 190
    assert len(head) < 700
