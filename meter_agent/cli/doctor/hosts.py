"""The way to Stripe: proxy, certificates, hosts, clock."""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from meter_agent import Config
from meter_agent._event import TIMESTAMP_FUTURE_SECONDS_MAX
from meter_agent._reply import TransportError, Trouble
from meter_agent._setting_kinds import is_loopback
from meter_agent._transport import Transport, Way
from meter_agent.cli.doctor.finding import Finding, failed, not_checked, ok, warning
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.sandbox_control import is_sandbox

__all__ = ["Hosts", "Skew", "other_side_fails"]

_SECONDS = 10.0
"""For one answer. Whoever calls a doctor waits for it."""

_SKEW_SECONDS_MAX = 5.0


@dataclass(frozen=True)
class Skew:
    """How far this clock is ahead of another, as far as one answer tells: in [low, high]."""

    low: float
    high: float

    @classmethod
    def of(cls, date: str, before: float, after: float) -> Skew:
        """Return it from a `Date` header, and the moments around the request.

        The header tells whole seconds, and the answer may have been made at any moment of the
        request. What lies within that is no skew.

        Raises:
            ValueError: It is no date.
        """
        told = parsedate_to_datetime(date).timestamp()
        return cls(before - (told + 1), after - told)

    @property
    def certain(self) -> float:
        """Seconds that it is ahead for certain; negative: behind."""
        return max(self.low, 0.0) + min(self.high, 0.0)


class Hosts:
    """Looks at the hosts of *config*, without a key and without an event."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._transport = Transport(
            connect_timeout_seconds=config.connect_timeout_seconds,
            read_timeout_seconds=config.read_timeout_seconds,
        )
        self._skews: list[Skew] = []
        self.unreachable: set[str] = set()
        """URLs that did not answer."""

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def urls(self) -> dict[str, str]:
        """Return the endpoints by the name of their check; a sandbox is both hosts."""
        if self._config.sandbox_url is not None:
            return {"sandbox": self._config.session_url}
        return {"api host": self._config.session_url, "stream host": self._config.stream_url}

    # -- what needs no network -----------------------------------------------------------------

    def check_ways(self) -> Iterator[Finding]:
        """Yield which proxy and which certificates are used."""
        ways = {url: self._transport.way(url) for url in self.urls().values()}
        told = sorted({_proxy_told(url, way) for url, way in ways.items()})
        yield ok("proxy", ", ".join(told))
        if any(url.startswith("https:") for url in ways):
            yield _check_certificates(next(iter(ways.values())).ca_bundle)

    # -- what needs it -------------------------------------------------------------------------

    def check_hosts(self) -> Iterator[Finding]:
        """Yield whether each host answers at all."""
        for check, url in self.urls().items():
            yield self._check_host(check, url)

    def _check_host(self, check: str, url: str) -> Finding:
        host = _netloc(url)
        before = time.time()
        try:
            # Stripe refuses a GET here, and any refusal shows name, way and certificate to be good.
            reply = self._transport.get(url, {}, at_most_seconds=_SECONDS)
        except TransportError as error:
            self.unreachable.add(url)
            advice = self._advice(error.trouble, url)
            return failed(check, f"{host}: {error}", advice, ExitCode.UNREACHABLE)
        if reply.status >= 500 or reply.status == 407:
            self.unreachable.add(url)
            return failed(
                check,
                f"{host} answered HTTP {reply.status}",
                self._advice("proxy", url)
                if reply.status == 407
                else other_side_fails(self._config),
                ExitCode.UNREACHABLE,
            )
        if self._config.sandbox_url is not None and not is_sandbox(self._config):
            self.unreachable.add(url)
            return failed(
                check,
                f"{host} answers, and is no sandbox at {self._config.sandbox_url}",
                _right_sandbox(self._config.sandbox_url),
                ExitCode.UNREACHABLE,
            )
        date = reply.headers.get("Date")
        if date is not None:
            # Whoever writes something else has no clock to compare with.
            with contextlib.suppress(ValueError):
                self._skews.append(Skew.of(date, before, time.time()))
        secured = ", its certificate is good" if url.startswith("https:") else ""
        return ok(check, f"{host} answers{secured}")

    def _advice(self, trouble: Trouble, url: str) -> str:
        sandbox_url = self._config.sandbox_url
        if trouble == "tls":
            if sandbox_url is not None and is_loopback(url):
                plain = sandbox_url.replace("https:", "http:", 1)
                return f"a sandbox speaks no TLS: `export METER_AGENT_SANDBOX_URL={plain}`"
            return (
                "if something on the way inspects TLS, name its certificate:"
                " `export REQUESTS_CA_BUNDLE=/path/to/ca.pem`; see also that this host's clock is"
                " right"
            )
        if trouble == "proxy":
            # Every host at once: who follows one advice after the other keeps them all.
            variable = _proxy_variable(url)
            return f"correct {variable}, or go without it: {_without_proxy(self.urls().values())}"
        if trouble == "name":
            return f"correct the name, or the name server: `getent hosts {urlsplit(url).hostname}`"
        if sandbox_url is not None:
            return _right_sandbox(sandbox_url)
        host = _netloc(url)
        return f"let this host connect to {host}, or name a proxy: `export HTTPS_PROXY=http://...`"

    def check_clock(self) -> Finding:
        """Return how far this clock is off; after `check_hosts`."""
        if not self._skews:
            return not_checked("clock", "no host told its time")
        certain = self._skews[0].certain
        if abs(certain) <= _SKEW_SECONDS_MAX:
            return ok("clock", f"within {_SKEW_SECONDS_MAX:g} s of the other side")
        way = "ahead of" if certain > 0 else "behind"
        detail = f"this clock is {abs(certain):.0f} s {way} the other side"
        advice = "set the clock, and keep it set: `timedatectl set-ntp true`"
        if self._config.sandbox_url is not None:
            advice = (
                f"put the sandbox's clock right: `curl -s {self._config.sandbox_url}/_sandbox/clock"
                f" -d '{{\"advance\": {certain:.0f}}}'`"
            )
        if certain >= TIMESTAMP_FUTURE_SECONDS_MAX:
            detail += f"; events {TIMESTAMP_FUTURE_SECONDS_MAX} s ahead are refused"
            return failed("clock", detail, advice, ExitCode.BAD)
        return warning("clock", f"{detail}; usage may fall into the wrong period", advice)


def other_side_fails(config: Config) -> str:
    """Return the advice for an answer that is nobody's fault on this side."""
    if config.sandbox_url is None:
        return "wait, and ask again: the fault is on the other side (status.stripe.com)"
    url = f"{config.sandbox_url.rstrip('/')}/_sandbox/faults"
    return f"have the sandbox do as Stripe does: `curl -s -X DELETE {url}`; or start it again"


