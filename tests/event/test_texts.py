"""Which names, customers, identifiers and payloads may be billed."""

from __future__ import annotations

import enum
import math
import sys
import unicodedata
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from meter_agent._event import (
    NAME_CHARACTERS_MAX,
    PAYLOAD_KEYS_MAX,
    PAYLOAD_VALUE_CHARACTERS_MAX,
    EventEncoder,
    is_name,
)
from meter_agent.exceptions import InvalidEventError
from tests.event.events import (
    HUGE_INT,
    HUGE_TEXT,
    Exploding,
    ExplodingMapping,
    StrSubclass,
    encode,
    made,
    recorded,
    refusal,
)


class EndlessMapping(ExplodingMapping):
    def items(self) -> Any:
        while True:
            yield "key", "value"


class Plan(enum.IntEnum):
    PRO = 3


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


@pytest.mark.parametrize(
    "name", ["x" * 100, "é" * 100, "a b", "a\u00a0b", "é ü", "❤\ufe0f", "👩🚀", '"\\/']
)
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


@pytest.mark.parametrize("key", ["", "x" * 101, "a\n", "\ud800", "a\u200b", 5, None, b"k"])
def test_a_bad_payload_key_is_refused(key: object) -> None:
    assert refusal(payload={key: "v"}).field == "payload key"


INVISIBLE = [
    chr(number)
    for number in range(sys.maxunicode + 1)
    if unicodedata.category(chr(number)) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
] + list("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def test_no_control_and_no_invisible_character_is_in_a_name_wherever_it_stands() -> None:
    for character in INVISIBLE:
        for name in (character, f"cus{character}_1", f"{character}cus_1", f"cus_1{character}"):
            assert not is_name(name), f"U+{ord(character):04X}"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("cus_1\u200b", "it has U+200B"),
        ("\u2060cus_1", "it has U+2060"),
        ("cus\xad_1", "it has U+00AD"),
        (" cus_1 ", "it begins with U+0020"),
        ("cus_1\u3000", "it ends with U+3000"),
        ("cus\u3164_1", "it has U+3164"),
        ("cus_1\n", "it ends with U+000A"),
        ("x" * 101, "it has 101 characters"),
    ],
)
@pytest.mark.parametrize("field", ["event_name", "customer_id", "identifier"])
def test_what_nobody_sees_in_a_name_is_named_by_its_code_point(
    field: str, name: str, fault: str
) -> None:
    assert refusal(**{field: name}).rule.endswith(f"; {fault}")


class Order(UUID):
    """As drivers of databases have one of their own."""


ORDER = "0188d4c3-1111-4222-8333-444455556666"


@pytest.mark.parametrize("field", ["event_name", "customer_id", "identifier"])
@pytest.mark.parametrize("kind", [UUID, Order])
def test_a_uuid_is_a_name(field: str, kind: type[UUID]) -> None:
    document = encode(**{field: kind(ORDER.upper())})
    sent = document | {"customer_id": document["payload"]["stripe_customer_id"]}
    assert sent[field] == ORDER


@pytest.mark.parametrize(
    ("label", "text"),
    [
        *((True, "true"), (False, "false"), (None, "null"), (5, "5"), (-3, "-3"), (Plan.PRO, "3")),
        *((1.0, "1"), (Decimal("1.0"), "1"), (0.1 + 0.2, "0.3"), (Decimal("1E+20"), "1E+20")),
        *((10**20, "1" + "0" * 20), (1e300, "1e+300"), (math.nan, "nan"), (math.inf, "inf")),
        *((UUID(ORDER), ORDER), (np.int64(7), "7"), (np.float32(0.1), "0.1")),
        *((np.bool_(True), "true"), (np.str_("eu"), "eu"), (StrSubclass("eu"), "eu")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_plain_scalar_is_a_label_in_one_text_form(label: object, text: str) -> None:
    assert encode(payload={"label": label})["payload"]["label"] == text


@pytest.mark.parametrize(
    "value",
    ["x" * 501, "\udfff", b"v", Exploding, HUGE_INT, [1], {"a": 1}, 1j, np.array(5)],
    ids=lambda value: type(value).__name__,
)
def test_a_bad_payload_value_is_refused_by_its_key(value: object) -> None:
    assert refusal(payload={"region": made(value)}).field == "payload['region']"


@pytest.mark.parametrize("key", ["stripe_customer_id", "value"])
def test_the_payload_cannot_change_who_pays_and_how_much(key: str) -> None:
    error = refusal(payload={"region": "eu", key: "x"})
    assert (error.field, error.value) == ("payload key", repr(key))
    assert "must not be the customer or value key" in error.rule
