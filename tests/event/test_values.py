"""Which values may be billed, and the text that is sent for them."""

from __future__ import annotations

import enum
import math
import time
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_agent._event import VALUE_DECIMALS_MAX, VALUE_DIGITS_MAX, format_value
from meter_agent.exceptions import InvalidEventError
from tests.event.events import HUGE_INT, HUGE_TEXT, Exploding, StrSubclass, made


class Plan(enum.IntEnum):
    PRO = 3


class Index:
    def __init__(self, number: Any) -> None:
        self.number = number

    def __index__(self) -> Any:
        return self.number


def value_refusal(value: object) -> InvalidEventError:
    with pytest.raises(InvalidEventError) as caught:
        format_value(value)
    assert caught.value.field == "value"
    return caught.value


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
        (0.1 + 0.2, "0.3"),
        (1.7000000000000002, "1.7"),
        (0.0234375123456789, "0.023437512346"),
        (1234.567890123456789, "1234.56789012346"),
        (999.9999999999999, "1000"),
        (1e-13, "0"),
        (-1e-13, "0"),
        (5e-324, "0"),
        (999_999_999_999_999.4, "999999999999999"),
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
        (np.int64(5), "5"),
        (np.uint8(255), "255"),
        (np.float64(0.1) * 3, "0.3"),
        (np.float32(0.5), "0.5"),
        (np.float32(0.1), "0.1"),
        (np.float16(0.1), "0.1"),
        (np.longdouble("0.1") * 3, "0.3"),
        (Index(7), "7"),
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
            np.bool_(True),
            np.float32("nan"),
            np.float32("inf"),
            np.complex64(1),
            np.timedelta64(5, "s"),
            np.array(5),
            Fraction(1, 2),
            Index("x"),
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
        *(Decimal("1E-13"), Decimal("1E-999999999")),
        *(Decimal("1234567890123.456"), Decimal("0." + "1" * 13), Decimal("1." + "0" * 99 + "1")),
        *("0.1234567890123", "1e999999999", "1e-999999999"),
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
    [
        *(1e15, -1e15, 999_999_999_999_999.9, 1e300, np.float32(1e30)),
        *(10**15, -(10**15), HUGE_INT, -HUGE_INT, np.uint64(10**15), "1000000000000000", "1e15"),
        *(Decimal("1E+15"), Decimal("-1E+15"), Decimal("1E+999999999")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_rounding_helps_is_refused_with_the_limit(value: object) -> None:
    rule = value_refusal(value).rule
    assert rule.startswith("must be between -1e15 and 1e15")
    assert "Record it in a larger unit" in rule


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
def test_a_sent_value_is_exact_or_a_rounded_float_and_within_stripes_limits(
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
    if isinstance(value, float):
        exact = Decimal(value)
        last_digit = max(-VALUE_DECIMALS_MAX, exact.adjusted() - VALUE_DIGITS_MAX + 1)
        assert abs(Decimal(text) - exact) <= Decimal((0, (5,), last_digit - 1))
    else:
        assert Decimal(text) == Decimal(value)
    assert format_value(text) == text


@given(st.decimals("-99999999", "99999999", places=6))
def test_what_fits_is_never_refused(value: Decimal) -> None:
    assert Decimal(format_value(value)) == value
    assert Decimal(format_value(str(value))) == value
