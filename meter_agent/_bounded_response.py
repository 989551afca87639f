"""Answers as http.client reads them, but with an end: bounded in bytes and in time.

http.client bounds the length of a line and the number of headers. It does not bound how many
`100 Continue` come before an answer, how many trailers come behind it, or how long an answer takes
whose bytes each come within the timeout. And of the interim answers it skips 100 alone, although
RFC 9110, section 15.2, asks a client to skip each 1xx that it does not expect. And it takes a head
for complete that broke off behind any of its lines.
"""

from __future__ import annotations

import http.client
import io
import socket
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.exceptions import IncompleteRead

from meter_agent._runtime import SystemRuntime

__all__ = [
    "EXCHANGE_IN_TIMEOUTS",
    "HEAD_BYTES_MAX",
    "BoundedAdapter",
    "Bounds",
    "EndlessAnswerError",
    "FinalResponse",
    "read_body",
]

HEAD_BYTES_MAX = 64 * 1024
"""For the head of an answer and all interim answers before it."""

_FRAMING_BYTES_MAX = 64 * 1024
"""For what is neither head nor body: sizes and extensions of chunks, trailers."""

EXCHANGE_IN_TIMEOUTS = 4
"""How many silences the exchange as a whole may take."""


class EndlessAnswerError(OSError):
    """An answer is longer than any that Stripe gives."""


class Bounds:
    """How much is read in one exchange, and until when.

    Args:
        silence_seconds: How long to wait for the next byte.
        exchange_seconds: How long the exchange as a whole may take.
        body_bytes_max: The longest body that is of use.
    """

    __slots__ = (
        "_bytes_max",
        "_ends_at",
        "_exchange_seconds",
        "bytes_read",
        "left_over",
        "silence_seconds",
    )

    def __init__(
        self, silence_seconds: float, exchange_seconds: float, body_bytes_max: int
    ) -> None:
        self.silence_seconds = silence_seconds
        self.bytes_read = 0
        self.left_over = False
        """Whether bytes were read that do not belong to the answer."""
        self._bytes_max = HEAD_BYTES_MAX + body_bytes_max + _FRAMING_BYTES_MAX
        self._exchange_seconds = exchange_seconds
        self._ends_at = SystemRuntime.monotonic() + exchange_seconds

    def wait_seconds(self) -> float:
        """Return how long the next wait may take.

        Raises:
            TimeoutError: The exchange has taken too long already.
        """
        left = self._ends_at - SystemRuntime.monotonic()
        if left <= 0:
            raise TimeoutError(
                f"Read timed out. (no complete answer within {self._exchange_seconds:g} s)"
            )
        return min(left, self.silence_seconds)

    def count(self, byte_count: int) -> None:
        """Count bytes that were read.

        Raises:
            EndlessAnswerError: It is more than an answer may have.
        """
        self.bytes_read += byte_count
        if self.bytes_read > self._bytes_max:
            raise EndlessAnswerError(f"an answer of more than {self._bytes_max} bytes")

    def check_head(self) -> None:
        """Check that there may be more before the end of the head.

        Raises:
            EndlessAnswerError: There was more than enough.
        """
        if self.bytes_read > HEAD_BYTES_MAX:
            raise EndlessAnswerError(f"no answer within {HEAD_BYTES_MAX} bytes")


class FinalResponse(http.client.HTTPResponse):
    """The final answer on *sock*; interim answers before it are skipped.

    Args:
        sock: Where it comes from.
        bounds: Its limits.
        received: What was read of it already.
        **options: Of `http.client.HTTPResponse`.
    """

    def __init__(self, sock: Any, bounds: Bounds, received: bytes = b"", **options: Any) -> None:
        self._bounds = bounds
        self._source = _Source(sock, bounds, received)
        super().__init__(self._source, **options)  # type: ignore[arg-type]

    def begin(self) -> None:
        """Read the head.

        Raises:
            HTTPException: It is none, or it ended before its empty line.
        """
        super().begin()
        # http.client takes the end of the connection for that of the head, and the lines so far for
        # all of it: a 200 without its length, a 429 without its `Retry-After`.
        if self._source.has_ended:
            raise http.client.IncompleteRead(b"")

    def _read_status(self) -> tuple[str, int, str]:
        # `begin` calls this until the status is not 100, and `HTTPConnection._tunnel` calls it.
        while True:
            answer: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            # 101 is the last answer in HTTP on its connection.
            if not 100 <= answer[1] < 200 or answer[1] == 101:
                return answer
            self._bounds.check_head()
            while self.fp.readline(HEAD_BYTES_MAX + 1) not in {b"\r\n", b"\n", b""}:
                pass


class _Source(io.RawIOBase):
    # What http.client takes for a socket: first what was read already, then what comes.

    def __init__(self, sock: Any, bounds: Bounds, received: bytes) -> None:
        # A file of the socket, because http.client closes the socket behind `Connection: close`
        # before the body is read, and the files of a socket keep it open.
        self._file: socket.SocketIO = sock.makefile("rb", buffering=0)
        self._sock = sock
        self._bounds = bounds
        self._received = received
        self._is_over = False
        self.has_ended = False
        """Whether the end of the connection was read."""

    def makefile(self, _mode: str) -> io.BufferedReader:
        return _Reader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._received:
            count = min(len(buffer), len(self._received))
            buffer[:count], self._received = self._received[:count], self._received[count:]
            return count
        if self._is_over:
            return 0
        self._sock.settimeout(self._bounds.wait_seconds())
        count = self._file.readinto(buffer) or 0
        self._bounds.count(count)
        self.has_ended = not count
        return count

    def end(self, *, is_left_over: bool) -> None:
        """Read nothing more from the socket."""
        self._is_over = True
        self._bounds.left_over = is_left_over or bool(self._received)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Reader(io.BufferedReader):
    # http.client closes it at the end of the body.

    raw: _Source

    def close(self) -> None:
        if not self.closed:
            self.raw.end(is_left_over=False)
            self.raw.end(is_left_over=bool(self.peek(1)))
        super().close()


def read_body(response: Any, bytes_max: int) -> bytes:
    """Return the body of urllib3's *response*, decoded; of one that is too long, a byte too many.

    Raises:
        IncompleteRead: It ended before its length. urllib3 raises this itself since version 2.
    """
    body: bytes = response.read(bytes_max + 1, decode_content=True) or b""
    if len(body) <= bytes_max and response.length_remaining:
        raise IncompleteRead(len(body), response.length_remaining)
    return body


class BoundedAdapter(HTTPAdapter):
    """The adapter of requests, with answers that have an end.

    *bounds* are those of the exchange under way. Only one at a time is possible.
    """

    def __init__(self, **options: Any) -> None:
        self.bounds = Bounds(0.0, 0.0, 0)
        super().__init__(**options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*arguments, **options)
        self._bound(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Return the pools of connections to *proxy*, also those of SOCKS."""
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if is_new:
            self._bound(manager)
        return manager

    def _bound(self, manager: Any) -> None:
        manager.pool_classes_by_scheme = {
            scheme: self._bounded(pool) for scheme, pool in manager.pool_classes_by_scheme.items()
        }

    def _bounded(self, pool: Any) -> Any:
        def open_response(sock: Any, *_debug_level: int, **options: Any) -> FinalResponse:
            return FinalResponse(sock, self.bounds, **options)

        kind = pool.ConnectionCls
        connection = type(kind.__name__, (kind,), {"response_class": staticmethod(open_response)})
        return type(pool.__name__, (pool,), {"ConnectionCls": connection})
