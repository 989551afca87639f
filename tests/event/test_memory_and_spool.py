"""An event ends the same, whether it waits in memory or in a spool."""

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meter_agent._event import EventEncoder, MeterEvent, describe
from meter_agent._spool_body import InvalidRecord, decode, encode_anyhow
from meter_agent.exceptions import InvalidEventError
from tests.event.events import NOW, StrSubclass

NOW_NS = int(NOW) * 1_000_000_000


class Plan(enum.IntEnum):
    PRO = 3


# Hypothesis prints the values of `sampled_from` in its messages; a StrSubclass cannot be printed.
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.booleans().map(np.bool_),
    st.integers(),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.floats(),
    st.floats().map(np.float64),
    st.floats(width=32).map(np.float32),
    st.floats(width=32).map(np.longdouble),
    st.decimals(),
    st.decimals(allow_nan=False, allow_infinity=False, places=4).map(lambda d: d.scaleb(-2)),
    st.uuids(),
    st.text(max_size=20),
    st.text(max_size=20).map(StrSubclass),
    st.sampled_from([Plan.PRO, "cus_1", " cus_1", "cus\u200b", b"x", [1], Decimal("1.50"), 1j]),
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 7 + [SCALARS]).flatmap(lambda chosen: chosen)


NAMES = mostly(
    st.sampled_from(["cus_1", "é", UUID(int=7), np.str_("a")])
    | st.builds(StrSubclass, st.just("cus_2"))
)
AMOUNTS = mostly(
    st.integers(-999, 999)
    | st.floats(-1e6, 1e6)
    | st.floats(-9, 9, width=32).map(np.float32)
    | st.integers(0, 9).map(np.int64)
)
MOMENTS = mostly(
    st.none() | st.floats(NOW - 9e5, NOW) | st.integers(0, 99).map(lambda n: np.int64(NOW - n))
)
LABELS = st.dictionaries(
    mostly(st.sampled_from(["a", "b"]) | st.builds(StrSubclass, st.just("c"))), SCALARS, max_size=3
)


@given(
    name=NAMES,
    customer=NAMES,
    value=AMOUNTS,
    timestamp=MOMENTS,
    identifier=st.none() | NAMES,
    payload=st.none() | LABELS,
)
def test_what_a_spool_reads_back_is_sent_or_refused_as_memory_does(**fields: Any) -> None:
    event = tuple(fields.values())
    encoder = EventEncoder()
    from_spool = decode(encode_anyhow(NOW_NS, event, encoder.check))
    in_memory: Any = (NOW, *event)
    sent: MeterEvent | InvalidRecord
    try:
        sent = encoder.encode(in_memory, "uuid-1")
    except InvalidEventError as error:
        sent = InvalidRecord(NOW, describe(in_memory), str(error))
    if not isinstance(from_spool, InvalidRecord):
        assert encoder.encode(from_spool, "uuid-1") == sent
    else:
        assert from_spool == sent
