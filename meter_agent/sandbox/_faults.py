"""Faults by rule: what goes wrong, for which requests, how often."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import Any, Literal, TypeAlias, get_args
from zlib import crc32

from meter_agent.sandbox._errors import StripeError, default_error
from meter_agent.sandbox._gateways import GATEWAY_ANSWERS
from meter_agent.sandbox._reply import Reply

__all__ = ["Door", "Fault", "Faults", "Strike"]

Door: TypeAlias = Literal["stream", "session", "event", "meters", "any"]
Kind: TypeAlias = Literal[
    "status", "gateway", "delay", "reset", "truncate", "hang", "poison", "revoke"
]

_KINDS = get_args(Kind)
_DOORS = ("stream", "session", "event", "meters", "any")
_ENDING = frozenset({"status", "gateway", "reset", "truncate", "hang"})
"""Kinds that decide how a request ends: at most one of them strikes each request."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?|")
_HASHES = 1 << 32


@dataclass(frozen=True)
class Fault:
    """One rule for what goes wrong.

    Rules are asked in the order in which they were added. Delays add up; the first of status,
    gateway, reset, truncate and hang that strikes decides how the request ends.

    Example:
        ```python
        Fault("status", status=503, times=3)                   # the next three requests
        Fault("status", status=429, retry_after="2", probability=0.1)
        Fault("status", status=500, accept=True, times=1)      # taken in, yet answered 500
        Fault("reset", when="after", times=1)                  # a lost acknowledgement
        Fault("gateway", form="nginx-502", accept=True)        # Stripe took it in behind it
        Fault("poison", match={"payload.value": "13"})
        ```

    Raises:
        ValueError: A field is out of range, or does not exist.
    """

    kind: Kind
    """`status`, `gateway`, `delay`, `reset`, `truncate`, `hang`, `poison` or `revoke`."""

    on: Door = "stream"
    """Which requests it is for: `stream`, `session`, `event` (one, checked at once), `meters` (the
    list of them) or `any`. Poison is for stream and event alike."""

    times: int | None = None
    """How often it strikes before it is used up; None: for ever."""

    probability: float = 1.0
    """How likely it strikes, drawn from the sandbox's seed; for poison, from the identifier."""

    status: int = 503
    """status: the answer's HTTP status."""

    retry_after: str | None = None
    """status: the `Retry-After` header, sent as it stands."""

    code: str | None = None
    """status, poison: the error's code; None: a usual one."""

    message: str | None = None
    """status, poison: the error's message; None: a usual one."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """status: more headers of the answer; they win over the usual ones."""

    body: str | None = None
    """status: the answer's body as it stands; None: an error envelope, or `{}` below 400."""

    form: str = "nginx-502"
    """gateway: the answer that somebody else than Stripe gives; it carries no `Request-Id`."""

    accept: bool = False
    """status, gateway, hang: whether the request has its effect nevertheless."""

    seconds: float = 0.0
    """delay: how long the answer is held back."""

    when: Literal["before", "after"] = "before"
    """reset: before or after the request had its effect."""

    match: Mapping[str, str] = field(default_factory=dict)
    """poison: what an event must say, all of it: `event_name`, `identifier`, `timestamp`,
    `customer` or `payload.<key>` to text."""

    every: int = 1
    """poison: about one identifier in this many, always the same ones."""

    predicate: Callable[[dict[str, Any]], bool] | None = None
    """poison: asked with the event as sent. Only from Python."""

    def __post_init__(self) -> None:
        for wrong, text in self._checks():
            if wrong:
                raise ValueError(f"fault: {text}")

    def _checks(self) -> Iterator[tuple[bool, str]]:
        yield self.kind not in _KINDS, f"kind must be one of {', '.join(_KINDS)}"
        yield self.on not in _DOORS, f"on must be one of {', '.join(_DOORS)}"
        yield self.when not in ("before", "after"), "when must be before or after"
        yield self.times is not None and not _is_count(self.times), "times must be 1 or more"
        yield not _is_count(self.every), "every must be 1 or more"
        yield not _is_number(self.probability, 1), "probability must lie between 0 and 1"
        yield not _is_number(self.seconds, 86_400), "seconds must lie between 0 and 86400"
        yield (
            not _is_count(self.status) or not 200 <= self.status <= 599,
            "status must lie between 200 and 599",
        )
        yield self.form not in GATEWAY_ANSWERS, f"form must be one of {', '.join(GATEWAY_ANSWERS)}"
        yield not isinstance(self.accept, bool), "accept must be true or false"
        for name in ("retry_after", "code", "message", "body"):
            text = getattr(self, name)
            yield text is not None and not isinstance(text, str), f"{name} must be a string"
        yield not _is_text_map(self.headers), "headers must map strings to strings"
        yield not _is_text_map(self.match), "match must map strings to strings"
        yield not all(map(_is_header, self.answer_headers().items())), "headers must be plain ASCII"
        for key in self.match:
            yield not _is_matchable(key), f"match cannot look at {key!r}"

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Fault":
        """The fault that *document* describes, by the names of the fields.

        Raises:
            ValueError: A name is unknown or a value is out of range.
        """
        if not isinstance(document, Mapping):
            raise ValueError("fault: must be an object")  # noqa: TRY004  # one type for bad input
        known = {each.name for each in fields(cls)} - {"predicate"}
        unknown = sorted(set(document) - known)
        if unknown:
            raise ValueError(f"fault: unknown field {', '.join(unknown)}")
        if "kind" not in document:
            raise ValueError("fault: kind is missing")
        values = dict(document)
        if _is_number(values.get("retry_after"), float("inf")):
            values["retry_after"] = str(values["retry_after"])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The fields that are not at their default; a predicate is only named."""
        usual = Fault("delay")
        document = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name != "kind" and getattr(self, each.name) != getattr(usual, each.name)
        }
        if self.predicate is not None:
            document["predicate"] = getattr(self.predicate, "__name__", "python")
        return {"kind": self.kind, **document}

    @property
    def takes_effect(self) -> bool:
        """Whether a request that it ends has its effect nevertheless."""
        if self.kind == "reset":
            return self.when == "after"
        return self.kind == "truncate" or self.accept

    def answer_headers(self) -> dict[str, str]:
        """The headers of a status fault."""
        retry_after = {} if self.retry_after is None else {"Retry-After": self.retry_after}
        return {**retry_after, **self.headers}

    def answer(self) -> Reply:
        """The answer of a status or a gateway fault."""
        if self.kind == "gateway":
            return GATEWAY_ANSWERS[self.form]
        usual = default_error(self.status, self.code, self.message).reply()
        body = usual.body if self.status >= 400 else b"{}"
        if self.body is not None:
            body = self.body.encode()
        if self.status in (204, 304):
            body = b""
        return Reply(self.status, _override(usual.headers, self.answer_headers()), body)

    def poisons(self, event: dict[str, Any], customer: str) -> bool:
        """Whether *event* is one that this fault refuses."""
        return (
            self._picks(event.get("identifier"))
            and all(_read(event, customer, key) == text for key, text in self.match.items())
            and (self.predicate is None or bool(self.predicate(event)))
        )

    def _picks(self, identifier: str | None) -> bool:
        """A draw that comes out the same each time the event is sent."""
        if self.every == 1 and self.probability == 1:
            return True
        if identifier is None:
            return False
        drawn = crc32(identifier.encode("utf-8", "surrogatepass"))
        return drawn % self.every == 0 and drawn < self.probability * _HASHES


@dataclass(frozen=True)
class Strike:
    """What the faults have in store for one request."""

    delay_seconds: float = 0.0
    revoke: bool = False
    ending: Fault | None = None


@dataclass(eq=False)
class _Armed:
    fault: Fault
    left: int | None


class Faults:
    """The rules in force, and how often each may still strike."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = Random(seed)  # noqa: S311  # reproducible, not secret
        self._armed: list[_Armed] = []

    def add(self, fault: Fault) -> None:
        """Put *fault* behind the others."""
        self._armed.append(_Armed(fault, fault.times))

    def clear(self) -> None:
        """Take every fault away."""
        self._armed.clear()

    def restart(self) -> None:
        """As new: no fault, and the same draws again."""
        self.clear()
        self._random.seed(self._seed)

    def remaining(self) -> list[Fault]:
        """The faults in force, with the times that are left."""
        return [replace(armed.fault, times=armed.left) for armed in self._armed]

    def strike(self, door: Door) -> Strike:
        """Decide about one request at *door*, and use up what strikes."""
        delay, revoke, ending = 0.0, False, None
        for armed in list(self._armed):
            fault = armed.fault
            if fault.kind == "poison" or fault.on not in (door, "any"):
                continue
            if fault.kind in _ENDING and ending is not None:
                continue
            if fault.probability < 1 and self._random.random() >= fault.probability:
                continue
            self._use(armed)
            delay += fault.seconds if fault.kind == "delay" else 0.0
            revoke = revoke or fault.kind == "revoke"
            ending = fault if fault.kind in _ENDING else ending
        return Strike(delay, revoke, ending)

    @property
    def poisonous(self) -> bool:
        """Whether any event needs to be looked at."""
        return any(armed.fault.kind == "poison" for armed in self._armed)

    def poison(self, events: Mapping[int, tuple[dict[str, Any], str]]) -> dict[int, StripeError]:
        """The errors of poisoned events by position; each fault counts once per request.

        Args:
            events: By position the event as sent and its customer.
        """
        errors: dict[int, StripeError] = {}
        for armed in [each for each in self._armed if each.fault.kind == "poison"]:
            hits = [index for index, event in events.items() if armed.fault.poisons(*event)]
            for index in hits:
                errors.setdefault(index, _poison_error(armed.fault, index))
            if hits:
                self._use(armed)
        return errors

    def _use(self, armed: _Armed) -> None:
        if armed.left is not None:
            armed.left -= 1
            if armed.left == 0:
                self._armed.remove(armed)


def _poison_error(fault: Fault, index: int) -> StripeError:
    message = fault.message or "the sandbox was told to refuse this event."
    return StripeError(400, fault.code or "payload_invalid_value", f"events[{index}]: {message}")


def _override(usual: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    names = {name.lower() for name in wanted}
    return {**{name: usual[name] for name in usual if name.lower() not in names}, **wanted}


def _read(event: dict[str, Any], customer: str, key: str) -> object:
    if key == "customer":
        return customer
    if key.startswith("payload."):
        return event["payload"].get(key.removeprefix("payload."))
    return event.get(key)


def _is_matchable(key: str) -> bool:
    names = ("event_name", "identifier", "timestamp", "customer")
    return key in names or key.startswith("payload.")


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


def _is_number(number: object, most: float) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= most


def _is_text_map(mapping: object) -> bool:
    return isinstance(mapping, Mapping) and all(
        isinstance(text, str) for pair in mapping.items() for text in pair
    )


def _is_header(header: tuple[str, str]) -> bool:
    name, value = header
    return bool(_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value))
