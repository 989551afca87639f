"""The state machine behind every door.

`Sandbox.handle` takes one request and returns one answer. It holds one lock for the whole of it,
waits for nothing and touches no network: delays, resets and half answers are only *described* in
the `Reply` and carried out by the door. That is why a simulator with
virtual time can use the same machine as a real socket.
"""

import threading
import time as clock
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from random import Random
from typing import Any, Literal, Protocol, TypedDict, get_args
from urllib.parse import parse_qsl

from meter_agent.sandbox import _control
from meter_agent.sandbox._errors import StripeError
from meter_agent.sandbox._events import MeterEvent, check_event, events_of
from meter_agent.sandbox._faults import Door, Fault, Faults, Strike
from meter_agent.sandbox._ledger import Entry, Ledger, LedgerRow, TotalsDocument
from meter_agent.sandbox._meters import Meter, Meters
from meter_agent.sandbox._reply import Reply, RequestLog, date_header, json_reply
from meter_agent.sandbox._request import (
    EVENT_PATH,
    METERS_PATH,
    SESSION_PATH,
    STREAM_PATH,
    Request,
    check_headers,
    log_of,
    read_body,
)
from meter_agent.sandbox._sessions import Sessions, rfc3339

__all__ = ["RejectedRow", "Sandbox"]

_DOORS: dict[str, tuple[str, Door]] = {
    SESSION_PATH: ("POST", "session"),
    STREAM_PATH: ("POST", "stream"),
    EVENT_PATH: ("POST", "event"),
    METERS_PATH: ("GET", "meters"),
}
"""The method and the name of each endpoint; faults know it by that name."""

_REMEMBERED_REQUESTS = 100_000
_REMEMBERED_REJECTIONS = 100_000
_REMEMBERED_KEYS = 10_000

Duplicates = Literal["absorb", "reject"]
Validate = Literal["sync", "async"]


class Clock(Protocol):
    """Something that tells unix seconds."""

    def __call__(self) -> float: ...


class RejectedRow(TypedDict):
    """An event that was received with a 200 and found wrong afterwards."""

    identifier: str | None
    event_name: object
    code: str
    message: str
    received_at: float


