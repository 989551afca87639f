"""The first door: a `requests` adapter that answers inside the process.

It fails the way the real adapter fails, with the same exceptions around the same causes, so that
code under test cannot tell a sandbox fault from a broken network.
"""

import io
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import IncompleteRead
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import BaseAdapter
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import ReadTimeout
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from meter_agent.sandbox._reply import Reply
from meter_agent.sandbox._sandbox import Sandbox

__all__ = ["SandboxAdapter"]

_ECONNRESET = 104


class SandboxAdapter(BaseAdapter):
    """Mount this on a `requests.Session`, and its requests go to *sandbox*.

    Args:
        sandbox: Who answers.
        sleep: How to wait; a simulator passes its own.

    Example:
        ```python
        session = requests.Session()
        session.mount("https://", SandboxAdapter(Sandbox()))
        ```
    """

    def __init__(self, sandbox: Sandbox, *, sleep: Callable[[float], object] = time.sleep) -> None:
        super().__init__()
        self.sandbox = sandbox
        self._sleep = sleep

    def send(  # noqa: PLR0917  # the signature is requests'
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002  # the session reads the body unless streaming
        timeout: Any = None,
        verify: bool | str = True,  # noqa: ARG002
        cert: Any = None,  # noqa: ARG002
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> requests.Response:
        """Answer *request*, after its delay and with its fault.

        Raises:
            requests.exceptions.ConnectionError: A fault reset the connection.
            requests.exceptions.ReadTimeout: The answer takes longer than the read timeout.
        """
        reply = self.sandbox.handle(
            request.method or "GET", request.path_url, _headers(request), _body(request)
        )
        self._wait(request, reply, _read_timeout(timeout))
        if reply.cut in ("before", "after"):
            reset = ConnectionResetError(_ECONNRESET, "Connection reset by peer")
            raise RequestsConnectionError(
                ProtocolError("Connection aborted.", reset), request=request
            )
        return _response(request, reply)

    def close(self) -> None:
        """Nothing to close."""

    def _wait(
        self, request: requests.PreparedRequest, reply: Reply, read_timeout: float | None
    ) -> None:
        patience = threading.TIMEOUT_MAX if read_timeout is None else read_timeout
        if reply.cut == "hang" or reply.delay_seconds > patience:
            # Without a read timeout this waits for ever, as the real thing does.
            self._sleep(patience)
            raise _read_timed_out(request, patience)
        if reply.delay_seconds > 0:
            self._sleep(reply.delay_seconds)


def _headers(request: requests.PreparedRequest) -> dict[str, str]:
    # requests lets both texts and bytes through as header values.
    return {_text(name): _text(value) for name, value in request.headers.items()}


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _body(request: requests.PreparedRequest) -> bytes:
    body: Any = request.body
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    if hasattr(body, "read"):
        return _bytes(body.read())
    return b"".join(_bytes(chunk) for chunk in body)


def _bytes(chunk: str | bytes) -> bytes:
    return chunk.encode() if isinstance(chunk, str) else chunk


def _read_timeout(timeout: Any) -> float | None:
    if isinstance(timeout, tuple):
        timeout = timeout[1]
    if isinstance(timeout, urllib3.Timeout):
        timeout = timeout.read_timeout
    return float(timeout) if isinstance(timeout, int | float) else None


def _read_timed_out(request: requests.PreparedRequest, seconds: float) -> ReadTimeout:
    url = urlsplit(request.url or "")
    pool = urllib3.HTTPConnectionPool(url.hostname or "localhost", url.port)
    text = f"Read timed out. (read timeout={seconds:g})"
    return ReadTimeout(ReadTimeoutError(pool, request.path_url, text), request=request)


def _response(request: requests.PreparedRequest, reply: Reply) -> requests.Response:
    length = {"Content-Length": str(len(reply.body))}
    raw = urllib3.HTTPResponse(
        body=_CutBody(reply.body) if reply.cut == "truncate" else io.BytesIO(reply.body),
        headers={**reply.headers, **length},
        status=reply.status,
        reason=_reason(reply.status),
        preload_content=False,
        request_method=request.method,
    )
    response = requests.Response()
    response.status_code = reply.status
    response.reason = raw.reason or ""
    response.headers = CaseInsensitiveDict(raw.headers)
    response.encoding = get_encoding_from_headers(response.headers)
    response.raw = raw
    response.url = request.url or ""
    response.request = request
    return response


class _CutBody(io.BytesIO):
    """The first half of a body on a connection that then ends.

    Read piece by piece, urllib3 2 notices the missing half by itself, and urllib3 1.26 does not: it
    is left to do here what it does on a socket. A read of everything is for `http.client` to
    complain about, so this complains in its place.
    """

    def __init__(self, body: bytes) -> None:
        half = len(body) // 2
        super().__init__(body[:half])
        self._missing = len(body) - half

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size is None or size < 0:
            raise IncompleteRead(data, self._missing)
        return data


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
