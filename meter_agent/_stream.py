"""Stripe's meter event stream: its two endpoints, in and out, and those that only commands ask.

`POST {api_url}/v2/billing/meter_event_session` opens a session with the API key,
`POST {events_url}/v2/billing/meter_event_stream` takes up to 100 events with the session's token,
`POST {api_url}/v2/billing/meter_events` takes one event with the API key and checks it at once,
`GET {api_url}/v1/billing/meters` lists the meters.
Neither credential ever travels to the other's host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from urllib.parse import quote

from meter_agent._answer import Answer, Grant, Verdict
from meter_agent._answer_table import judge
from meter_agent._ledger import Traffic
from meter_agent._printable import one_line
from meter_agent._runtime import Runtime
from meter_agent._secret import Secret
from meter_agent._transport import Reply, Transport, TransportError
from meter_agent._version import __version__

__all__ = ["MeterEventStream"]

_USER_AGENT = f"meter-agent/{__version__}"
_REDACTED = b"[secret]"
_MESSAGE_CHARACTERS_MAX = 300
_METERS_OF_A_PAGE = 40
"""Stripe's own names of a meter have at most 250 characters: about 1.3 KB each."""
_PIECE_BYTES = 2047


class MeterEventStream:
    """Speaks to Stripe for one sender thread.

    Args:
        runtime: Clocks.
        transport: Sends the bytes.
        session_url: Where sessions are opened.
        stream_url: Where events go.
        event_url: Where a single event goes to be checked at once.
        meters_url: Where the meters are listed.
        read_api_key: Returns the API key at the moment it is needed.
        headers: `Stripe-Version` and, where configured, `Stripe-Account` and `Stripe-Context`.
        traffic: Counts requests and sessions.
        seconds_left: How long a request may take; None while nothing presses.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        transport: Transport,
        session_url: str,
        stream_url: str,
        event_url: str,
        meters_url: str,
        read_api_key: Callable[[], str],
        headers: Mapping[str, str],
        traffic: Traffic,
        seconds_left: Callable[[], float | None],
    ) -> None:
        self._runtime = runtime
        self._transport = transport
        self._session_url = session_url
        self._stream_url = stream_url
        self._event_url = event_url
        self._meters_url = meters_url
        self._read_api_key = read_api_key
        self._headers = {"User-Agent": _USER_AGENT, **headers}
        self._traffic = traffic
        self._seconds_left = seconds_left

    def open_session(self) -> Grant | Answer:
        """Open a meter event session; an `Answer` says why there is none."""
        # The OpenAPI description declares no body, and a gateway that validates refuses any.
        answer = self._ask_with_key(self._session_url, b"")
        if answer.verdict is not Verdict.ACCEPTED and not _is_session(answer.body):
            return _for_session(answer)
        grant = _grant(answer.body or {})
        if grant is None:
            return replace(
                answer, verdict=Verdict.RETRY, message="a session without a token was answered"
            )
        self._traffic.sessions.up()
        return grant

    def send(
        self, token: str, bodies: Sequence[bytes], *, may_repeat: Callable[[], bool] = lambda: True
    ) -> Answer:
        """Send one batch; never raises.

        The `Idempotency-Key` derives from the bytes: the same body keeps its key on every attempt,
        a batch cut anew gets its own (Stripe answers 409 to a key with another body).

        *may_repeat* is asked before the one free retry behind a connection that was closed.
        """
        body = b'{"events":[' + b",".join(bodies) + b"]}"
        key = _digest(body)
        self._traffic.requests.up()
        began = self._runtime.monotonic()
        headers = {"Idempotency-Key": key}
        try:
            return self._exchange(self._stream_url, body, token, headers, may_repeat)
        finally:
            self._traffic.durations.add(self._runtime.monotonic() - began)

    def check(self, body: bytes) -> Answer:
        """Send one event to the endpoint that checks it at once, and records it; never raises.

        Without an `Idempotency-Key`: under one that succeeded, Stripe answers a repetition with
        success again (for 30 days, its overview of API v2), and the question here is whether it has
        the event already. That it is billed once is the work of its identifier.
        """
        return self._ask_with_key(self._event_url, body)

    def list_meters(self, starting_after: str | None = None) -> Answer:
        """Return a page of the account's meters, behind the one with that id; never raises.

        An accepted answer's body has them under `data`, and `has_more`. A page is as long as fits
        into the 64 KiB that are read of an answer.
        """
        after = "" if starting_after is None else f"&starting_after={quote(starting_after)}"
        return self._ask_with_key(f"{self._meters_url}?limit={_METERS_OF_A_PAGE}{after}", None)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _ask_with_key(self, url: str, body: bytes | None) -> Answer:
        try:
            api_key = self._read_api_key()
        except (OSError, ValueError) as error:
            return Answer(Verdict.UNAUTHORIZED, message=f"no API key: {error}", slowly=True)
        return self._exchange(url, body, api_key, {}, lambda: True)

    def _exchange(
        self,
        url: str,
        body: bytes | None,
        secret: str,
        headers: Mapping[str, str],
        may_repeat: Callable[[], bool],
    ) -> Answer:
        authorization = Secret(f"Bearer {secret}")
        headers = {**self._headers, "Authorization": authorization, **headers}
        try:
            reply, sent_twice = self._send(url, headers, body, may_repeat)
        except TransportError as error:
            return Answer(
                Verdict.RETRY,
                # An answer that cannot be read is a part of the error, as the server wrote it.
                message=one_line(_without(secret, f"{_host(url)}: {error}"))[
                    :_MESSAGE_CHARACTERS_MAX
                ],
                maybe_accepted=error.maybe_accepted,
            )
        answer = judge(
            reply.status,
            reply.headers,
            _redacted(reply.body, secret) if reply.status >= 300 else reply.body,
            host=_host(url),
            wall_time=self._runtime.clock.time(),
        )
        if answer.request_id is not None and secret in answer.request_id:
            answer = replace(answer, request_id=_without(secret, answer.request_id))
        if sent_twice and answer.verdict is not Verdict.ACCEPTED:
            return replace(answer, maybe_accepted=True)
        return answer

    def _send(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        may_repeat: Callable[[], bool],
    ) -> tuple[Reply, bool]:
        # The second value: was it sent twice, the first time without an answer?
        def send() -> Reply:
            seconds = self._seconds_left()
            if body is None:
                return self._transport.get(url, headers, at_most_seconds=seconds)
            return self._transport.post(url, headers, body, at_most_seconds=seconds)

        try:
            return send(), False
        except TransportError as error:
            # It may have broken late, long after the request was sent.
            if not (error.stale and may_repeat()):
                raise
        # The server had closed a kept-alive connection before our request arrived. That says
        # nothing about its health, so once, at once, on a fresh connection (elastic/apm-agent#409).
        try:
            return send(), True
        except TransportError as error:
            error.maybe_accepted = True
            raise


def _for_session(answer: Answer) -> Answer:
    # Whatever the session host says, the batch behind it was never sent, and a refusal there is
    # about the key or the request itself, not about an event: nothing to split.
    if answer.verdict is Verdict.TOO_LARGE and not answer.is_stripes:
        return replace(answer, verdict=Verdict.RETRY, maybe_accepted=False, slowly=True)
    if answer.verdict in {Verdict.REJECTED, Verdict.TOO_LARGE, Verdict.DUPLICATE}:
        return replace(answer, verdict=Verdict.UNAUTHORIZED, maybe_accepted=False, slowly=True)
    if answer.verdict is Verdict.SESSION_EXPIRED:
        return replace(answer, verdict=Verdict.RETRY, maybe_accepted=False)
    return replace(answer, maybe_accepted=False)


def _is_session(body: Mapping[str, object] | None) -> bool:
    # Stripe's OpenAPI description requires this `object` in each session.
    return body is not None and body.get("object") == "v2.billing.meter_event_session"


def _grant(body: Mapping[str, object]) -> Grant | None:
    token = body.get("authentication_token")
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        return None
    return Grant(Secret(token), _lifetime_seconds(body.get("created"), body.get("expires_at")))


def _lifetime_seconds(created: object, expires_at: object) -> float | None:
    try:
        began, ends = datetime.fromisoformat(str(created)), datetime.fromisoformat(str(expires_at))
        return (ends - began).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None


def _digest(body: bytes) -> str:
    # In pieces so small that hashlib keeps the interpreter lock: beside a thread that computes,
    # getting it back takes longer than hashing a hundred bodies.
    digest, pieces = hashlib.blake2b(digest_size=16), memoryview(body)
    for begin in range(0, len(body), _PIECE_BYTES):
        digest.update(pieces[begin : begin + _PIECE_BYTES])
    return digest.hexdigest()


def _host(url: str) -> str:
    return url.split("/", 3)[2]


def _redacted(body: bytes, secret: str) -> bytes:
    # Before anything of it is cut, for half a secret is one as well; and in the one form that JSON
    # has here, because a proxy may write `\/` for a slash.
    body = body.replace(secret.encode(), _REDACTED)
    try:
        text = json.dumps(json.loads(body))
    except (ValueError, RecursionError):
        return body
    return text.replace(json.dumps(secret)[1:-1], _REDACTED.decode()).encode()


def _without(secret: str, text: str) -> str:
    return text.replace(secret, _REDACTED.decode())
