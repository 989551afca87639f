"""A connection that requests has opened, used again: one write, few reads.

requests opens every connection and makes the first request on it, with all that belongs to that:
TLS, proxies, CA bundles. What it and urllib3 do around each further request takes as long as
encoding a hundred events, and gives the interpreter lock away ten times; beside a thread that
computes, getting it back takes 5 ms each time. So further requests are written to the open socket
here, and give it away four times: look, write, wait, read.

The look is for bytes that came before the request was written. They cannot be its answer, and a
connection that has some is closed. Such an answer to nothing (the 408 of a gateway that ends an
idle connection, an answer that was sent twice) would be taken for the next one, and each answer
behind it for that of one request later.

Only the plain form of an answer is understood here: HTTP/1.1, one length, no transfer coding. An
answer in any other form is given to http.client and urllib3, byte for byte as it came.

The socket does not block, so that no timeout has to be looked after when there is nothing to wait
for, and waits are urllib3's.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import wait_for_read, wait_for_write

from meter_agent._bounded_response import HEAD_BYTES_MAX, Bounds, FinalResponse, read_body
from meter_agent._reply import BODY_BYTES_MAX, Reply, TransportError, too_long

__all__ = ["Headers", "OpenConnection", "has_pending"]

_READ_BYTES = 16 * 1024
_HEADERS_MAX = 100  # as http.client
_STATUS_LINE = re.compile("HTTP/1[.]1 [2-5][0-9][0-9](?: .*)?")
_NAME = re.compile("[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_INTERIM = re.compile(rb"(?:HTTP/1[.]1 1(?!01)[0-9][0-9](?: [^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n)+")
_FOLD = re.compile("\r\n[ \t]+")
_LENGTH = re.compile("[0-9]{1,9}")
_BROKEN_OFF = OSError, ValueError, http.client.HTTPException, HTTPError
_BEFORE_THE_READ = BlockingIOError, ssl.SSLWantReadError
_BEFORE_THE_WRITE = BlockingIOError, ssl.SSLWantWriteError


class Headers(dict[str, str]):
    """Headers by lower-case name, looked up in any case."""

    __slots__ = ()

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        """Return the header *name*, or *default*."""
        return super().get(name.lower(), default)

    @property
    def closes(self) -> bool:
        """Whether the server closes the connection behind this answer."""
        return "close" in self.get("connection", "").lower()


class _Head(NamedTuple):
    status: int
    headers: Headers
    length: int
    ends_at: int


class OpenConnection:
    """Posts on the socket of *connection*, which urllib3 owns and has used once.

    Args:
        connection: Kept alive, and with nothing left to read.
        host: The `Host` header.
    """

    def __init__(self, connection: Any, host: str) -> None:
        # Taken, not shared: urllib3 closes what is in its pools when the interpreter begins to end,
        # and that is when the last events are on their way.
        self._socket, connection.sock = connection.sock, None
        self._socket.settimeout(0)
        self._host = host

    @staticmethod
    def fits(connection: Any) -> bool:
        """Whether the socket of *connection* is one that can be used as described above."""
        # Not TLS within TLS, for example, which urllib3 does with an object of its own.
        return isinstance(getattr(connection, "sock", None), socket.socket)

    @property
    def is_open(self) -> bool:
        """Whether the server has neither closed the connection nor sent what nobody asked for."""
        return not wait_for_read(self._socket, timeout=0.0)

    def close(self) -> None:
        """Close the socket; urllib3 opens the next one."""
        self._socket.close()

    def post(
        self, target: str, headers: Mapping[str, str], body: bytes, bounds: Bounds
    ) -> tuple[Reply, bool]:
        """Post *body* and return the whole answer, and whether the connection can be used again.

        Args:
            target: The path.
            headers: Sent as they are, beside host and content length.
            body: What is sent.
            bounds: How much is read, and until when.

        Raises:
            TransportError: No complete answer came. The connection is of no use any more.
        """
        # A memoryview, because its repr shows nothing: a crash page would print the credentials.
        request = memoryview(_head_of_request(target, self._host, headers, len(body)) + body)
        try:
            refused_early = self._write(request, bounds)
            received = self._read(bounds, at_once=refused_early)
        except TimeoutError as error:
            raise TransportError(str(error), maybe_accepted=True) from None
        except OSError as error:
            raise _stale(error) from None
        if not received:
            raise _stale(ConnectionAbortedError("closed without an answer"))
        try:
            reply, again = self._read_reply(received, bounds)
        except _BROKEN_OFF as error:
            raise TransportError(f"the answer broke off: {error}", maybe_accepted=True) from None
        if refused_early and reply.status < 400:
            raise TransportError(
                f"HTTP {reply.status} before the whole request was written", maybe_accepted=True
            )
        return reply, again and not refused_early and not has_pending(self._socket)

    # -- the socket ----------------------------------------------------------------------------

    def _write(self, data: memoryview, bounds: Bounds) -> bool:
        # Returns whether the server answered before it had read everything, and may have closed the
        # connection: what is too large for it, it refuses so (RFC 9110, section 10.1.1).
        try:
            while data:
                try:
                    data = data[self._socket.send(data) :]
                except _BEFORE_THE_WRITE:
                    self._wait_to_write(bounds)
                except ssl.SSLWantReadError:
                    self._wait_to_read(bounds)
        except OSError as error:
            if isinstance(error, TimeoutError) or self.is_open:
                raise
            return True
        return False

    def _read(self, bounds: Bounds, *, at_once: bool = False) -> bytes:
        # *at_once*: something may be there already, perhaps in the buffers of TLS.
        if not at_once:
            self._wait_to_read(bounds)
        while True:
            try:
                data: bytes = self._socket.recv(_READ_BYTES)
            except _BEFORE_THE_READ:
                self._wait_to_read(bounds)
            except ssl.SSLWantWriteError:
                self._wait_to_write(bounds)
            else:
                bounds.count(len(data))
                return data

    def _wait_to_read(self, bounds: Bounds) -> None:
        if not wait_for_read(self._socket, timeout=bounds.wait_seconds()):
            raise TimeoutError(f"Read timed out. (read timeout={bounds.silence_seconds:g})")

    def _wait_to_write(self, bounds: Bounds) -> None:
        if not wait_for_write(self._socket, timeout=bounds.wait_seconds()):
            raise TimeoutError(f"Write timed out. (read timeout={bounds.silence_seconds:g})")

    # -- the answer ----------------------------------------------------------------------------

    def _read_reply(self, received: bytes, bounds: Bounds) -> tuple[Reply, bool]:
        while True:
            if interim := _INTERIM.match(received):
                received = received[interim.end() :]
            if b"\r\n\r\n" in received or bounds.bytes_read > HEAD_BYTES_MAX:
                break
            more = self._read(bounds, at_once=True)
            if not more:
                break
            received += more
        head = _plain_head(received)
        if head is None:
            return self._read_by_the_book(received, bounds), False
        if head.length > BODY_BYTES_MAX:
            raise too_long(head.status)
        ends_at = head.ends_at + head.length
        while len(received) < ends_at:
            more = self._read(bounds, at_once=True)
            if not more:
                raise http.client.IncompleteRead(b"", ends_at - len(received))
            received += more
        reply = Reply(head.status, head.headers, received[head.ends_at : ends_at])
        # What nobody asked for would be taken for the answer to the next request.
        return reply, len(received) == ends_at and not head.headers.closes

    def _read_by_the_book(self, received: bytes, bounds: Bounds) -> Reply:
        original = FinalResponse(self._socket, bounds, received, method="POST")
        try:
            original.begin()
            pairs: Any = original.msg.items()
            response = urllib3.HTTPResponse(
                original,
                headers=pairs,
                status=original.status,
                version=original.version,
                original_response=original,
                preload_content=False,
                request_method="POST",
            )
            body = read_body(response, BODY_BYTES_MAX)
        finally:
            original.close()
        if len(body) > BODY_BYTES_MAX:
            raise too_long(original.status)
        headers = {name.lower(): _FOLD.sub(" ", value) for name, value in response.headers.items()}
        return Reply(original.status, Headers(headers), body)


def has_pending(sock: Any) -> bool:
    """Whether the buffers of TLS hold bytes that were received and not read.

    What the kernel holds, a look at the socket shows; this it does not.
    """
    return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0


def _head_of_request(
    target: str, host: str, headers: Mapping[str, str], content_length: int
) -> bytes:
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"the header {name} cannot be sent")  # a line end would begin another
    return "\r\n".join(
        [
            f"POST {target} HTTP/1.1",
            f"Host: {host}",
            "Accept-Encoding: identity",
            f"Content-Length: {content_length}",
            *[f"{name}: {value}" for name, value in headers.items()],
            "\r\n",
        ]
    ).encode("ascii")


def _plain_head(received: bytes) -> _Head | None:
    # None: not complete, or in a form that is left to others.
    end = received.find(b"\r\n\r\n")
    lines = received[:end].decode("latin-1").split("\r\n")
    if end < 0 or len(lines) > _HEADERS_MAX or _STATUS_LINE.fullmatch(lines[0]) is None:
        return None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(name) or "\n" in value or "\r" in value:
            return None
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    status, length = int(lines[0][9:12]), headers.get("content-length", "")
    is_plain = (
        status not in {204, 304}
        and _LENGTH.fullmatch(length) is not None
        and not headers.keys() & {"transfer-encoding", "content-encoding"}
    )
    return _Head(status, Headers(headers), int(length), end + 4) if is_plain else None


def _stale(error: OSError) -> TransportError:
    return TransportError(f"ConnectionError: {error}", maybe_accepted=True, stale=True)
