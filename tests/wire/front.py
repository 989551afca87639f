"""The sandbox behind a server of raw sockets that misbehaves where it is told to."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from http import HTTPStatus
from typing import Any

from meter_agent import Config, MeterAgent, Stats
from meter_agent._agent import build
from meter_agent.sandbox import Sandbox
from meter_agent.sandbox._reply import Reply
from tests.conftest import FAST
from tests.wire.servers import Greet, Listener, listening

API_KEY = "sk_test_the_key_of_these_tests"


class Exchange:
    """One request that has come in."""

    def __init__(self, connection: socket.socket, request: bytes, sandbox: Sandbox) -> None:
        self.connection = connection
        head, _, self.body = request.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.method, self.path, _ = first.split(" ")
        self.headers = dict(line.split(": ", 1) for line in lines)
        self._sandbox = sandbox

    @property
    def for_stream(self) -> bool:
        return self.path.endswith("/meter_event_stream")

    @property
    def events(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = json.loads(self.body)["events"]
        return events

    def take_in(self) -> Reply:
        """Let the sandbox have the request."""
        return self._sandbox.handle(self.method, self.path, self.headers, self.body)

    def say(self, status: int, body: bytes = b"", *headers: str, length: bool = True) -> None:
        """Answer; without *length*, the end of the connection is the end of the body."""
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *headers]
        if length:
            lines.append(f"Content-Length: {len(body)}")
        self.connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        if not length:
            self.hang_up()

    def serve(self) -> None:
        """Do as an honest server does."""
        reply = self.take_in()
        self.say(reply.status, reply.body, *(f"{k}: {v}" for k, v in reply.headers.items()))

    def hang_up(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)


Behaviour = Callable[[Exchange], None]


class Front:
    """Does with each request what *behave* says; by itself it is honest.

    *script* comes first: one behaviour for each request to the stream.
    """

    def __init__(
        self, sandbox: Sandbox, *script: Behaviour, behave: Behaviour = Exchange.serve
    ) -> None:
        self.sandbox = sandbox
        self.exchanges: list[Exchange] = []
        self._script = list(script)
        self._behave = behave
        self._lock = threading.Lock()

    def __call__(self, connection: socket.socket, request: bytes) -> None:
        exchange = Exchange(connection, request, self.sandbox)
        with self._lock:
            self.exchanges.append(exchange)
            scripted = exchange.for_stream and self._script
            behave = self._script.pop(0) if scripted else self._behave
        behave(exchange)

    @property
    def batches(self) -> list[Exchange]:
        """The requests to the stream."""
        return [exchange for exchange in self.exchanges if exchange.for_stream]

    @contextmanager
    def open(self, greet: Greet | None = None) -> Iterator[Listener]:
        with listening(self, greet) as listener:
            yield listener


def real_agent(url: str, **settings: Any) -> MeterAgent:
    """Make an agent that speaks to *url* over real sockets, with a real key.

    Sessions come from another name of the same host, so that they have a connection of their own,
    as they have at Stripe.
    """
    seams = {
        name: settings.pop(name)
        for name in ("on_dead_letter", "on_error", "runtime")
        if name in settings
    }
    api_url = url.replace("http://127.0.0.1", "http://localhost")
    addresses = {"api_url": api_url, "events_url": url, "api_key": API_KEY}
    return build(
        Config(**(FAST | {"sandbox_url": None, "max_in_flight": 1} | addresses | settings)),
        **seams,
    )


def record(agent: MeterAgent, count: int) -> None:
    for n in range(count):
        assert agent.record("tokens", f"cus_{n}", n + 1)


def assert_billed_once(sandbox: Sandbox, final: Stats, count: int) -> None:
    """Everything that `record()` put in is in the books, once, and the ledger says so."""
    assert sorted(Decimal(entry["value"]) for entry in sandbox.ledger()) == list(
        range(1, count + 1)
    )
    assert (final.recorded, final.delivered) == (count, count)
    assert (final.in_flight, final.buffered) == (0, 0)
    assert final.balanced