def _netloc(url: str) -> str:
    return urlsplit(url).netloc


def _proxy_told(url: str, way: Way) -> str:
    if way.proxy is None:
        return f"none for {_netloc(url)}"
    return f"{way.proxy} from {_proxy_variable(url)} for {_netloc(url)}"


def _proxy_variable(url: str) -> str:
    names = (f"{urlsplit(url).scheme}_proxy", "all_proxy")
    spellings = [each for name in names for each in (name, name.upper())]
    return next((name for name in spellings if os.environ.get(name)), "the system's settings")


def _without_proxy(urls: Iterable[str]) -> str:
    # The small spelling wins, where both are there.
    name = "no_proxy" if os.environ.get("no_proxy") else "NO_PROXY"
    hosts = dict.fromkeys(str(urlsplit(url).hostname) for url in urls)
    return f"`export {name}={','.join(filter(None, [os.environ.get(name), *hosts]))}`"


def _check_certificates(ca_bundle: str | None) -> Finding:
    if ca_bundle is None:
        return ok("tls", "certificates are verified, with the list that comes with requests")
    name = next(name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name))
    try:
        context = ssl.create_default_context()
        is_directory = os.path.isdir(ca_bundle)
        context.load_verify_locations(**{"capath" if is_directory else "cafile": ca_bundle})
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or error
        return failed(
            "tls",
            f"{name}={ca_bundle}: {reason}",
            f"name a file of PEM certificates, or `unset {name}`",
        )
    return ok("tls", f"certificates are verified, with those in {ca_bundle} ({name})")


def _right_sandbox(sandbox_url: str) -> str:
    port = urlsplit(sandbox_url).port or 80
    return (
        f"start the sandbox: `meter-agent sandbox --port {port}`; or name the address that it"
        " printed when it was started, METER_AGENT_SANDBOX_URL"
    )
