"""One kept-alive HTTP connection to each host; with `_open_connection`, the only user of requests.

What users expect of requests works: proxies and `no_proxy`, `REQUESTS_CA_BUNDLE` and
`CURL_CA_BUNDLE`, TLS verification. What would hurt here does not: redirects are never followed (an
API key would travel with them), `.netrc` never replaces the credentials, cookies are not kept, and
urllib3 retries nothing behind our back.

Each sender thread has a transport of its own. So no lock is shared, and it is known whether a
connection had been kept alive when it broke.
"""

from __future__ import annotations

import re
import socket
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from meter_agent._imports import forget
from meter_agent._reply import BODY_BYTES_MAX, Reply, TransportError, Trouble, too_long
from meter_agent._setting_kinds import is_loopback

if TYPE_CHECKING:
    from requests import PreparedRequest, Response
    from requests.adapters import BaseAdapter

    from meter_agent._bounded_response import Bounds
    from meter_agent._open_connection import OpenConnection

__all__ = ["BODY_BYTES_MAX", "Reply", "Transport", "TransportError", "Way", "preload"]

_HEADERS = {"Content-Type": "application/json", "Accept": "*/*"}
_HEADERS_WITHOUT_BODY = {"Accept": "*/*"}


class _Route(NamedTuple):
    # How to get to one URL.
    host: str
    target: str
    template: PreparedRequest
    settings: dict[str, Any]
    """TLS and proxies, for requests."""
    is_forwarded: bool
    """Whether a proxy is asked for the whole URL, as is done without TLS."""


_USER_IN_URL = re.compile(r"(?<=//)[^/]*@|^[^/]*@")


class Way(NamedTuple):
    """The way to a URL, as the environment has it, to be shown."""

    proxy: str | None
    """The proxy, with its user and password masked; None: there is none."""
    ca_bundle: str | None
    """File or directory of the certificates to trust; None: those that come with requests."""


