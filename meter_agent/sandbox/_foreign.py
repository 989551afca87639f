"""Requests that a web page makes through the browser of a user: refused.

A browser lets any page send a POST in text/plain to any address, that of this host included, and it
names the page in `Origin` (Fetch standard, "Origin header"). A page that binds its own domain name
to 127.0.0.1 (DNS rebinding) becomes same-origin with the sandbox, and its domain is then in `Host`.
An image or a script of a page is asked for without `Origin`; browsers then say in `Sec-Fetch-Site`
whose it is (W3C, Fetch Metadata). A link that a user follows is not refused.
Agents, curl and Stripe's libraries send no `Origin`, and as `Host` what they were configured with.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from meter_agent.sandbox._errors import StripeError

__all__ = ["OwnNames", "refuse_foreign"]

_PORTS = {"http": 80, "https": 443}
_SHOWN = 100
_NO_PAGES = (
    "{}: a web page may not use this sandbox. Send the request from a program, without this header"
)


class OwnNames(NamedTuple):
    """The names and addresses under which a sandbox is reached.

    Names of loopback always are its own. On a connection to an address beyond loopback, every
    address is: a container does not know that of the machine in front of it, and an address, which
    is not looked up, cannot be rebound. A name is its own only where it was given.
    """

    given: Collection[str]
    """Lower-case names that the user gave."""
    listening: str | None
    """The address that the connection came to; None: not known."""

    def have(self, host: str) -> bool:
        """Whether *host*, a name or an address, is one of them."""
        name = host.lower().removesuffix(".")
        if name in self.given or name == "localhost" or name.endswith(".localhost"):
            return True
        if self.listening is not None and name == self.listening.lower():
            return True
        address = _address(name)
        if address is None:
            return False
        listening = _address(self.listening or "")
        return address.is_loopback or (listening is not None and not listening.is_loopback)


def refuse_foreign(headers: Iterable[tuple[str, str]], own: OwnNames) -> None:
    """Look at who sent a request and whom it means; *headers* have lower-case names.

    Raises:
        StripeError: 403, one of them is foreign.
    """
    given = list(headers)
    ports: set[int | None] = set()
    for host in (value for name, value in given if name == "host"):
        name, port = _split(f"http://{host}")
        if not own.have(name):
            raise _refusal(
                f"Host {host[:_SHOWN]!r} is no name of this sandbox. Ask it as localhost or by its "
                "address, or start it with --host and that name"
            )
        ports.add(port)
    fetch = {name: value for name, value in given if name.startswith("sec-fetch-")}
    site, mode = fetch.get("sec-fetch-site", "none"), fetch.get("sec-fetch-mode")
    if site not in {"none", "same-origin"} and mode != "navigate":
        raise _refusal(_NO_PAGES.format(f"Sec-Fetch-Site {site[:_SHOWN]!r}"))
    for origin in (value for name, value in given if name == "origin"):
        name, port = _split(origin)
        if not own.have(name) or (ports and port not in ports):
            raise _refusal(_NO_PAGES.format(f"Origin {origin[:_SHOWN]!r}"))


def _refusal(message: str) -> StripeError:
    return StripeError(403, "foreign_request", message)


def _split(url: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(url)
        # Neither header has a user or a path.
        if parts.scheme not in _PORTS or parts.netloc != url.partition("://")[2]:
            return "", None
        if "@" in parts.netloc:
            return "", None
        return parts.hostname or "", parts.port or _PORTS[parts.scheme]
    except ValueError:
        return "", None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
