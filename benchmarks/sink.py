"""The server of the measurements: takes whole requests, counts what is in them, says yes.

python -m benchmarks.sink --delay 0 --delay 0.05

Listens on loopback, on one port for each delay, and prints the ports when it is ready. An answer is
due *delay* seconds after the last byte of its request has come; a server that answers earlier, as
nginx's `return 200` does, flatters the client. It ends when its standard input closes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import threading

MARK = b"api_requests"
"""Stands once in each event that is sent here, whatever client sends it."""

_SESSION = json.dumps(
    {
        "object": "v2.billing.meter_event_session",
        "id": "mes_1",
        "authentication_token": "token_of_the_sink",
        "created": "2020-01-01T00:00:00.000Z",
        "expires_at": "2099-01-01T00:00:00.000Z",
        "livemode": False,
    }
).encode()
_ACCEPTED = b"{}"


class _Counts:
    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.requests = 0
        self.events = 0
        self.bytes = 0


class _Connection(asyncio.Protocol):
    def __init__(self, counts: _Counts, loop: asyncio.AbstractEventLoop) -> None:
        self._counts = counts
        self._loop = loop
        self._received = bytearray()
        self._head_bytes = 0
        self._request_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        while self._request_bytes or self._read_head():
            if len(received) < self._request_bytes:
                return
            self._take()

    def _read_head(self) -> bool:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._received[:end]).lower()
        place = head.find(b"\r\ncontent-length:")
        length = int(head[place + 17 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        self._head_bytes = end + 4
        self._request_bytes = end + 4 + length
        return True

    def _take(self) -> None:
        received, counts = self._received, self._counts
        target = bytes(received[: received.index(b"\r\n")]).split(b" ")[1]
        if target == b"/counts":
            answer = json.dumps(vars(counts)).encode()
        elif target.endswith(b"meter_event_session"):
            answer = _SESSION
        else:
            counts.requests += 1
            counts.events += received.count(MARK, self._head_bytes, self._request_bytes)
            counts.bytes += self._request_bytes
            answer = _ACCEPTED
        del received[: self._request_bytes]
        self._request_bytes = 0
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRequest-Id: req_1\r\n"
        head += f"Content-Length: {len(answer)}"
        whole = head.encode() + b"\r\n\r\n" + answer
        # Sessions at once, also where events are never answered: what is held are batches.
        if counts.delay and answer == _ACCEPTED:
            self._loop.call_later(counts.delay, self._transport.write, whole)
        else:
            self._transport.write(whole)


async def _serve(delays: list[float]) -> None:
    loop = asyncio.get_running_loop()
    ports = []
    for delay in delays:
        counts = _Counts(delay)

        def connection(counts: _Counts = counts) -> _Connection:
            return _Connection(counts, loop)

        server = await loop.create_server(connection, "127.0.0.1", 0, backlog=1024)
        ports.append(server.sockets[0].getsockname()[1])
    print(json.dumps({"ports": ports, "loop": type(loop).__module__.split(".")[0]}), flush=True)
    await asyncio.Event().wait()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, action="append", required=True)
    delays = parser.parse_args().delay
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import uvloop  # four times as fast, but not on every system
    except ImportError:
        asyncio.run(_serve(delays))
    else:
        uvloop.run(_serve(delays))


if __name__ == "__main__":
    main()