class Transport:
    """Posts JSON bodies.

    Args:
        connect_timeout_seconds: For each address tried, TLS included.
        read_timeout_seconds: For each silence of the server. The whole exchange, from the first
            byte written to the last one read, takes at most four times as long.
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
        self._routes: dict[str, _Route] = {}
        # By host, as urllib3 keeps connections: a sandbox has both endpoints on one.
        self._kept_alive: set[str] = set()
        self._open: dict[str, OpenConnection] = {}

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, at_most_seconds: float | None
    ) -> Reply:
        """Post *body* and return the whole answer.

        Args:
            url: Where to.
            headers: Sent as they are, beside the content type and length.
            body: JSON bytes. Where there are none, no content type is sent, and a length of 0.
            at_most_seconds: What is left before the process ends; the whole exchange ends by then.

        Raises:
            TransportError: No complete answer came.
        """
        route = self._route(url)
        connection = self._take_open(route.host)
        if connection is None:
            return self._post_by_requests(route, headers, body, at_most_seconds)
        from meter_agent._bounded_response import Bounds  # noqa: PLC0415

        _, silence, exchange = self._timeouts(at_most_seconds)
        bounds = Bounds(silence, exchange, BODY_BYTES_MAX)
        again = False
        try:
            headers = {**(_HEADERS if body else _HEADERS_WITHOUT_BODY), **headers}
            reply, again = connection.post(route.target, headers, body, bounds)
        except ValueError as error:
            raise TransportError(str(error), maybe_accepted=False) from None
        finally:
            if again:
                self._open[route.host] = connection
            else:
                connection.close()
        return reply

    def get(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        at_most_seconds: float | None,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> Reply:
        """Return the whole answer to a GET. For commands: no event is ever sent with one.

        Raises:
            TransportError: No complete answer with a body of at most *body_bytes_max* came.
        """
        route = self._route(url)
        connection = self._open.pop(route.host, None)
        if connection is not None:
            connection.close()
        request = route.template.copy()
        request.method = "GET"
        for name in ("Content-Type", "Content-Length"):
            request.headers.pop(name, None)
        request.headers.update(headers)
        return self._send_by_requests(route, request, at_most_seconds, body_bytes_max)

    def way(self, url: str) -> Way:
        """Return which way requests to *url* take; asks nobody."""
        from requests.utils import select_proxy  # noqa: PLC0415

        settings = self._route(url).settings
        proxy, verify = select_proxy(url, settings["proxies"]), settings["verify"]
        return Way(
            proxy=None if proxy is None else _USER_IN_URL.sub("***@", proxy),
            ca_bundle=verify if isinstance(verify, str) else None,
        )

    def _take_open(self, host: str) -> OpenConnection | None:
        connection = self._open.pop(host, None)
        if connection is None or connection.is_open:
            return connection
        connection.close()
        return None

    def _post_by_requests(
        self, route: _Route, headers: Mapping[str, str], body: bytes, at_most_seconds: float | None
    ) -> Reply:
        request = route.template.copy()
        request.body = body
        if not body:
            del request.headers["Content-Type"]
        request.headers.update(headers)
        request.headers["Content-Length"] = str(len(body))
        return self._send_by_requests(route, request, at_most_seconds, BODY_BYTES_MAX)

    def _send_by_requests(
        self,
        route: _Route,
        request: PreparedRequest,
        at_most_seconds: float | None,
        body_bytes_max: int,
    ) -> Reply:
        # Imported here, by the sender thread: `import requests` costs the application 130 ms.
        import requests.exceptions as failures  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        from meter_agent._bounded_response import Bounds  # noqa: PLC0415

        kept_alive = route.host in self._kept_alive
        self._kept_alive.discard(route.host)
        *timeouts, exchange = self._timeouts(at_most_seconds)
        adapter: Any = self._connected()
        # Other adapters than the network's have no use for them.
        adapter.bounds = bounds = Bounds(timeouts[1], exchange, body_bytes_max)
        try:
            response = adapter.send(request, stream=True, timeout=(*timeouts,), **route.settings)
        except failures.RequestException as error:
            raise _explained(error, kept_alive=kept_alive) from None
        except (OSError, ValueError) as error:
            # Not a failure of the network, which requests would have wrapped: a CA bundle that is
            # not there, for example.
            raise TransportError(str(error), maybe_accepted=False, trouble="local") from None
        # Looked up before the answer is read to its end, for then it goes back to the pool.
        connection = getattr(response.raw, "connection", None)
        try:
            reply = self._read(response, body_bytes_max)
        except (HTTPError, OSError, ValueError) as error:
            # Reading from urllib3's response raises urllib3's errors, not requests'.
            raise TransportError(f"the answer broke off: {error}", maybe_accepted=True) from None
        if "close" not in reply.headers.get("Connection", "").lower():
            self._keep(route, connection, response, bounds)
        return reply

    def _keep(self, route: _Route, connection: Any, response: Response, bounds: Bounds) -> None:
        from meter_agent._open_connection import OpenConnection, has_pending  # noqa: PLC0415

        # What came behind the answer is not the answer to the next request, and behind 101 there is
        # no HTTP any more. (What comes later, urllib3 sees before it uses the connection again.)
        ends = bounds.left_over or response.status_code < 200
        if ends or has_pending(getattr(connection, "sock", None)):
            if connection is not None:
                connection.close()
        elif (
            OpenConnection.fits(connection)
            and not route.is_forwarded
            and response.raw.version == 11
            and response.headers.get("Content-Length", "").isdigit()
        ):
            self._open[route.host] = OpenConnection(connection, route.host)
        else:
            self._kept_alive.add(route.host)

    def close(self) -> None:
        """Close the connections."""
        while self._open:
            self._open.popitem()[1].close()
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

    def _route(self, url: str) -> _Route:
        # Environment, proxies and CA bundle are worked out once per host: requests would do it
        # again for every batch, at half of its whole cost.
        if url not in self._routes:
            import requests  # noqa: PLC0415
            from requests.utils import select_proxy  # noqa: PLC0415

            template = requests.Request("POST", url, headers=_HEADERS).prepare()
            merged: dict[str, Any] = dict(
                requests.Session().merge_environment_settings(url, {}, False, True, None)
            )
            settings = {name: merged.get(name) for name in ("verify", "cert", "proxies")}
            if is_loopback(url):
                # A proxy would look for it on its own host: what is on this one is asked directly,
                # whatever the environment says.
                settings["proxies"] = {}
            is_tls = url.startswith("https:")
            self._routes[url] = _Route(
                host=urlsplit(url).netloc,
                target=template.path_url,
                template=template,
                settings=settings,
                is_forwarded=not is_tls and select_proxy(url, settings["proxies"]) is not None,
            )
        return self._routes[url]

    def _timeouts(self, at_most_seconds: float | None) -> tuple[float, float, float]:
        # To connect, of a silence, and of the whole exchange.
        from meter_agent._bounded_response import EXCHANGE_IN_TIMEOUTS  # noqa: PLC0415

        connect, read = self._connect_timeout_seconds, self._read_timeout_seconds
        exchange = EXCHANGE_IN_TIMEOUTS * read
        if at_most_seconds is None:
            return connect, read, exchange
        # Zero would mean "do not block" to a socket, and fail before anything was tried.
        most = max(0.05, at_most_seconds)
        return min(connect, most), min(read, most), min(exchange, most)

    def _read(self, response: Response, body_bytes_max: int) -> Reply:
        from meter_agent._bounded_response import read_body  # noqa: PLC0415

        try:
            body = read_body(response.raw, body_bytes_max)
            if len(body) > body_bytes_max:
                response.raw.close()
                raise too_long(response.status_code, body_bytes_max)
        finally:
            response.close()
        return Reply(response.status_code, response.headers, body)


def preload() -> None:
    """Import requests now, while the first batch still fills, and not between it and the wire."""
    try:
        import requests  # noqa: PLC0415
    except Warning:
        # It warns of packages beside it that it could do without, and here warnings are errors. A
        # fork in the middle of their import leaves a child where they cannot be imported at all.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            forget("requests")
            import requests  # noqa: F401, PLC0415

    import meter_agent._open_connection  # noqa: F401, PLC0415


def _network_adapter() -> BaseAdapter:
    from meter_agent._bounded_response import BoundedAdapter  # noqa: PLC0415

    return BoundedAdapter(pool_connections=2, pool_maxsize=1, max_retries=0)


def _pool_managers(adapter: BaseAdapter) -> list[Any]:
    direct = getattr(adapter, "poolmanager", None)
    proxied = getattr(adapter, "proxy_manager", {})
    return [manager for manager in (direct, *proxied.values()) if manager is not None]


def _explained(error: Exception, *, kept_alive: bool) -> TransportError:
    import requests.exceptions as failures  # noqa: PLC0415
    from urllib3 import exceptions as causes  # noqa: PLC0415

    from meter_agent._bounded_response import EndlessAnswerError  # noqa: PLC0415

    cause = error.args[0] if error.args else None
    cause = getattr(cause, "reason", None) or cause
    # urllib3 also calls it an error of the proxy when the connection through it breaks after the
    # request was sent; only what lies underneath tells.
    cause = getattr(cause, "original_error", None) or cause
    never_left = (
        isinstance(error, failures.ConnectTimeout | failures.InvalidURL)
        or isinstance(cause, causes.NewConnectionError | causes.ConnectTimeoutError)
        or "Tunnel connection failed" in str(cause)
        or _is_of_handshake(cause)
    )
    stale = (
        kept_alive
        and isinstance(cause, causes.ProtocolError)
        and not isinstance(cause.args[-1], EndlessAnswerError)
    )
    return TransportError(
        f"{type(error).__name__}: {cause or error}",
        maybe_accepted=not never_left,
        stale=stale,
        trouble=_trouble(error, cause),
    )


def _is_of_handshake(cause: object) -> bool:
    # Whether TLS failed before the request was sent. What else can go wrong in a handshake looks as
    # it does later.
    import ssl  # noqa: PLC0415

    reasons = {"WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "SSLV3_ALERT_HANDSHAKE_FAILURE"}
    while isinstance(cause, Exception) and not isinstance(cause, ssl.SSLError):
        cause = cause.args[0] if cause.args else None
    return isinstance(cause, ssl.SSLCertVerificationError) or (
        isinstance(cause, ssl.SSLError) and cause.reason in reasons
    )


def _trouble(error: Exception, cause: object) -> Trouble:
    import requests.exceptions as failures  # noqa: PLC0415
    from urllib3 import exceptions as causes  # noqa: PLC0415

    if isinstance(error, failures.SSLError):
        return "tls"
    if isinstance(error, failures.ProxyError | failures.InvalidProxyURL):
        return "proxy"
    # urllib3 has a class of its own for it since version 2.
    if isinstance(cause, getattr(causes, "NameResolutionError", ())) or isinstance(
        getattr(cause, "__context__", None), socket.gaierror
    ):
        return "name"
    if isinstance(error, failures.ReadTimeout):
        return "timeout"
    unconnected = isinstance(error, failures.ConnectTimeout) or isinstance(
        cause, causes.NewConnectionError | causes.ConnectTimeoutError
    )
    return "connect" if unconnected else "answer"
