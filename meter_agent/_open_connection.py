"""A connection that requests has opened, used again: one write, few reads.

requests opens every connection and makes the first request on it, with all that belongs to that:
TLS, proxies, CA bundles. What it and urllib3 do around each further request takes as long as
encoding a hundred events, and gives the interpreter lock away ten times; beside a thread that
computes, getting it back takes 5 ms each time. So further requests are written to the open socket
here, and give it away three times: write, wait, read.

Only the plain form of an answer is understood here: HTTP/1.1, one length, no transfer coding. An
answer in any other form is given to http.client and urllib3, byte for byte as it came.

The socket does not block, so that no timeout has to be looked after when there is nothing to wait
for, and waits are urllib3's.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import wait_for_read, wait_for_write

from meter_agent._reply import BODY_BYTES_MAX, Reply, TransportError, too_long
from meter_agent._runtime import SystemRuntime

__all__ = ["Headers", "OpenConnection"]

_READ_BYTES = 16 * 1024
_HEAD_BYTES_MAX = 64 * 1024
_HEADERS_MAX = 100  # as http.client
_STATUS_LINE = re.compile("HTTP/1[.]1 [2-5][0-9][0-9](?: .*)?")
_NAME = re.compile("[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FOLD = re.compile("\r\n[ \t]+")
_LENGTH = re.compile("[0-9]{1,9}")
_LOOK_AFTER_SECONDS = 1.0
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
    """Posts on the socket of *connection*, which urllib3 has used once.

    Args:
        connection: Kept alive, and with nothing left to read.
        host: The `Host` header.
    """

    def __init__(self, connection: Any, host: str) -> None:
        # Ours alone from now on: urllib3 would close it at the exit of the interpreter, where the
        # last events are just being sent.
        self._socket, connection.sock = connection.sock, None
        self._socket.settimeout(0)
        self._host = host
        self._used_at = SystemRuntime.monotonic()

    @staticmethod
    def fits(connection: Any) -> bool:
        """Whether the socket of *connection* is one that can be used as described above."""
        # Not TLS within TLS, for example, which urllib3 does with an object of its own.
        return isinstance(getattr(connection, "sock", None), socket.socket)

    @property
    def is_open(self) -> bool:
        """Whether it is worth trying: the server has not closed it, as far as is known."""
        if SystemRuntime.monotonic() - self._used_at < _LOOK_AFTER_SECONDS:
            return True  # not worth a system call; if it is closed, the request will tell
        # Readable before anything was asked: closed, or not HTTP.
        return not wait_for_read(self._socket, timeout=0.0)

    def close(self) -> None:
        """Close the socket; urllib3 opens the next one."""
        self._socket.close()

    def post(
        self, target: str, headers: Mapping[str, str], body: bytes, *, timeout: float
    ) -> tuple[Reply, bool]:
        """Post *body* and return the whole answer, and whether the connection can be used again.

        Args:
            target: The path.
            headers: Sent as they are, beside host and content length.
            body: What is sent.
            timeout: Seconds of silence after which to give up.

        Raises:
            TransportError: No complete answer came. The connection is of no use any more.
        """
        # A memoryview, because its repr shows nothing: a crash page would print the credentials.
        request = memoryview(_head_of_request(target, self._host, headers, len(body)) + body)
        try:
            self._write(request, timeout)
            received = self._read(timeout)
        except OSError as error:
            raise _stale(error) from None
        if not received:
            raise _stale(ConnectionAbortedError("closed without an answer"))
        try:
            reply, again = self._read_reply(received, timeout)
        except _BROKEN_OFF as error:
            raise TransportError(f"the answer broke off: {error}", maybe_accepted=True) from None
        self._used_at = SystemRuntime.monotonic()
        return reply, again

    # -- the socket ----------------------------------------------------------------------------

    def _write(self, data: memoryview, timeout: float) -> None:
        while data:
            try:
                data = data[self._socket.send(data) :]
            except _BEFORE_THE_WRITE:
                self._wait_to_write(timeout)
            except ssl.SSLWantReadError:
                self._wait_to_read(timeout)

    def _read(self, timeout: float, *, at_once: bool = False) -> bytes:
        # *at_once*: something may be there already, perhaps in the buffers of TLS.
        if not at_once:
            self._wait_to_read(timeout)
        while True:
            try:
                data: bytes = self._socket.recv(_READ_BYTES)
            except _BEFORE_THE_READ:
                self._wait_to_read(timeout)
            except ssl.SSLWantWriteError:
                self._wait_to_write(timeout)
            else:
                return data

    def _wait_to_read(self, timeout: float) -> None:
        if not wait_for_read(self._socket, timeout=timeout):
            raise TransportError(f"Read timed out. (read timeout={timeout:g})", maybe_accepted=True)

    def _wait_to_write(self, timeout: float) -> None:
        if not wait_for_write(self._socket, timeout=timeout):
            raise TransportError(
                f"Write timed out. (read timeout={timeout:g})", maybe_accepted=True
            )

    # -- the answer ----------------------------------------------------------------------------

    def _read_reply(self, received: bytes, timeout: float) -> tuple[Reply, bool]:
        while b"\r\n\r\n" not in received and len(received) <= _HEAD_BYTES_MAX:
            more = self._read(timeout, at_once=True)
            if not more:
                break
            received += more
        head = _plain_head(received)
        if head is None:
            return self._read_by_the_book(received, timeout), False
        if head.length > BODY_BYTES_MAX:
            raise too_long(head.status)
        ends_at = head.ends_at + head.length
        while len(received) < ends_at:
            more = self._read(timeout, at_once=True)
            if not more:
                raise http.client.IncompleteRead(b"", ends_at - len(received))
            received += more
        reply = Reply(head.status, head.headers, received[head.ends_at : ends_at])
        # What nobody asked for would be taken for the answer to the next request.
        return reply, len(received) == ends_at and not head.headers.closes

    def _read_by_the_book(self, received: bytes, timeout: float) -> Reply:
        self._socket.settimeout(timeout)
        source: Any = _Replayed(received, self._socket)
        original = http.client.HTTPResponse(source, method="POST")
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
        try:
            body = response.read(BODY_BYTES_MAX + 1, decode_content=True) or b""
        finally:
            response.close()
        if len(body) > BODY_BYTES_MAX:
            raise too_long(original.status)
        headers = {name.lower(): _FOLD.sub(" ", value) for name, value in response.headers.items()}
        return Reply(original.status, Headers(headers), body)


class _Replayed(io.RawIOBase):
    """A socket for http.client: first what was read already, then the rest."""

    def __init__(self, received: bytes, source: socket.socket) -> None:
        self._received = received
        self._source = source

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._received:
            return self._source.recv_into(buffer)
        count = min(len(buffer), len(self._received))
        buffer[:count], self._received = self._received[:count], self._received[count:]
        return count


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
