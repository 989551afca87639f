"""Meters: which event names Stripe knows, and what it looks for in their payloads."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any, Literal, TypeAlias, get_args

from meter_agent.sandbox._errors import StripeError
from meter_agent.sandbox._events import MeterEvent, PayloadKeys

__all__ = ["Meter", "Meters"]

_LIST_URL = "/v1/billing/meters"
_PAGE = 10
_PAGE_MAX = 100
_PARAMETERS = frozenset({"status", "limit", "starting_after", "ending_before", "expand"})

Formula = Literal["sum", "count", "last"]
Status = Literal["active", "inactive"]
Window = Literal["hour", "day"]


@dataclass(frozen=True)
class Meter:
    """One meter of the account.

    Example:
        ```python
        Sandbox(meters=[Meter("output_tokens"), Meter("old_tokens", status="inactive")])
        ```

    Raises:
        ValueError: A field is out of range.
    """

    event_name: str
    """Which events it takes; an event name belongs to one meter."""

    display_name: str | None = None
    """None: the event name."""

    status: Status = "active"
    """An inactive meter is archived: it takes no events."""

    customer_key: str = "stripe_customer_id"
    """Where it finds the customer in a payload."""

    value_key: str = "value"
    """Where it finds the value in a payload."""

    formula: Formula = "sum"
    """Shown in the list; the sandbox's own totals are always sums."""

    event_time_window: Window | None = None
    """Shown in the list."""

    def __post_init__(self) -> None:
        for name, text in asdict(self).items():
            optional = name in ("display_name", "event_time_window")
            if not (isinstance(text, str) and text) and not (optional and text is None):
                raise ValueError(f"meter: {name} must be a string that is not empty")
        choices = {"status": Status, "formula": Formula, "event_time_window": Window}
        for name, choice in choices.items():
            value, known = getattr(self, name), get_args(choice)
            if value is not None and value not in known:
                raise ValueError(f"meter: {name} must be one of {', '.join(known)}")

    @classmethod
    def from_json(cls, document: Any) -> "Meter":
        """The meter that *document* describes: an event name, or an object with these fields.

        Raises:
            ValueError: A name is unknown or a value is out of range.
        """
        if isinstance(document, str):
            return cls(document)
        if not isinstance(document, Mapping) or "event_name" not in document:
            raise ValueError("meter: must be an event name, or an object with event_name")
        unknown = sorted(set(document) - {each.name for each in fields(cls)})
        if unknown:
            raise ValueError(f"meter: unknown field {', '.join(unknown)}")
        return cls(**document)

    @property
    def id(self) -> str:
        """Its identifier in the list."""
        return f"mtr_test_{blake2b(self.event_name.encode(), digest_size=12).hexdigest()}"

    def to_json(self, created: int) -> dict[str, Any]:
        """The `billing.meter` object."""
        archived = self.status == "inactive"
        return {
            "id": self.id,
            "object": "billing.meter",
            "created": created,
            "customer_mapping": {"event_payload_key": self.customer_key, "type": "by_id"},
            "default_aggregation": {"formula": self.formula},
            "display_name": self.display_name or self.event_name,
            "event_name": self.event_name,
            "event_time_window": self.event_time_window,
            "livemode": False,
            "status": self.status,
            "status_transitions": {"deactivated_at": created if archived else None},
            "updated": created,
            "value_settings": {"event_payload_key": self.value_key},
        }


_KeysByEvent: TypeAlias = Mapping[str, Mapping[str, str]]


class Meters:
    """The meters of the account; None: whatever an event is called, there is a meter for it.

    Args:
        meters: The meters.
        payload_keys: Payload keys of event names without a meter of that name.
        now: Unix seconds; when the meters were created.
    """

    def __init__(
        self, meters: Iterable[Meter] | None, payload_keys: _KeysByEvent, now: float
    ) -> None:
        listed = None if meters is None else list(meters)
        self._created = int(now)
        self._by_event = None if listed is None else {each.event_name: each for each in listed}
        if listed is not None and len(self._by_event or ()) < len(listed):
            raise ValueError("meters: an event name belongs to one meter")
        self.payload_keys: dict[str, PayloadKeys] = {}
        self.add_payload_keys(payload_keys)

    def add_payload_keys(self, payload_keys: _KeysByEvent) -> None:
        """Look there too; meters that were named look where they say."""
        self.payload_keys |= {name: PayloadKeys(**keys) for name, keys in payload_keys.items()}
        self.payload_keys |= {
            each.event_name: PayloadKeys(each.customer_key, each.value_key) for each in self
        }

    def __iter__(self) -> Iterator[Meter]:
        return iter((self._by_event or {}).values())

    def refusal(self, event: MeterEvent) -> StripeError | None:
        """What Stripe says to an event that no meter takes."""
        if self._by_event is None:
            return None
        meter = self._by_event.get(event.event_name)
        if meter is None:
            text = f"No meter was found matching event_name {event.event_name}."
            return StripeError(400, "no_meter", text, async_code="no_meter")
        if meter.status == "inactive":
            text = f"The meter with event_name {event.event_name} is inactive."
            return StripeError(400, "archived_meter", text, async_code="archived_meter")
        return None

    def documents(self) -> list[dict[str, Any]] | None:
        """Every meter, the newest first; None: every event name is taken."""
        if self._by_event is None:
            return None
        return [meter.to_json(self._created) for meter in reversed(list(self))]

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The answer to `GET /v1/billing/meters`.

        Raises:
            StripeError: A parameter is wrong.
        """
        for name in query:
            if name.partition("[")[0] not in _PARAMETERS:
                raise _wrong("parameter_unknown", f"Received unknown parameter: {name}")
        status = query.get("status")
        if status not in (None, *get_args(Status)):
            raise _wrong("parameter_invalid", "Invalid status: must be one of active, inactive")
        found = [each for each in self.documents() or [] if status in (None, each["status"])]
        if "starting_after" in query and "ending_before" in query:
            raise _wrong("parameter_invalid", "Only one of starting_after and ending_before")
        limit = _limit(query.get("limit", str(_PAGE)))
        if "ending_before" in query:
            before = found[: _place(found, query["ending_before"])]
            return _list(before[-limit:], has_more=len(before) > limit)
        if "starting_after" in query:
            found = found[_place(found, query["starting_after"]) + 1 :]
        return _list(found[:limit], has_more=len(found) > limit)


def _list(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": has_more, "url": _LIST_URL}


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _PAGE_MAX):
        raise _wrong("parameter_invalid_integer", f"Invalid limit: must be 1 to {_PAGE_MAX}")
    return int(text)


def _place(found: list[dict[str, Any]], meter_id: str) -> int:
    for place, each in enumerate(found):
        if each["id"] == meter_id:
            return place
    raise _wrong("resource_missing", f"No such meter: '{meter_id[:100]}'")


def _wrong(code: str, message: str) -> StripeError:
    return StripeError(400, code, message, type="invalid_request_error")
