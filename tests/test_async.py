"""The forms for asyncio, and how an agent knows that it was closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from meter_agent import Stats
from meter_agent._runtime import SystemRuntime
from tests.conftest import MakeAgent


def test_the_async_forms_do_the_same(make_agent: MakeAgent) -> None:
    async def use() -> Stats:
        async with make_agent(flush_interval_seconds=60.0) as agent:
            agent.record("tokens", "cus_1")
            assert await agent.aflush(20)
        return agent.stats()

    assert asyncio.run(use()).delivered == 1


def test_the_async_forms_need_none_of_the_event_loops_own_threads(make_agent: MakeAgent) -> None:
    agent = make_agent(flush_interval_seconds=60.0)
    release = threading.Event()

    async def use() -> Stats:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        hanging = loop.run_in_executor(None, release.wait, 20)
        agent.record("tokens", "cus_1")
        assert await agent.aflush(10)
        stats = await agent.aclose(10)
        assert not hanging.done()
        release.set()
        await hanging
        return stats

    assert asyncio.run(use()).delivered == 1


def test_an_aclose_that_nobody_waits_for_any_more_closes_all_the_same(
    make_agent: MakeAgent,
) -> None:
    agent = make_agent(flush_interval_seconds=60.0)

    async def use() -> None:
        agent.record("tokens", "cus_1")
        closing = asyncio.create_task(agent.aclose(20))
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing

    asyncio.run(use())
    assert agent.close(20).delivered == 1


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_where_no_thread_can_be_started_aclose_works_in_the_event_loops_own(
    make_agent: MakeAgent, error: Exception
) -> None:
    class Threadless(SystemRuntime):
        def start_thread(self, target: Callable[[], None], name: str) -> None:
            raise error

    agent = make_agent(runtime=Threadless())
    agent.record("tokens", "cus_1")
    assert asyncio.run(agent.aclose(20)).delivered == 1


def test_what_goes_wrong_beside_the_loop_is_raised_by_the_await(make_agent: MakeAgent) -> None:
    with pytest.raises(TypeError):
        asyncio.run(make_agent().aclose("soon"))  # type: ignore[arg-type]


def test_an_agent_knows_that_it_was_closed_also_in_a_forked_child(make_agent: MakeAgent) -> None:
    agent = make_agent()
    assert not agent.closed
    agent.close()
    assert agent.closed
    agent._pipeline.start_over_after_fork()
    assert agent.closed
