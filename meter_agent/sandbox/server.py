"""The third door: the sandbox on a real socket.

Faults are real here: a reset is a TCP reset, a truncated answer promises more bytes than follow,
and a hanging request holds its connection until the client or the server gives up.
"""

import asyncio
import contextlib
import functools
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from meter_agent.sandbox._sandbox import Sandbox
from meter_agent.sandbox.app import EXTENSION, create_app

__all__ = ["SandboxServer", "serve"]

_STOP_SECONDS = 10.0
_GRACE_SECONDS = 1
_KEEP_ALIVE_SECONDS = 75


def serve(
    host: str = "127.0.0.1",
    port: int = 12111,
    sandbox: Sandbox | None = None,
    allow_remote: bool = False,
    *,
    ready: Callable[[str], object] | None = None,
) -> None:
    """Serve *sandbox*, or a new one, until interrupted.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        sandbox: Who answers.
        allow_remote: Whether *host* may be other than loopback. The controls ask for no password.
        ready: Called with the URL as soon as connections are accepted.

    Raises:
        ValueError: *host* is not loopback, and *allow_remote* is False; or *port* is no port.
        OSError: The address cannot be listened on, for instance because it is in use.
    """
    with _listen(host, port, allow_remote) as listener, contextlib.suppress(KeyboardInterrupt):
        if ready is not None:
            ready(_url(listener))
        _Server(sandbox or Sandbox(), host).run([listener])


class SandboxServer:
    """The sandbox served by a thread of this process.

    Args:
        sandbox: Who answers; None: a new one.
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        allow_remote: Whether *host* may be other than loopback.

    Example:
        ```python
        with SandboxServer(sandbox) as server:
            client = stripe.StripeClient(
                "sk_test_1", base_addresses={"api": server.url, "meter_events": server.url}
            )
        ```

    Raises:
        ValueError: *host* is not loopback, and *allow_remote* is False; or *port* is no port.
        OSError: The address cannot be listened on.
    """

    def __init__(
        self,
        sandbox: Sandbox | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        allow_remote: bool = False,
    ) -> None:
        self.sandbox = sandbox or Sandbox()
        self._listener = _listen(host, port, allow_remote)
        self.url = _url(self._listener)
        """Where it listens, without a slash at the end."""
        self._server = _Server(self.sandbox, host)
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Start to answer."""
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), name="meter-sandbox", daemon=True
        )
        self._thread.start()
        return self

    def disconnect(self) -> None:
        """Cut every connection, requests that hang or wait included; new ones are taken."""
        self._server.disconnect()

    def stop(self) -> None:
        """Stop at once; requests that hang or wait are cut off. Idempotent."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
        self._listener.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Server(uvicorn.Server):
    """A uvicorn that shuts down at once."""

    def __init__(self, sandbox: Sandbox, host: str) -> None:
        config = uvicorn.Config(
            create_app(sandbox, hosts=[host]),
            http=_Protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            # The sandbox has a clock of its own, and tells it in `Date`.
            date_header=False,
            # Logging is the application's to configure.
            log_config=None,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def disconnect(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._cut()
        # Each request that waits hears of the disconnect before uvicorn starts to wait for it.
        await asyncio.sleep(0)
        await super().shutdown(sockets)


class _Protocol(H11Protocol):
    """An HTTP connection that hands itself to the application."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does this for sockets that it has made itself. Without it an answer, which is
        # written in two pieces, takes 40 ms.
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app = functools.partial(_with_connection, self.app, _Connection(transport))


async def _with_connection(
    app: Any, connection: "_Connection", scope: Any, receive: Any, send: Any
) -> None:
    extensions = {**scope.get("extensions", {}), EXTENSION: connection}
    await app({**scope, "extensions": extensions}, receive, send)


class _Connection:
    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def reset(self) -> None:
        # Lingering for zero seconds makes the close a reset.
        linger = struct.pack("ii", 1, 0)
        sock: socket.socket = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()

    def close(self) -> None:
        self._transport.close()


def _listen(host: str, port: int, allow_remote: bool) -> socket.socket:
    if not allow_remote and not _is_loopback(host):
        raise ValueError(
            f"{host} is not a loopback address, and the sandbox asks for no password; "
            "allow remote access explicitly, by allow_remote=True or --allow-remote"
        )
    if not 0 <= port <= 65535:
        raise ValueError(f"port must lie between 0 and 65535, not {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise OSError(f"cannot listen on {host}:{port}: {reason}") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
