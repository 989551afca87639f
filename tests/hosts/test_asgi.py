"""The lifespan for itself: who closes which agent, and when."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import meter_agent
from meter_agent import MeterAgent
from meter_agent.integrations.asgi import add_lifespan, meter_agent_lifespan
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent
from tests.hosts.servers import customers
from tests.patience import PATIENCE_SECONDS


def serve(application: Callable[..., Awaitable[None]], *call: Any) -> None:
    async def run() -> None:
        await application(*call)

    asyncio.run(run())


@pytest.fixture
def default(url: str) -> MeterAgent:
    return meter_agent.configure(sandbox_url=url, flush_interval_seconds=60)


def test_the_default_agent_is_closed_when_the_application_has_ended(
    sandbox: Sandbox, default: MeterAgent
) -> None:
    async def serve() -> None:
        async with meter_agent_lifespan():
            meter_agent.record("tokens", "cus_1")
        assert default.closed

    asyncio.run(serve())
    assert customers(sandbox) == {"cus_1": 1}


def test_it_is_closed_also_when_the_application_fails(
    sandbox: Sandbox, default: MeterAgent
) -> None:
    async def serve() -> None:
        async with meter_agent_lifespan():
            meter_agent.record("tokens", "cus_1")
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(serve())
    assert customers(sandbox) == {"cus_1": 1}


def test_a_default_agent_that_was_replaced_meanwhile_is_the_one_that_is_closed(
    sandbox: Sandbox, default: MeterAgent, url: str
) -> None:
    async def serve() -> MeterAgent:
        async with meter_agent_lifespan():
            second = meter_agent.configure(sandbox_url=url, flush_interval_seconds=60)
            meter_agent.record("tokens", "cus_1")
        return second

    assert asyncio.run(serve()).closed
    assert customers(sandbox) == {"cus_1": 1}


def test_an_application_that_starts_again_is_billed_again(
    sandbox: Sandbox, default: MeterAgent
) -> None:
    async def serve(customer: str) -> None:
        async with meter_agent_lifespan():
            assert meter_agent.record("tokens", customer)

    for customer in ("first", "second"):
        asyncio.run(serve(customer))
    assert customers(sandbox) == {"first": 1, "second": 1}


def test_of_two_applications_that_share_an_agent_the_last_to_end_closes_it(
    sandbox: Sandbox, default: MeterAgent
) -> None:
    async def serve() -> None:
        async with meter_agent_lifespan("first"):
            async with meter_agent_lifespan("second"):
                pass
            assert meter_agent.record("tokens", "cus_1")
        assert default.closed

    asyncio.run(serve())
    assert customers(sandbox) == {"cus_1": 1}


@pytest.mark.parametrize("named", ["first", "second"])
def test_the_default_agent_may_be_shared_under_its_own_name_too(
    default: MeterAgent, named: str
) -> None:
    def agent_of(application: str) -> MeterAgent | None:
        return default if application == named else None

    async def serve() -> None:
        async with meter_agent_lifespan("first", agent=agent_of("first")):
            async with meter_agent_lifespan("second", agent=agent_of("second")):
                pass
            assert not default.closed
        assert default.closed

    asyncio.run(serve())


def test_an_agent_of_ones_own_is_closed_and_the_default_one_is_left_alone(
    sandbox: Sandbox, default: MeterAgent, make_agent: MakeAgent
) -> None:
    agent = make_agent(flush_interval_seconds=60)

    async def serve() -> None:
        async with meter_agent_lifespan(agent=agent):
            agent.record("tokens", "cus_1")

    asyncio.run(serve())
    assert (agent.closed, default.closed) == (True, False)
    assert customers(sandbox) == {"cus_1": 1}
    with pytest.raises(ValueError, match="is closed; build one for each start"):
        asyncio.run(serve())


def test_the_event_loop_runs_on_while_the_agent_closes(
    sandbox: Sandbox, default: MeterAgent
) -> None:
    sandbox.add_fault(Fault("delay", seconds=0.3))

    async def serve() -> int:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while not default.stats().delivered:
                turns += 1
                await asyncio.sleep(0.001)

        async with meter_agent_lifespan():
            meter_agent.record("tokens", "cus_1")
            turning = asyncio.create_task(turn())
        await turning
        return turns

    assert asyncio.run(serve()) > 10


def test_everything_but_the_lifespan_passes_through_to_the_application() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    async def channel(*_message: Any) -> None:
        raise AssertionError("nobody should be told anything")

    scope = {"type": "websocket"}
    serve(add_lifespan(app), scope, channel, channel)
    assert seen == [(scope, channel, channel)]


def test_an_added_lifespan_answers_at_the_start_and_only_after_everything_was_delivered(
    sandbox: Sandbox, default: MeterAgent
) -> None:
    told: list[tuple[str, int]] = []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("this application knows no lifespan")

    async def receive() -> dict[str, str]:
        meter_agent.record("tokens", f"cus_{len(told)}")
        return {"type": "lifespan.shutdown" if told else "lifespan.startup"}

    async def send(message: dict[str, str]) -> None:
        told.append((message["type"], sandbox.totals()["accepted"]))

    serve(add_lifespan(app), {"type": "lifespan"}, receive, send)
    assert told == [("lifespan.startup.complete", 0), ("lifespan.shutdown.complete", 2)]


def test_an_added_lifespan_refuses_to_start_with_wrong_settings() -> None:
    told: list[dict[str, str]] = []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("this application knows no lifespan")

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, str]) -> None:
        told.append(message)

    serve(add_lifespan(app), {"type": "lifespan"}, receive, send)
    assert [message["type"] for message in told] == ["lifespan.startup.failed"]
    assert "METER_AGENT_API_KEY" in told[0]["message"]


def test_importing_the_package_imports_no_integration() -> None:
    script = "import sys, meter_agent; print([m for m in sys.modules if 'integrations' in m])"
    assert _python(script).stdout.strip() == "[]"


def test_the_one_for_asgi_needs_no_framework(tmp_path: Path) -> None:
    for name in ("starlette", "uvicorn", "fastapi"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not installed')")
    done = _python("import meter_agent.integrations.asgi", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_one_for_celery_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "celery.py").write_text("raise ImportError('not installed')")
    done = _python("import meter_agent.integrations.celery", cwd=tmp_path)
    assert done.returncode == 1
    assert "meter_agent.integrations.celery needs the package 'celery'" in done.stderr


def _python(script: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
