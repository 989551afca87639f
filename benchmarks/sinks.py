"""The sink's process, seen from the measurements: where it listens, what it got, how fast it is."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

HOLD_SECONDS = 3600.0
"""A delay that no measurement sees the end of: senders stay in their requests."""

_PIPELINED = 32


class Sink:
    """A running sink. *prompt*, *far* and *hold* answer at once, after 50 ms, and never."""

    def __init__(self, ports: Sequence[int], loop: str) -> None:
        self.prompt, self.far, self.hold = (f"http://127.0.0.1:{port}" for port in ports)
        self.loop = loop

    def at(self, delay: float) -> str:
        """Return where the answer takes *delay* seconds."""
        return {0.0: self.prompt, FAR_SECONDS: self.far}[delay]


FAR_SECONDS = 0.05


@contextmanager
def running() -> Iterator[Sink]:
    """Start a sink; it ends with the block."""
    delays = [f"--delay={delay}" for delay in (0.0, FAR_SECONDS, HOLD_SECONDS)]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.sink", *delays],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the sink has no pipes")
        try:
            ready = json.loads(process.stdout.readline())
            yield Sink(ready["ports"], ready["loop"])
        finally:
            process.stdin.close()


def counts(url: str) -> dict[str, Any]:
    """Return what came to *url* so far: requests, events, bytes."""
    with _connected(url) as connection:
        connection.sendall(b"GET /counts HTTP/1.1\r\nHost: sink\r\n\r\n")
        return dict(json.loads(connection.recv(65536).split(b"\r\n\r\n", 1)[1]))


def speed(url: str, body: bytes, seconds: float) -> float:
    """Return how many requests with *body* the sink answers in a second.

    They are sent many at a time without waiting: the sink, and not its client, is the limit.
    """
    head = f"POST /load HTTP/1.1\r\nHost: sink\r\nContent-Length: {len(body)}\r\n\r\n"
    burst = (head.encode() + body) * _PIPELINED
    requests = 0
    with _connected(url) as connection:
        connection.settimeout(30)
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            connection.sendall(burst)
            answered = 0
            while answered < _PIPELINED:
                answered += connection.recv(65536).count(b"HTTP/1.1 200")
            requests += answered
        return requests / (time.perf_counter() - began)


def _connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
