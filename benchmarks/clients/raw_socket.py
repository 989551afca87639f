"""The floor of shipping: one `send` and one `recv` per batch, orjson, ready-made identifiers."""

from __future__ import annotations

import socket
import time
from typing import Any

import orjson

from benchmarks.clients import Client
from benchmarks.clients.loop import Event, Loop, Post


def open_client(url: str, *, in_flight: int = 1, **_options: Any) -> Client:
    host, port = url.removeprefix("http://").split(":")
    head = (
        f"POST /v2/billing/meter_event_stream HTTP/1.1\r\nHost: {host}\r\n"
        "Content-Type: application/json\r\nAuthorization: Bearer token_1\r\nContent-Length: "
    ).encode()

    def open_post() -> Post:
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def post(batch: list[Event]) -> None:
            body = orjson.dumps({"events": _documents(batch)})
            connection.sendall(b"%s%d\r\n\r\n%s" % (head, len(body), body))
            if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                raise RuntimeError("the sink refused")

        return post

    return Loop(open_post, in_flight)


def _documents(batch: list[Event]) -> list[dict[str, Any]]:
    timestamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    return [
        {
            "event_name": name,
            "identifier": f"0b8a7c5e-9f1d-4a53-8c1e-{n:012d}",
            "payload": {"stripe_customer_id": customer, "value": str(value)},
            "timestamp": timestamp,
        }
        for n, (name, customer, value) in enumerate(batch)
    ]
