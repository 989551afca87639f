"""ASGI: deliver when the application ends. Needs no framework.

uvicorn, gunicorn's uvicorn workers and granian end without `atexit`. They do tell the application,
by the lifespan protocol, and wait for its answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from meter_agent._agent import MeterAgent
from meter_agent._default import get_agent, reopen

__all__ = ["add_lifespan", "meter_agent_lifespan"]

_Application = Callable[[Any, Any, Any], Awaitable[None]]

# Applications of one process that share an agent: only the last one closes it. None: the default.
_serving: list[MeterAgent | None] = []


@asynccontextmanager
async def meter_agent_lifespan(
    _app: object = None, *, agent: MeterAgent | None = None
) -> AsyncIterator[None]:
    """Check the settings when the application starts, and deliver when it has ended.

    The agent is closed when the last of the applications that share it ends. The default agent is
    built anew, with the same settings, when an application starts once more.

    Args:
        _app: The application, as frameworks hand it over; not used.
        agent: None: the default agent.

    Raises:
        ConfigError: The environment does not describe an agent.
        ValueError: *agent* is closed already.
    """
    if agent is None:
        reopen()
    elif agent.closed:
        raise ValueError(f"agent={agent!r} is closed; build one for each start of the application")
    _serving.append(agent)
    try:
        yield
    finally:
        _serving.remove(agent)
        ended = get_agent() if agent is None else agent
        # The default agent may be served under its own name as well.
        if ended not in _serving and not (None in _serving and ended is get_agent()):
            await ended.aclose()


def add_lifespan(app: _Application, *, agent: MeterAgent | None = None) -> _Application:
    """Return *app*, which has no lifespan (Django's has none), with one that delivers.

    Args:
        app: An ASGI application. If it has a lifespan of its own, that one would not run any more:
            use `meter_agent_lifespan` inside of it.
        agent: None: the default agent.
    """

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        try:
            async with meter_agent_lifespan(app, agent=agent):
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except ValueError as error:  # wrong settings: an exception would only mean "no lifespan"
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    return application
