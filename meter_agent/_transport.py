"""One kept-alive HTTP connection to each host; the only user of requests.

What users expect of requests works: proxies and `no_proxy`, `REQUESTS_CA_BUNDLE` and
`CURL_CA_BUNDLE`, TLS verification. What would hurt here does not: redirects are never followed (an
API key would travel with them), `.netrc` never replaces the credentials, cookies are not kept, and
urllib3 retries nothing behind our back.

Each sender thread has a transport of its own. So no lock is shared, and it is known whether a
connection had been kept alive when it broke.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from requests import PreparedRequest, Response
    from requests.adapters import BaseAdapter

__all__ = ["Reply", "Route", "Transport", "TransportError", "Trouble", "preload"]

BODY_BYTES_MAX = 64 * 1024

Trouble = Literal["tls", "proxy", "name", "connect", "timeout", "answer", "local"]
"""What went wrong: the certificate, the way through a proxy, looking the name up, connecting,
waiting, the answer itself, or something on this host, such as a CA bundle that is not there."""


_USER_IN_URL = re.compile(r"(?<=//)[^/]*@|^[^/]*@")


class TransportError(Exception):
    """No complete answer came.

    Attributes:
        maybe_accepted: Whether the request may have reached the server.
        stale: Whether a kept-alive connection turned out to be closed.
        trouble: What went wrong, for advice.
    """

    def __init__(
        self,
        message: str,
        *,
        maybe_accepted: bool,
        stale: bool = False,
        trouble: Trouble = "answer",
    ) -> None:
        self.maybe_accepted = maybe_accepted
        self.stale = stale
        self.trouble: Trouble = trouble
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer; *body* holds at most 64 KiB of it."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)  # a session's holds its token


@dataclass(frozen=True, slots=True)
class Route:
    """The way to a host, as the environment has it."""

    proxy: str | None
    """The proxy, with its user and password masked; None: there is none."""

    ca_bundle: str | None
    """File or directory of the certificates to trust; None: those that come with requests."""


class Transport:
    """Posts JSON bodies.

    Args:
        connect_timeout_seconds: For each address tried, TLS included.
        read_timeout_seconds: For each silence of the server.
        open_adapter: Makes the requests adapter that sends; None for the real network.
    """

    def __init__(
        self,
        *,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        open_adapter: Callable[[], BaseAdapter] | None = None,
    ) -> None:
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._open_adapter = open_adapter or _network_adapter
        self._adapter: BaseAdapter | None = None
        self._templates: dict[tuple[str, str], tuple[PreparedRequest, dict[str, Any]]] = {}
        self._kept_alive: set[str] = set()

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, at_most_seconds: float | None
    ) -> Reply:
        """Post *body* and return the whole answer.

        Args:
            url: Where to.
            headers: Sent as they are, beside the content type and length.
            body: JSON bytes.
            at_most_seconds: Cuts both timeouts further, for the last moments of a process.

        Raises:
            TransportError: No complete answer came.
        """
        return self._exchange(url, headers, body, at_most_seconds, BODY_BYTES_MAX)

    def get(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        at_most_seconds: float | None,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> Reply:
        """Return the whole answer to a GET; for commands, for no event is ever sent with one.

        Raises:
            TransportError: No complete answer of at most *body_bytes_max* came.
        """
        return self._exchange(url, headers, None, at_most_seconds, body_bytes_max)

    def route(self, url: str) -> Route:
        """Return which way requests to *url* take; asks nobody."""
        from requests.utils import select_proxy  # noqa: PLC0415

        _, settings = self._prepared("GET", url)
        proxy, verify = select_proxy(url, settings["proxies"]), settings["verify"]
        return Route(
            proxy=None if proxy is None else _USER_IN_URL.sub("***@", proxy),
            ca_bundle=verify if isinstance(verify, str) else None,
        )

    def _exchange(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        at_most_seconds: float | None,
        body_bytes_max: int,
    ) -> Reply:
        # Imported here, by the sender thread: `import requests` costs the application 130 ms.
        import requests.exceptions as failures  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        request, settings = self._prepared("GET" if body is None else "POST", url)
        request.headers.update(headers)
        if body is not None:
            request.body = body
            request.headers["Content-Length"] = str(len(body))
        # By host, as urllib3 keeps them: a sandbox has both endpoints on one connection.
        host = urlsplit(url).netloc
        kept_alive = host in self._kept_alive
        self._kept_alive.discard(host)
        try:
            response = self._connected().send(
                request, stream=True, timeout=self._timeouts(at_most_seconds), **settings
            )
        except failures.RequestException as error:
            raise _explained(error, kept_alive=kept_alive) from None
        except (OSError, ValueError) as error:
            # Not a failure of the network, which requests would have wrapped: a CA bundle that is
            # not there, for example.
            raise TransportError(str(error), maybe_accepted=False, trouble="local") from None
        try:
            reply = self._read(response, body_bytes_max)
        except (HTTPError, OSError, ValueError) as error:
            # Reading from urllib3's response raises urllib3's errors, not requests'.
            raise TransportError(f"the answer broke off: {error}", maybe_accepted=True) from None
        if "close" not in reply.headers.get("Connection", "").lower():
            self._kept_alive.add(host)
        return reply

    def close(self) -> None:
        """Close the connections."""
        if self._adapter is None:
            return
        # Each by hand: urllib3 leaves it to a finalizer, which no longer runs at the exit of the
        # interpreter, and the application would hear of an unclosed socket there.
        for manager in _pool_managers(self._adapter):
            for key in manager.pools.keys():  # noqa: SIM118 - urllib3's container refuses iteration
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()
        self._adapter.close()

    def _connected(self) -> BaseAdapter:
        if self._adapter is None:
            self._adapter = self._open_adapter()
        return self._adapter

    def _prepared(self, method: str, url: str) -> tuple[PreparedRequest, dict[str, Any]]:
        # Environment, proxies and CA bundle are worked out once per host: requests would do it
        # again for every batch, at half of its whole cost.
        if (method, url) not in self._templates:
            import requests  # noqa: PLC0415

            content = {"Content-Type": "application/json"} if method == "POST" else {}
            request = requests.Request(method, url, headers={**content, "Accept": "*/*"}).prepare()
            merged = requests.Session().merge_environment_settings(url, {}, False, True, None)
            settings = {name: merged.get(name) for name in ("verify", "cert", "proxies")}
            self._templates[method, url] = request, settings
        template, settings = self._templates[method, url]
        return template.copy(), settings

    def _timeouts(self, at_most_seconds: float | None) -> tuple[float, float]:
        connect, read = self._connect_timeout_seconds, self._read_timeout_seconds
        if at_most_seconds is None:
            return connect, read
        # Zero would mean "do not block" to a socket, and fail before anything was tried.
        return max(0.05, min(connect, at_most_seconds)), max(0.05, min(read, at_most_seconds))

    def _read(self, response: Response, body_bytes_max: int) -> Reply:
        # A server's answer is bounded here, not by the server: what is longer is not Stripe's.
        try:
            body = response.raw.read(body_bytes_max + 1, decode_content=True) or b""
            if len(body) > body_bytes_max:
                response.raw.close()
                raise TransportError(
                    f"HTTP {response.status_code} with a body over {body_bytes_max} bytes",
                    maybe_accepted=True,
                )
        finally:
            response.close()
        return Reply(response.status_code, response.headers, body)


def preload() -> None:
    """Import requests now, while the first batch still fills, and not between it and the wire."""
    import requests  # noqa: F401, PLC0415


def _network_adapter() -> BaseAdapter:
    from requests.adapters import HTTPAdapter  # noqa: PLC0415

    return HTTPAdapter(pool_connections=2, pool_maxsize=1, max_retries=0)


def _pool_managers(adapter: BaseAdapter) -> list[Any]:
    direct = getattr(adapter, "poolmanager", None)
    proxied = getattr(adapter, "proxy_manager", {})
    return [manager for manager in (direct, *proxied.values()) if manager is not None]


def _explained(error: Exception, *, kept_alive: bool) -> TransportError:
    import requests.exceptions as failures  # noqa: PLC0415
    from urllib3 import exceptions as causes  # noqa: PLC0415

    cause = error.args[0] if error.args else None
    cause = getattr(cause, "reason", None) or cause
    # urllib3 also calls it an error of the proxy when the connection through it breaks after the
    # request was sent; only what lies underneath tells.
    cause = getattr(cause, "original_error", None) or cause
    never_left = (
        isinstance(error, failures.ConnectTimeout | failures.InvalidURL)
        or isinstance(cause, causes.NewConnectionError | causes.ConnectTimeoutError)
        or "Tunnel connection failed" in str(cause)
    )
    stale = kept_alive and isinstance(cause, causes.ProtocolError)
    return TransportError(
        f"{type(error).__name__}: {cause or error}",
        maybe_accepted=not never_left,
        stale=stale,
        trouble=_trouble(error, cause),
    )


def _trouble(error: Exception, cause: object) -> Trouble:
    import requests.exceptions as failures  # noqa: PLC0415
    from urllib3 import exceptions as causes  # noqa: PLC0415

    if isinstance(error, failures.SSLError):
        return "tls"
    if isinstance(error, failures.ProxyError | failures.InvalidProxyURL):
        return "proxy"
    if isinstance(cause, causes.NameResolutionError):
        return "name"
    if isinstance(error, failures.ReadTimeout):
        return "timeout"
    unconnected = isinstance(error, failures.ConnectTimeout) or isinstance(
        cause, causes.NewConnectionError | causes.ConnectTimeoutError
    )
    return "connect" if unconnected else "answer"
