"""The second door: the sandbox as an ASGI application.

It runs under any ASGI server. Tearing a connection apart is not something that ASGI can say, so
resets and truncated answers need the server of `meter_agent.sandbox.server`, which offers its
connection under the scope's extension `meter_agent.connection`. Elsewhere such a fault raises
`ConnectionResetError` into the server.
"""

import asyncio
import contextlib
from collections.abc import Collection, Iterable
from typing import Protocol

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from meter_agent.sandbox._errors import StripeError
from meter_agent.sandbox._foreign import OwnNames, refuse_foreign
from meter_agent.sandbox._reply import Reply
from meter_agent.sandbox._sandbox import Sandbox

__all__ = ["EXTENSION", "Connection", "create_app"]

EXTENSION = "meter_agent.connection"


class Connection(Protocol):
    """What a server must offer under `EXTENSION` for faults to be real."""

    def reset(self) -> None:
        """Send a TCP reset; nothing that was not sent yet leaves."""

    def close(self) -> None:
        """Send what was written, then close."""


def create_app(sandbox: Sandbox | None = None, *, hosts: Iterable[str] = ()) -> Starlette:
    """An ASGI application in front of *sandbox*, or of a new one.

    The sandbox is at `app.state.sandbox`. Requests of web pages, and those with a `Host` that is
    not its own, are refused with 403.

    Args:
        sandbox: Who answers; None: a new one.
        hosts: Names of this host, besides those of loopback and the address it listens on.
    """
    sandbox = sandbox or Sandbox()
    names = frozenset(host.lower().removesuffix(".") for host in hosts)
    app = Starlette(routes=[Mount("/", app=_Door(sandbox, names))])
    app.state.sandbox = sandbox
    return app


class _Door:
    def __init__(self, sandbox: Sandbox, names: Collection[str]) -> None:
        self._sandbox = sandbox
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read_body(receive, self._sandbox.max_body_bytes)
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        try:
            refuse_foreign(headers, OwnNames(self._names, (scope.get("server") or (None,))[0]))
        except StripeError as error:
            # Before the sandbox: such a request uses up no fault and is not among its requests.
            reply = error.reply()
        else:
            reply = self._sandbox.handle(scope["method"], _path(scope), dict(headers), body)
        if reply.delay_seconds and await _gone(receive, reply.delay_seconds):
            return
        if reply.cut == "hang":
            await _gone(receive, None)
        elif reply.cut is None:
            await Response(reply.body, reply.status, reply.headers)(scope, receive, send)
        else:
            await _tear(reply, scope, receive, send)


async def _tear(reply: Reply, scope: Scope, receive: Receive, send: Send) -> None:
    connection: Connection | None = scope.get("extensions", {}).get(EXTENSION)
    if connection is None:
        raise ConnectionResetError("a fault of the sandbox cut the connection")
    if reply.cut == "truncate":
        await _send_half(reply, send)
        connection.close()
    else:
        connection.reset()
    # Once the server has noticed, returning without an answer is no error to it.
    await _gone(receive, None)


async def _send_half(reply: Reply, send: Send) -> None:
    headers = [
        *reply.headers.items(),
        ("content-length", str(len(reply.body))),
    ]
    raw_headers = [(name.lower().encode(), value.encode()) for name, value in headers]
    await send(
        {"type": "http.response.start", "status": reply.status, "headers": raw_headers},
    )
    half = reply.body[: len(reply.body) // 2]
    await send({"type": "http.response.body", "body": half, "more_body": True})


async def _read_body(receive: Receive, max_bytes: int) -> bytes:
    """The body, or its first *max_bytes* + 1 bytes: the rest is read and thrown away."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        if len(body) <= max_bytes:
            body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body[: max_bytes + 1])


async def _gone(receive: Receive, seconds: float | None) -> bool:
    """Wait until the client is gone, at most for *seconds*; say whether it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
            return True
    return False


def _path(scope: Scope) -> str:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    query: bytes = scope["query_string"]
    return f"{path}?{query.decode('latin-1')}" if query else path
