"""What may be billed, and the bytes that Stripe gets for it."""

from __future__ import annotations

import enum
import json
import math
import pickle
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_agent._event import (
    NAME_CHARACTERS_MAX,
    PAYLOAD_KEYS_MAX,
    PAYLOAD_VALUE_CHARACTERS_MAX,
    TIMESTAMP_FUTURE_SECONDS_MAX,
    TIMESTAMP_PAST_SECONDS_MAX,
    VALUE_DECIMALS_MAX,
    VALUE_DIGITS_MAX,
    EventEncoder,
    MeterEvent,
    PayloadKeys,
    RecordedEvent,
    describe,
    format_timestamp,
    format_value,
)
from meter_agent.exceptions import InvalidEventError

NOW = 1_717_244_100.0  # 2024-06-01T12:15:00Z
HUGE_TEXT = "1" * 10_000_000
HUGE_INT = 10**1_000_000


class Plan(enum.IntEnum):
    PRO = 3


class Meter(str, enum.Enum):  # noqa: UP042  whose str() is not its text
    REQUESTS = "api_requests"


class Exploding:
    """Raises whatever is done with it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __bool__ = __len__ = __hash__ = __eq__ = __iter__ = __repr__  # type: ignore[assignment]


def made(thing: object) -> object:
    """Explode only inside of the test: pytest looks at parameters with `isinstance`."""
    return Exploding() if thing is Exploding else thing


class ExplodingZone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        raise RuntimeError

    dst = tzname = utcoffset  # type: ignore[assignment]


class ExplodingMapping(Mapping[str, str]):
    def __getitem__(self, key: str) -> str:
        raise RuntimeError

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError


class EndlessMapping(ExplodingMapping):
    def items(self) -> Any:
        while True:
            yield "key", "value"


class WideRepr:
    def __repr__(self) -> str:
        return "x" * 1_000_000


class StrSubclass(str):
    __slots__ = ()

    def __getitem__(self, _: Any) -> Any:
        raise RuntimeError

    __len__ = __str__ = __repr__ = __getitem__  # type: ignore[assignment]


def recorded(**fields: Any) -> RecordedEvent:
    defaults: dict[str, Any] = {
        "recorded_at": NOW,
        "event_name": "api_requests",
        "customer_id": "cus_123",
    }
    return RecordedEvent(**(defaults | fields))


def encode(**fields: Any) -> dict[str, Any]:
    document = json.loads(EventEncoder().encode(recorded(**fields), "uuid-1").body)
    assert isinstance(document, dict)
    return document


def refusal(**fields: Any) -> InvalidEventError:
    event = recorded(**fields)
    with pytest.raises(InvalidEventError) as checked:
        EventEncoder().check(event)
    with pytest.raises(InvalidEventError) as encoded:
        EventEncoder().encode(event, "uuid-1")
    assert checked.value.args == encoded.value.args
    return encoded.value


def value_refusal(value: object) -> InvalidEventError:
    with pytest.raises(InvalidEventError) as caught:
        format_value(value)
    assert caught.value.field == "value"
    return caught.value


# --- wire form


def test_an_event_is_sent_in_the_form_that_stripe_documents() -> None:
    event = EventEncoder().encode((NOW, "api_requests", "cus_123", 5, None, None, None), "uuid-1")
    assert event == MeterEvent(
        identifier="uuid-1",
        body=b'{"event_name":"api_requests","identifier":"uuid-1","payload":'
        b'{"stripe_customer_id":"cus_123","value":"5"},"timestamp":"2024-06-01T12:15:00.000Z"}',
        timestamp=NOW,
        recorded_at=NOW,
    )


def test_encoding_twice_gives_the_same_bytes() -> None:
    event, encoder = recorded(payload={"b": "1", "a": "2"}), EventEncoder()
    assert encoder.encode(event, "i").body == EventEncoder().encode(event, "i").body


def test_the_callers_identifier_wins_over_the_minted_one() -> None:
    event = EventEncoder().encode(recorded(identifier="order-7"), "uuid-1")
    assert event.identifier == "order-7"
    assert json.loads(event.body)["identifier"] == "order-7"


def test_the_callers_timestamp_is_sent_and_the_moment_of_recording_is_kept() -> None:
    event = EventEncoder().encode(recorded(timestamp=NOW - 60), "uuid-1")
    assert (event.timestamp, event.recorded_at) == (NOW - 60, NOW)
    assert json.loads(event.body)["timestamp"] == "2024-06-01T12:14:00.000Z"


def test_payload_keys_follow_the_meter_of_the_event() -> None:
    encoder = EventEncoder(
        PayloadKeys("customer", "amount"), {"tokens": PayloadKeys("account", "count")}
    )
    assert _payload(encoder, recorded()) == {"customer": "cus_123", "amount": "1"}
    tokens = recorded(event_name="tokens")
    assert _payload(encoder, tokens) == {"account": "cus_123", "count": "1"}


def test_the_value_key_of_one_meter_may_be_a_payload_key_of_another() -> None:
    encoder = EventEncoder(keys_by_event={"tokens": PayloadKeys("account", "count")})
    assert _payload(encoder, recorded(payload={"count": "9"}))["count"] == "9"


def _payload(encoder: EventEncoder, event: RecordedEvent) -> Any:
    return json.loads(encoder.encode(event, "uuid-1").body)["payload"]


def test_an_empty_payload_is_like_none() -> None:
    assert encode(payload={}) == encode(payload=None)


def test_extra_payload_keys_are_sent_after_customer_and_value() -> None:
    payload = encode(payload={"region": "eu", "note": "", "text": "a\nb"})["payload"]
    assert list(payload) == ["stripe_customer_id", "value", "region", "note", "text"]
    assert payload["text"] == "a\nb"


def test_a_str_enum_counts_as_its_text_and_not_as_its_name() -> None:
    document = encode(event_name=Meter.REQUESTS, customer_id=StrSubclass("cus_1"))
    assert document["event_name"] == "api_requests"
    assert document["payload"]["stripe_customer_id"] == "cus_1"


NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=100
)


@given(
    name=NAMES,
    customer=NAMES,
    identifier=st.none() | NAMES,
    value=st.integers(-(10**15) + 1, 10**15 - 1),
    payload=st.none()
    | st.dictionaries(
        NAMES.filter(lambda key: key not in PayloadKeys()),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=500),
        max_size=4,
    ),
)
def test_what_was_recorded_is_what_stripe_reads(
    name: str, customer: str, identifier: str | None, value: int, payload: dict[str, str] | None
) -> None:
    document = encode(
        event_name=name, customer_id=customer, identifier=identifier, value=value, payload=payload
    )
    assert document == {
        "event_name": name,
        "identifier": "uuid-1" if identifier is None else identifier,
        "payload": {"stripe_customer_id": customer, "value": str(value)} | (payload or {}),
        "timestamp": "2024-06-01T12:15:00.000Z",
    }


# --- value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (0, "0"),
        (-3, "-3"),
        (Plan.PRO, "3"),
        (999_999_999_999_999, "999999999999999"),
        (-999_999_999_999_999, "-999999999999999"),
        (1.0, "1"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e14, "100000000000000"),
        (1e-12, "0.000000000001"),
        (1.5e3, "1500"),
        (Decimal("1.50"), "1.5"),
        (Decimal("1E3"), "1000"),
        (Decimal("-0"), "0"),
        (Decimal("0E-20"), "0"),
        (Decimal("0E+999999"), "0"),
        (Decimal("-1.25"), "-1.25"),
        (Decimal("1" + "." + "0" * 1000), "1"),
        (Decimal("123.456789012345"), "123.456789012345"),
        (Decimal("0.123456789012"), "0.123456789012"),
        ("1", "1"),
        ("+1", "1"),
        ("-0", "0"),
        ("007", "7"),
        ("0", "0"),
        ("1.50", "1.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("1e3", "1000"),
        ("15E-1", "1.5"),
        ("999999999999999", "999999999999999"),
        ("999999999999999.000", "999999999999999"),
        (StrSubclass("2.5"), "2.5"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_sent_as_the_shortest_fixed_point_string(value: object, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    "value",
    [
        *(
            True,
            False,
            None,
            b"1",
            1j,
            [1],
            Exploding,
            object(),
            "",
            " 1",
            "1 ",
            "1\n",
            "1_000",
            "1,5",
        ),
        *("NaN", "inf", "-Infinity", "0x10", "e5", ".", "+-1", "١٢", "²", "1e", HUGE_TEXT),
        *(math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("sNaN"), Decimal("-Infinity")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_a_number_is_refused(value: object) -> None:
    assert value_refusal(made(value)).rule.startswith("must be an int, a Decimal, a numeric str")


@pytest.mark.parametrize(
    "value",
    [
        *(10**15, -(10**15), HUGE_INT, -HUGE_INT, 1e15, 1e300, 0.1 + 0.2, 1e-13, 5e-324),
        *(Decimal("1E+15"), Decimal("1E-13"), Decimal("1E+999999999"), Decimal("1E-999999999")),
        *(Decimal("1234567890123.456"), Decimal("0." + "1" * 13), Decimal("1." + "0" * 99 + "1")),
        *("1000000000000000", "0.1234567890123", "1e999999999", "1e-999999999", "1e15"),
        *("1e" + "9" * 90, "1e-" + "9" * 90, "1234567890.123456", "12345678901234567890"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_have_to_be_rounded_is_refused_with_the_advice_to_round_it(
    value: object,
) -> None:
    rule = value_refusal(value).rule
    assert rule.startswith("must be exact in 15 digits, at most 12 of them decimals")
    assert "Round it before recording" in rule


@pytest.mark.parametrize(
    "value",
    [HUGE_INT, HUGE_TEXT, "1e999999999", Decimal("1E+999999999")],
    ids=["int", "text", "exponent", "decimal"],
)
def test_a_huge_value_is_refused_without_being_written_out(value: object) -> None:
    started = time.thread_time()
    error = value_refusal(value)
    assert time.thread_time() - started < 0.1
    assert len(str(error)) < 600


def test_the_applications_decimal_context_changes_nothing() -> None:
    with localcontext() as context:
        context.prec = 2
        context.traps = dict.fromkeys(context.traps, True)
        assert format_value(Decimal("123.456")) == "123.456"
        assert format_value("123.456") == "123.456"
        assert format_value(123.456) == "123.456"
        assert not any(context.flags.values())


NUMBERS = (
    st.integers()
    | st.floats()
    | st.decimals()
    | st.decimals(allow_nan=False, allow_infinity=False, places=6)
    | st.integers(-(10**15), 10**15).map(lambda number: Decimal(number).scaleb(-6))
    | st.from_regex(r"[+-]?[0-9]{1,9}(\.[0-9]{0,9})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
)


@given(NUMBERS)
def test_a_sent_value_is_exact_and_within_stripes_limits(
    value: float | Decimal | str,
) -> None:
    try:
        text = format_value(value)
    except InvalidEventError:
        return
    whole, _, decimals = text.removeprefix("-").partition(".")
    assert (whole + decimals).isdigit()
    assert len(whole + decimals) <= VALUE_DIGITS_MAX
    assert len(decimals) <= VALUE_DECIMALS_MAX
    assert not decimals.endswith("0")
    assert whole == "0" or not whole.startswith("0")
    assert text not in {"-0", ""}
    exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    assert Decimal(text) == exact


@given(st.decimals("-99999999", "99999999", places=6))
def test_what_fits_is_never_refused(value: Decimal) -> None:
    assert Decimal(format_value(value)) == value
    assert Decimal(format_value(str(value))) == value


# --- timestamp


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (NOW, "2024-06-01T12:15:00.000Z"),
        (NOW + 0.123, "2024-06-01T12:15:00.123Z"),
        (NOW + 0.9996, "2024-06-01T12:15:00.999Z"),
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
    ],
)
def test_a_timestamp_is_rfc_3339_in_utc_with_milliseconds(seconds: float, text: str) -> None:
    assert format_timestamp(seconds) == text


@given(st.integers(0, 4_000_000_000_000))
def test_every_millisecond_survives_the_way_through_a_float(milliseconds: int) -> None:
    moment = datetime.fromisoformat(format_timestamp(milliseconds / 1000))
    assert moment == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, 1e12, 253_402_300_799.5])
def test_a_clock_outside_of_all_calendars_is_refused_by_name(seconds: float) -> None:
    with pytest.raises(InvalidEventError, match=r"^timestamp=.*Check the clock"):
        format_timestamp(seconds)


def test_the_default_timestamp_is_the_moment_of_recording() -> None:
    assert encode(recorded_at=NOW + 0.5)["timestamp"] == "2024-06-01T12:15:00.500Z"


@pytest.mark.parametrize(
    "timestamp",
    [
        int(NOW) - 90,
        NOW - 90.0,
        datetime(2024, 6, 1, 12, 13, 30, tzinfo=UTC),
        datetime(2024, 6, 1, 14, 13, 30, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_a_timestamp_may_be_seconds_or_an_aware_datetime(timestamp: object) -> None:
    assert encode(timestamp=timestamp)["timestamp"] == "2024-06-01T12:13:30.000Z"


@pytest.mark.parametrize(
    "timestamp", [NOW - TIMESTAMP_PAST_SECONDS_MAX, NOW + TIMESTAMP_FUTURE_SECONDS_MAX]
)
def test_a_timestamp_on_the_edge_of_what_stripe_takes_is_valid(timestamp: float) -> None:
    encode(timestamp=timestamp)


@pytest.mark.parametrize(
    "timestamp",
    [
        *(NOW - TIMESTAMP_PAST_SECONDS_MAX - 1, NOW + TIMESTAMP_FUTURE_SECONDS_MAX + 1, NOW * 1000),
        *(0, HUGE_INT, -HUGE_INT, math.nan, math.inf, datetime.max.replace(tzinfo=UTC)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_timestamp_that_stripe_would_not_bill_is_refused(timestamp: object) -> None:
    error = refusal(timestamp=timestamp)
    assert error.field == "timestamp"
    assert "within 35 days before and 5 minutes after" in error.rule


@pytest.mark.parametrize(
    "timestamp",
    [
        *(datetime(2024, 6, 1, 12), datetime(2024, 6, 1, tzinfo=ExplodingZone())),
        *(True, "2024-06-01T12:15:00Z", Decimal(1), Exploding),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_timestamp_without_a_clear_moment_is_refused(timestamp: object) -> None:
    error = refusal(timestamp=made(timestamp))
    assert error.field == "timestamp"
    assert error.rule.startswith("must be a datetime with a time zone")


# --- names

BAD_NAMES = [
    *("", "x" * 101, "a\nb", "a\rX-Header: 1", "\x00", "a\x7f", "\x85", "\u2028", "\ud800"),
    *("\ud83d\ude00", HUGE_TEXT, b"cus", 5, True, ["cus"], Exploding),
]


@pytest.mark.parametrize("field", ["event_name", "customer_id", "identifier"])
@pytest.mark.parametrize("name", [*BAD_NAMES, StrSubclass("")], ids=lambda v: type(v).__name__)
def test_a_bad_name_is_refused_by_field(field: str, name: object) -> None:
    error = refusal(**{field: made(name)})
    assert error.field == field
    assert error.rule.startswith(f"must be a non-empty str of at most {NAME_CHARACTERS_MAX}")
    assert len(error.value) <= 200
    assert error.value.isascii() or "…" in error.value


@pytest.mark.parametrize("field", ["event_name", "customer_id"])
def test_none_is_no_name(field: str) -> None:
    assert refusal(**{field: None}).value == "None"


@pytest.mark.parametrize("name", ["x" * 100, "é" * 100, "a b", "a\u00a0b", "👩\u200d🚀", '"\\/'])
@pytest.mark.parametrize("field", ["event_name", "customer_id", "identifier"])
def test_any_printable_text_of_a_hundred_characters_is_a_name(field: str, name: str) -> None:
    document = encode(**{field: name})
    sent = document | {"customer_id": document["payload"]["stripe_customer_id"]}
    assert sent[field] == name


def test_a_bad_name_is_refused_every_time() -> None:
    encoder = EventEncoder()
    for _ in range(3):
        with pytest.raises(InvalidEventError, match=r"^event_name"):
            encoder.check(recorded(event_name="\n"))


# --- payload


@pytest.mark.parametrize(
    "payload",
    [[("a", "b")], "a", 5, Exploding, ExplodingMapping()],
    ids=lambda value: type(value).__name__,
)
def test_a_payload_that_is_no_mapping_is_refused(payload: object) -> None:
    error = refusal(payload=made(payload))
    assert (error.field, error.rule[:17]) == ("payload", "must be a mapping")


@pytest.mark.parametrize(
    "payload",
    [{f"key{n}": "" for n in range(PAYLOAD_KEYS_MAX + 1)}, EndlessMapping()],
    ids=["dict", "endless"],
)
def test_a_payload_of_too_many_keys_is_refused(payload: object) -> None:
    error = refusal(payload=payload)
    assert (error.field, error.rule[:20]) == ("payload", "must have at most 50")


def test_a_payload_of_just_as_many_keys_as_allowed_is_sent() -> None:
    payload = {f"key{n}": "v" * PAYLOAD_VALUE_CHARACTERS_MAX for n in range(PAYLOAD_KEYS_MAX)}
    assert encode(payload=payload)["payload"].items() > payload.items()


@pytest.mark.parametrize("key", ["", "x" * 101, "a\n", "\ud800", 5, None, b"k"])
def test_a_bad_payload_key_is_refused(key: object) -> None:
    assert refusal(payload={key: "v"}).field == "payload key"


@pytest.mark.parametrize("value", ["x" * 501, "\udfff", 5, None, b"v", True, Exploding])
def test_a_bad_payload_value_is_refused_by_its_key(value: object) -> None:
    assert refusal(payload={"region": made(value)}).field == "payload['region']"


@pytest.mark.parametrize("key", ["stripe_customer_id", "value"])
def test_the_payload_cannot_change_who_pays_and_how_much(key: str) -> None:
    error = refusal(payload={"region": "eu", key: "x"})
    assert (error.field, error.value) == ("payload key", repr(key))
    assert "must not be the customer or value key" in error.rule


# --- errors and descriptions


def test_a_refusal_says_what_happened_to_which_value_and_what_to_do() -> None:
    assert str(refusal(value=0.1 + 0.2)) == (
        "value=0.30000000000000004 is invalid: must be exact in 15 digits, at most 12 of them"
        " decimals. Round it before recording, for example with round(value, 6)"
    )


def test_a_refusal_can_be_pickled() -> None:
    error = refusal(customer_id="\ud800")
    assert pickle.loads(pickle.dumps(error)).args == error.args


def test_a_description_shows_the_fields_as_they_were_given() -> None:
    event = recorded(
        value=Decimal("1.50"),
        timestamp=datetime(2024, 6, 1, tzinfo=UTC),
        payload={"region": "eu", 5: Exploding},
    )
    assert describe(tuple(event)) == {
        "recorded_at": NOW,
        "event_name": "api_requests",
        "customer_id": "cus_123",
        "value": "1.50",
        "timestamp": "2024-06-01T00:00:00+00:00",
        "identifier": None,
        "payload": {"region": "eu", "5": repr(Exploding)},
    }


def test_a_description_keeps_json_numbers_and_prints_the_others() -> None:
    shown = describe(recorded(value=True, timestamp=math.nan, identifier=HUGE_INT))
    assert (shown["value"], shown["timestamp"]) == (True, "nan")
    assert shown["identifier"] == "<int of 3321929 bits>"


def test_a_description_escapes_what_utf_8_cannot_carry() -> None:
    assert describe(recorded(customer_id="a\ud800"))["customer_id"] == "a\\ud800"


@pytest.mark.parametrize(
    "thing",
    [
        *(
            Exploding,
            WideRepr(),
            HUGE_TEXT,
            HUGE_INT,
            "\ud800" * 300,
            StrSubclass("x"),
            b"x" * 1000,
        ),
        *(datetime(2024, 6, 1, tzinfo=ExplodingZone()), Decimal("1" * 1000), [Exploding()] * 9),
        *({Exploding: HUGE_TEXT}, {"k": WideRepr()}, ExplodingMapping(), {"k" * 999: [HUGE_TEXT]}),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("field", RecordedEvent._fields)
def test_a_description_never_raises_and_stays_short(field: str, thing: object) -> None:
    text = json.dumps(describe(recorded(**{field: made(thing)})), allow_nan=False)
    assert len(text.encode()) < 3000


@pytest.mark.parametrize("event", [None, (), (1, 2), Exploding, "seven c", [1] * 7])
def test_a_description_of_what_is_no_event_is_its_repr(event: object) -> None:
    shown = describe(made(event))
    assert list(shown) == ["event"]
    json.dumps(shown)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.decimals()
    # Every code point, lone surrogates too.
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)  # fmt: skip


@given(st.tuples(*[ANYTHING] * 7))
def test_any_event_is_either_sent_or_refused_by_name_and_can_always_be_described(
    event: tuple[Any, ...],
) -> None:
    json.dumps(describe(event), allow_nan=False).encode()
    fields = {field for field in RecordedEvent._fields if field != "recorded_at"} | {"payload key"}
    try:
        json.loads(EventEncoder().encode((NOW, *event[1:]), "uuid-1").body)
    except InvalidEventError as refused:
        str(refused).encode()
        field = refused.field.partition("[")[0]
    else:
        field = "payload"
    assert field in fields