class Sandbox:
    """A Stripe that lives in this process and remembers everything.

    All methods may be called from any thread.

    Args:
        session_seconds: Life of a session token.
        duplicates: What happens to an identifier that comes again within 24 hours: `"absorb"` takes
            it in silence, `"reject"` refuses the request with `duplicate_meter_event`.
        batch_atomic: True: one bad event refuses the whole request. False: the good events of the
            request are taken in, and the answer is a refusal all the same.
        expired_status: The status that comes with an expired session, 401 or 400.
        api_keys: The keys that may open sessions; None: any that is not empty.
        validate: `"sync"` refuses a bad event with a 400; `"async"` answers 200 and lists it under
            `rejected`, as the real stream does for rules about values, times and customers.
        payload_keys: Per event name `{"customer_key": ..., "value_key": ...}`, where a meter reads
            other payload keys than `stripe_customer_id` and `value`; `""`: every other event name.
        meters: The meters that there are, as `Meter` or by event name; other events are refused
            with `no_meter`, those of an inactive one with `archived_meter`. None: every event name
            is taken.
        time: Unix seconds; `advance` moves on top of it.
        seed: For the draws of faults with a probability, and for tokens.
        max_body_bytes: Longer bodies are refused with 413.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        *,
        session_seconds: float = 900.0,
        duplicates: Duplicates = "absorb",
        batch_atomic: bool = True,
        expired_status: Literal[400, 401] = 401,
        api_keys: Collection[str] | None = None,
        validate: Validate = "sync",
        payload_keys: Mapping[str, Mapping[str, str]] | None = None,
        meters: Iterable[Meter | str] | None = None,
        time: Clock = clock.time,
        seed: int = 0,
        max_body_bytes: int = 1_048_576,
    ) -> None:
        _require(session_seconds > 0, "session_seconds must be more than 0")
        _require(duplicates in get_args(Duplicates), "duplicates must be absorb or reject")
        _require(expired_status in (400, 401), "expired_status must be 400 or 401")
        _require(validate in get_args(Validate), "validate must be sync or async")
        _require(max_body_bytes > 0, "max_body_bytes must be more than 0")
        self.max_body_bytes = max_body_bytes
        self._duplicates = duplicates
        self._batch_atomic = batch_atomic
        self._expired_status = expired_status
        self._api_keys = None if api_keys is None else frozenset(api_keys)
        self._validate = validate
        self._payload_keys = payload_keys or {}
        self._time = time
        self._first_meters = None if meters is None else [*map(_meter, meters)]
        # Re-entrant, because a fault's predicate may want to look at the sandbox.
        self._lock = threading.RLock()
        # Apart from the faults' draws, and never reset: a token is not handed out twice.
        self._names = Random(f"names {seed}")  # noqa: S311  # reproducible, not secret
        self._sessions = Sessions(session_seconds, self._names)
        self._faults = Faults(seed)
        self._answered = 0
        self._start()

    def _start(self) -> None:
        self._offset = 0.0
        self._ledger = Ledger()
        self._meters = Meters(self._first_meters, self._payload_keys, self.now())
        self._rejected: deque[RejectedRow] = deque(maxlen=_REMEMBERED_REJECTIONS)
        self._requests: deque[RequestLog] = deque(maxlen=_REMEMBERED_REQUESTS)
        self._bodies_by_key: dict[tuple[str, str], bytes] = {}
        self._created_by_key: dict[str, dict[str, object]] = {}

    # The doors' side

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answer one request.

        Args:
            method: The HTTP method.
            path: Path and query.
            headers: Names in any case.
            body: The whole body; beyond `max_body_bytes` it need not be complete.

        Returns:
            What to send, and how. It never raises and never sleeps.
        """
        bare_path, _, query = path.partition("?")
        date: dict[str, str] = {}
        with self._lock:
            try:
                date = date_header(self.now())
                if _control.is_control(bare_path):
                    reply = _control.answer(self, method, bare_path, query, body)
                else:
                    reply = self._receive(method, bare_path, query, headers, body)
            except Exception as error:  # noqa: BLE001  # a predicate or a clock of the user's
                text = f"The sandbox failed: {type(error).__name__}: {error}"
                reply = StripeError(500, "sandbox_error", text).reply()
            self._answered += 1
            request_id = {"Request-Id": f"req_{self._answered:014d}"} if reply.is_stripes else {}
            stamp = {**request_id, **date}
        return replace(reply, headers={**stamp, **reply.headers})

    # The user's side

    def now(self) -> float:
        """Unix seconds by the sandbox's own clock."""
        return self._time() + self._offset

    def advance(self, seconds: float) -> None:
        """Move the sandbox's clock; negative *seconds* move it back."""
        with self._lock:
            self._offset += seconds

    @property
    def faults(self) -> list[Fault]:
        """The faults in force; `times` is what is left of them."""
        with self._lock:
            return self._faults.remaining()

    def add_fault(self, fault: Fault) -> None:
        """Put *fault* behind those in force."""
        with self._lock:
            self._faults.add(fault)

    def clear_faults(self) -> None:
        """End all faults."""
        with self._lock:
            self._faults.clear()

    def revoke_sessions(self) -> None:
        """End all sessions before their time; their tokens are answered as expired."""
        with self._lock:
            self._sessions.revoke_all()

    @property
    def meters(self) -> list[dict[str, Any]] | None:
        """The meters as Stripe shows them, the newest first; None: every event name is taken."""
        with self._lock:
            return self._meters.documents()

    def set_meters(self, meters: Iterable[Meter | str] | None) -> None:
        """Replace the meters, until `reset`; see *meters* of the constructor."""
        listed = None if meters is None else [*map(_meter, meters)]
        with self._lock:
            self._meters = Meters(listed, self._payload_keys, self.now())

    def add_payload_keys(self, keys: Mapping[str, Mapping[str, str]]) -> None:
        """Read these too, until `reset`; see *payload_keys* of the constructor."""
        with self._lock:
            self._meters.add_payload_keys(keys)

    def totals(self) -> TotalsDocument:
        """Number of accepted events and of duplicates, and exact sums.

        Returns:
            `{"accepted": n, "duplicates": n, "totals": {event name: {customer: decimal text}}}`
        """
        with self._lock:
            return self._ledger.totals()

    def ledger(
        self,
        *,
        event_name: str | None = None,
        customer: str | None = None,
        identifier: str | None = None,
        offset: int = 0,
        limit: int | None = None,
    ) -> list[LedgerRow]:
        """Accepted events in order, all of them or those that fit.

        Args:
            event_name: Only events of this name.
            customer: Only events of this customer.
            identifier: Only events with this identifier.
            offset: How many of those that fit to pass over.
            limit: How many to return at most.
        """
        wanted = (("event_name", event_name), ("customer", customer), ("identifier", identifier))
        asked = [(name, text) for name, text in wanted if text is not None]
        with self._lock:
            fitting = (
                entry
                for entry in self._ledger
                if all(getattr(entry, name) == text for name, text in asked)
            )
            stop = None if limit is None else offset + limit
            return [entry.row() for entry in islice(fitting, offset, stop)]

    @property
    def rejected(self) -> list[RejectedRow]:
        """Events found wrong after their 200, the last 100 000 (`validate="async"`)."""
        with self._lock:
            return list(self._rejected)

    @property
    def requests(self) -> list[RequestLog]:
        """The last 100 000 requests, without those to `/_sandbox/`."""
        with self._lock:
            return list(self._requests)

    def reset(self) -> None:
        """Forget events, sessions, requests and faults; put the clock right."""
        with self._lock:
            self._sessions.clear()
            self._faults.restart()
            self._start()

    # One request

    def _receive(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        lower = {name.lower(): value for name, value in headers.items()}
        request = Request(self.now(), method.upper(), path, query, lower, body)
        usual_method, door = _DOORS.get(path, ("", None))
        struck = door is not None and request.method == usual_method
        strike = self._faults.strike(door) if door and struck else Strike()
        if strike.revoke:
            self._sessions.revoke_all()
        request.authorization_kind, request.token = self._authorization(request)
        read_body(request, self.max_body_bytes)
        reply = self._answer(request, strike.ending)
        self._requests.append(log_of(request, reply))
        return replace(reply, delay_seconds=strike.delay_seconds)

    def _authorization(self, request: Request) -> tuple[str, str]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        if not token:
            return ("unknown" if scheme else "none"), ""
        if scheme.lower() != "bearer":
            return "unknown", ""
        standing = self._sessions.standing(token, request.at)
        if standing != "unknown":
            return ("session" if standing == "live" else "expired_session"), token
        return ("api_key" if self._is_api_key(token) else "unknown"), token

    def _is_api_key(self, token: str) -> bool:
        # A forgotten token must not pass for one of "any key".
        known = self._api_keys
        return not token.startswith("token_") if known is None else token in known

    def _answer(self, request: Request, fault: Fault | None) -> Reply:
        reply = Reply(0)
        if fault is None or fault.takes_effect:
            try:
                reply = self._act(request)
            except StripeError as error:
                reply = error.reply()
        if fault is None:
            return reply
        if fault.kind in {"status", "gateway"}:
            return fault.answer()
        if fault.kind == "reset":
            return replace(reply, cut=fault.when)
        return replace(reply, cut="truncate" if fault.kind == "truncate" else "hang")

    def _act(self, request: Request) -> Reply:
        if request.path not in _DOORS:
            raise StripeError.not_found(request.path)
        method = _DOORS[request.path][0]
        if request.method != method:
            raise StripeError.method_not_allowed(request.method, request.path, method)
        if len(request.body) > self.max_body_bytes:
            text = f"The request body is longer than {self.max_body_bytes} bytes."
            raise StripeError(413, "request_too_large", text)
        if request.path == STREAM_PATH:
            return self._stream(request)
        if request.authorization_kind != "api_key":
            raise StripeError.unauthorized("invalid_api_key", "Invalid API key provided.")
        if request.path == METERS_PATH:
            return json_reply(200, self._meters.page(dict(parse_qsl(request.query))))
        return self._create(request) if request.path == EVENT_PATH else self._session(request)

    def _session(self, request: Request) -> Reply:
        check_headers(request)
        self._check_idempotency(request)
        return json_reply(200, self._sessions.create(request.at).to_json())

    def _stream(self, request: Request) -> Reply:
        if request.authorization_kind == "expired_session":
            raise StripeError.session_expired(self._expired_status)
        if request.authorization_kind != "session":
            text = "The meter event stream takes the authentication token of a session."
            raise StripeError.unauthorized("session_token_required", text)
        check_headers(request)
        self._check_idempotency(request)
        self._take_batch(events_of(request.document), request.at)
        return json_reply(200, {})

    def _check_idempotency(self, request: Request) -> None:
        """Refuse a key that was used with another body.

        The same key with the same body runs again: identifiers are what keeps events from counting
        twice, and whether the stream honours the key at all is not known.
        """
        key = request.idempotency_key
        if key is None:
            return
        digest = blake2b(request.body, digest_size=16).digest()
        if self._bodies_by_key.setdefault((request.path, key), digest) != digest:
            raise StripeError.idempotency(key)
        if len(self._bodies_by_key) > _REMEMBERED_KEYS:
            del self._bodies_by_key[next(iter(self._bodies_by_key))]

    # One event

    def _create(self, request: Request) -> Reply:
        """Take one event, which is checked at once: `POST /v2/billing/meter_events`."""
        check_headers(request)
        self._check_idempotency(request)
        key = request.idempotency_key or ""
        if key in self._created_by_key:
            # The key of a call that succeeded: answered again, and nothing happens.
            return json_reply(200, self._created_by_key[key])
        raw = request.document
        event = check_event(raw, "event", request.at, self._meters.payload_keys)
        refused = self._meters.refusal(event)
        if refused is None and self._faults.poisonous:
            refused = self._faults.poison({0: (raw, event.customer)}).get(0)
        if refused is None and event.identifier is not None:
            entry = self._ledger.seen(event.identifier, request.at)
            if entry is not None:
                self._ledger.repeat(entry)
                refused = StripeError.duplicate(event.identifier)
        if refused is not None:
            raise refused
        entry = self._take_in(event, request.at)
        document: dict[str, object] = {
            "object": "v2.billing.meter_event",
            "created": rfc3339(request.at),
            "event_name": entry.event_name,
            "identifier": entry.identifier,
            "livemode": False,
            "payload": event.payload,
            "timestamp": entry.timestamp,
        }
        if key:
            self._created_by_key[key] = document
            if len(self._created_by_key) > _REMEMBERED_KEYS:
                del self._created_by_key[next(iter(self._created_by_key))]
        return json_reply(200, document)

    # One batch

    def _take_batch(self, raw_events: list[Any], now: float) -> None:
        good: dict[int, MeterEvent] = {}
        refused: dict[int, StripeError] = {}
        late: dict[int, StripeError] = {}
        for index, raw in enumerate(raw_events):
            try:
                event = check_event(raw, f"events[{index}]", now, self._meters.payload_keys)
                refusal = self._meters.refusal(event)
                if refusal is not None:
                    raise refusal
                good[index] = event
            except StripeError as error:
                is_late = self._validate == "async" and error.async_code is not None
                (late if is_late else refused)[index] = error
        self._refuse_poisoned(raw_events, good, refused)
        if self._duplicates == "reject":
            self._refuse_repeated(good, refused, now)
        if not (refused and self._batch_atomic):
            for event in good.values():
                self._take_in(event, now)
            self._rejected.extend(
                _rejected_row(raw_events[index], error, now) for index, error in late.items()
            )
        if refused:
            raise refused[min(refused)]

    def _refuse_poisoned(
        self, raw_events: list[Any], good: dict[int, MeterEvent], refused: dict[int, StripeError]
    ) -> None:
        if not self._faults.poisonous:
            return
        candidates = {index: (raw_events[index], event.customer) for index, event in good.items()}
        for index, error in self._faults.poison(candidates).items():
            refused[index] = error
            del good[index]

    def _refuse_repeated(
        self, good: dict[int, MeterEvent], refused: dict[int, StripeError], now: float
    ) -> None:
        in_batch: set[str] = set()
        for index, event in list(good.items()):
            if event.identifier is None:
                continue
            entry = self._ledger.seen(event.identifier, now)
            if entry is not None:
                self._ledger.repeat(entry)
            if entry is not None or event.identifier in in_batch:
                refused[index] = StripeError.duplicate(event.identifier)
                del good[index]
            in_batch.add(event.identifier)

    def _take_in(self, event: MeterEvent, now: float) -> Entry:
        identifier = event.identifier or f"{self._names.getrandbits(128):032x}"
        entry = self._ledger.seen(identifier, now)
        if entry is None:
            return self._ledger.accept(event, identifier, event.timestamp or rfc3339(now), now)
        self._ledger.repeat(entry)
        return entry


def _meter(meter: Meter | str) -> Meter:
    return Meter(meter) if isinstance(meter, str) else meter


def _rejected_row(raw: dict[str, Any], error: StripeError, now: float) -> RejectedRow:
    return {
        "identifier": raw.get("identifier"),
        "event_name": raw.get("event_name"),
        "code": error.async_code or error.code,
        "message": error.message,
        "received_at": now,
    }


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)
