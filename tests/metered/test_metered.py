"""Metering as a decorator: what is billed, to whom, and that the call is not disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

import meter_agent
from meter_agent import DeadLetter, InvalidEventError, MeteredCall, metered
from meter_agent.testing import RecordedEvents, recording
from tests.conftest import MakeAgent
from tests.metered.conftest import billed
from tests.patience import PATIENCE_SECONDS

# -- functions ---------------------------------------------------------------------------------


def test_a_call_is_billed_when_it_has_returned(events: RecordedEvents) -> None:
    @metered("calls", customer="cus_1", value="2.5")
    def double(number: int) -> int:
        assert events.all == []
        return 2 * number

    assert double(21) == 42
    assert billed(events) == [("calls", "cus_1", "2.5")]


def test_customer_value_and_identifier_are_worked_out_from_the_call(events: RecordedEvents) -> None:
    @metered(
        "tokens",
        customer=lambda call: call.arguments["user"],
        value=lambda call: len(call.result) * call.arguments["factor"],
        identifier=lambda call: f"{call.arguments['rest']} {call.arguments['more']}",
    )
    def answer(prompt: str, *rest: int, user: str, factor: int = 2, **more: int) -> list[str]:
        return prompt.split()

    answer("two words", 1, 2, user="cus_1", other=3)
    assert billed(events) == [("tokens", "cus_1", "4")]
    assert events.all[0].identifier == "(1, 2) {'other': 3}"


def test_a_method_is_metered_below_the_decorator_that_binds_it(events: RecordedEvents) -> None:
    class Shop:
        customer = "cus_1"

        @metered("calls", customer=lambda call: call.arguments["self"].customer)
        def method(self) -> str:
            return self.customer

        @classmethod
        @metered("calls", customer=lambda call: call.arguments["cls"].customer)
        def of_class(cls) -> str:
            return cls.customer

    assert (Shop().method(), Shop.of_class()) == ("cus_1", "cus_1")
    assert len(events.assert_recorded("calls", customer="cus_1")) == 2


def test_a_call_that_raises_is_not_billed(events: RecordedEvents) -> None:
    @metered("calls", customer="cus_1")
    def fail() -> None:
        raise LookupError("as ever")

    with pytest.raises(LookupError, match="as ever"):
        fail()
    assert events.all == []


def test_the_function_keeps_its_name_and_its_signature() -> None:
    @metered("calls", customer="cus_1")
    def documented(number: int) -> int:
        """What it does."""
        return number

    assert (documented.__name__, documented.__doc__) == ("documented", "What it does.")
    assert list(inspect.signature(documented).parameters) == ["number"]


def test_an_agent_of_ones_own_records_in_place_of_the_default_one(make_agent: MakeAgent) -> None:
    agent = make_agent(disabled=True)

    @metered("calls", customer="cus_1", agent=agent)
    def call() -> None:
        pass

    call()
    assert agent.stats().dropped == {"disabled": 1}
    assert meter_agent.stats().recorded == 0


def test_a_default_agent_that_is_replaced_later_is_the_one_that_records() -> None:
    @metered("calls", customer="cus_1")
    def call() -> None:
        pass

    with recording() as first:
        call()
    with recording() as second:
        call()
    assert (len(first.all), len(second.all)) == (1, 1)


def test_a_decorator_without_the_name_of_an_event_is_told_at_once() -> None:
    with pytest.raises(TypeError, match="metered\\(\\) needs the name of an event"):

        @metered  # type: ignore[arg-type]
        def call() -> None:
            pass


@pytest.mark.parametrize("wrap", [classmethod, staticmethod, property])
def test_a_decorator_above_what_binds_a_method_is_told_at_once(wrap: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="put it below @classmethod, @staticmethod and @property"):
        metered("calls")(wrap(len))


# -- when the metering is wrong ----------------------------------------------------------------


def fails(_call: MeteredCall) -> Any:
    raise KeyError("usage")


def fine() -> str:
    return "fine"


def wrong(field: str) -> dict[str, Any]:
    return {"customer": "cus_1"} | {field: fails}


@pytest.mark.parametrize("field", ["customer", "value", "identifier"])
def test_what_cannot_be_worked_out_becomes_a_dead_letter_and_the_call_returns(
    make_agent: MakeAgent, field: str
) -> None:
    letters: list[DeadLetter] = []
    agent = make_agent(on_dead_letter=letters.append)
    call = metered("calls", agent=agent, **wrong(field))(fine)
    assert call() == "fine"
    assert agent.flush(20)
    (letter,) = letters
    assert letter.reason == "invalid"
    assert "KeyError('usage') is invalid" in letter.message


@pytest.mark.parametrize("field", ["customer", "value", "identifier"])
def test_in_a_test_it_raises_with_the_exception_as_its_cause(
    events: RecordedEvents, field: str
) -> None:
    call = metered("calls", **wrong(field))(fine)
    with pytest.raises(InvalidEventError, match=r"KeyError\('usage'\) is invalid") as caught:
        call()
    assert isinstance(caught.value.__cause__, KeyError)
    assert events.all == []


def test_without_a_customer_the_event_is_invalid(events: RecordedEvents) -> None:
    call = metered("calls")(fine)
    with pytest.raises(InvalidEventError, match="customer_id=None is invalid") as caught:
        call()
    assert caught.value.__cause__ is None


# -- the customer of a block -------------------------------------------------------------------


@metered("calls")
def call() -> None:
    pass


def test_the_customer_of_the_innermost_block_is_billed(events: RecordedEvents) -> None:
    with meter_agent.customer("outer"):
        call()
        with contextlib.suppress(LookupError), meter_agent.customer("inner"):
            call()
            raise LookupError
        call()
        metered("calls", customer="said")(lambda: None)()
    assert list(events.by_customer()) == ["outer", "inner", "said"]
    assert len(events.by_customer()["outer"]) == 2
    with pytest.raises(InvalidEventError):
        call()


def test_a_block_holds_for_the_tasks_that_start_in_it_and_for_no_other_thread(
    events: RecordedEvents,
) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        call()
        await asyncio.to_thread(call)

    async def serve(customer: str) -> None:
        with meter_agent.customer(customer):
            task = asyncio.create_task(work())
        await task

    async def main() -> None:
        await asyncio.gather(serve("cus_1"), serve("cus_2"))

    asyncio.run(main())
    assert {name: len(each) for name, each in events.by_customer().items()} == {
        "cus_1": 2,
        "cus_2": 2,
    }
    raised: list[BaseException] = []

    def other() -> None:
        try:
            call()
        except InvalidEventError as error:
            raised.append(error)

    with meter_agent.customer("cus_1"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(raised) == 1


def test_a_block_in_a_generator_that_is_closed_elsewhere_ends_without_a_complaint() -> None:
    async def stream() -> AsyncGenerator[int]:
        with meter_agent.customer("cus_1"):
            yield 1

    async def main() -> None:
        generator = stream()
        await asyncio.create_task(generator.__anext__())
        await asyncio.create_task(generator.aclose())

    asyncio.run(main())


# -- the guest ---------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["contextvars", "meter_agent._metered"])
def test_it_is_imported_when_it_is_first_used(module: str) -> None:
    script = f"""
import sys, meter_agent
before = {module!r} in sys.modules
meter_agent.metered, meter_agent.customer, meter_agent.MeteredCall
print(before, {module!r} in sys.modules, "metered" in vars(meter_agent))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.stdout.split() == ["False", "True", "True"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'meter_agent' has no attribute 'meterd'"):
        meter_agent.meterd  # noqa: B018
