"""The facade: what product code holds in its hands."""

from __future__ import annotations

import dataclasses
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from meter_agent._config import Config
from meter_agent._dead_letters import DeadLetter
from meter_agent._event import Label, Name, Value
from meter_agent._hand_over import OnDrop
from meter_agent._health import Health, Room
from meter_agent._ledger import DropReason, Stats
from meter_agent._pipeline import Pipeline
from meter_agent._runtime import Runtime, SystemRuntime
from meter_agent._secret import shown
from meter_agent.exceptions import ConfigError, MeterAgentError

if TYPE_CHECKING:
    from datetime import datetime

    from requests.adapters import BaseAdapter

__all__ = ["MeterAgent", "adopt", "build", "refusing", "room", "standing_on"]

_Result = TypeVar("_Result")

_TIMEOUT_MAX = 1e8
"""Three years, in seconds: a lock can wait no longer than 292 of them."""

MakePipeline = Callable[..., Pipeline]
_make_pipeline: MakePipeline = Pipeline


class MeterAgent:
    """Records usage and ships it to Stripe's meter event stream in the background.

    No thread starts before the first event. What sending needs (requests, ssl) is imported here,
    by the caller. At the end of the process the agent drains for at most
    *shutdown_timeout_seconds*; a `with` block or `close()` does it sooner.

    Args:
        config: The settings. None: read from the environment.
        on_dead_letter: Called with a `DeadLetter` for each event that cannot be billed, once.
        on_error: Called with a `MeterAgentError` for each request that has to be made again.
        on_drop: Called with a list of events and the reason (`"overflow"`, `"shutdown"`) when
            events were dropped: each event as it would have gone over the wire. At most 1 000 of
            them wait for the call; further ones are counted in `stats().dropped` only.
        **settings: Any field of `Config`; they win over *config* and over the environment.

    The callbacks are called from a sender thread, or from the one that closes the agent, outside
    every lock. What they raise is logged and goes no further. They may record, flush and close;
    there, `flush()` and `close()` do not wait. A coroutine function is refused: nobody awaits it.

    Raises:
        ConfigError: One or more settings are wrong; the message lists all of them. Or *config* is
            no `Config`, or a callback cannot be called.

    Example:
        >>> from meter_agent import MeterAgent
        >>> from meter_agent.sandbox.server import SandboxServer
        >>> with SandboxServer() as server, MeterAgent(sandbox_url=server.url) as agent:
        ...     agent.record("api_requests", "cus_123", 3)
        True
        >>> agent.stats().delivered
        1
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
        on_error: Callable[[MeterAgentError], None] | None = None,
        on_drop: OnDrop | None = None,
        **settings: Any,
    ) -> None:
        _refuse_wrong_arguments(
            config, on_dead_letter=on_dead_letter, on_error=on_error, on_drop=on_drop
        )
        from_environment = config is None
        if config is None:
            config = Config.from_env(**settings)
        elif settings:
            config = dataclasses.replace(config, **settings)
        self._assemble(config, on_dead_letter=on_dead_letter, on_error=on_error, on_drop=on_drop)
        self._pipeline.load()
        if from_environment:
            self._pipeline.tell_unknown_variables()

    def _assemble(
        self,
        config: Config,
        *,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
        on_error: Callable[[MeterAgentError], None] | None = None,
        on_drop: OnDrop | None = None,
        keep_dropped: bool = True,
        runtime: Runtime | None = None,
        open_adapter: Callable[[], BaseAdapter] | None = None,
        refusal: DropReason | None = None,
    ) -> None:
        self._config = config
        self._runtime = runtime or SystemRuntime()
        self._pipeline = _make_pipeline(
            config,
            self._runtime,
            on_dead_letter=on_dead_letter,
            on_error=on_error,
            on_drop=on_drop,
            keep_dropped=keep_dropped,
            open_adapter=open_adapter,
            refusal=DropReason.DISABLED if config.disabled and not refusal else refusal,
        )
        self._record = self._pipeline.recorder(strict=config.strict)
        if type(self).record is MeterAgent.record:
            # The closure in the method's place saves a call. Who keeps only `agent.record` keeps
            # the agent: otherwise it would be collected, and retired, under its caller.
            self._record.agent = self  # type: ignore[attr-defined]
            self.record = self._record  # type: ignore[method-assign]
        # Not at exit: the exit hook waits for the drain, this one does not.
        weakref.finalize(self, self._pipeline.retire).atexit = False

    def record(
        self,
        event_name: Name,
        customer_id: Name,
        value: Value = 1,
        *,
        timestamp: datetime | float | None = None,
        identifier: Name | None = None,
        payload: Mapping[str, Label] | None = None,
    ) -> bool:
        """Record one meter event. Fire and forget: no I/O, no waiting, no exception.

        May be called from any thread, signal handler, `__del__`, logging handler, greenlet, async
        function and forked child.

        Args:
            event_name: The meter's event name, a str or UUID: at most 100 characters, without
                control or invisible characters and without blanks around it.
            customer_id: The Stripe customer, `cus_…`; same rule.
            value: How much. A whole number of any type, a `Decimal` or a numeric str, exact in 15
                digits of which at most 12 are decimals; or a float, which is rounded to that. A
                numpy scalar counts as what it is. Negative values are corrections.
            timestamp: When it was used: an aware datetime or unix seconds, at most 35 days back and
                5 minutes ahead. Default: now.
            identifier: Names this event for Stripe, which bills the same identifier once in 24
                hours; same rule as *event_name*. Default: a UUID of its own.
            payload: Further payload keys, from str to str or another plain scalar: a number has the
                text that it has as a value, True is `true`, None is `null`, and a UUID its 36
                characters. Copied by the call.

        Returns:
            True: the event is held, and can only end as delivered, dead-lettered or uncertain; or,
            without a spool, be dropped at shutdown, or evicted by *overflow* `drop_oldest`. False:
            it was refused (buffer full, agent closed or disabled) and counted in `stats().dropped`.

        Raises:
            InvalidEventError: In strict mode only. Otherwise an invalid event returns True and
                becomes a dead letter that names field, value and rule.

        Example:
            >>> agent.record("output_tokens", "cus_123", 512)  # doctest: +SKIP
            True
        """
        return self._record(
            event_name,
            customer_id,
            value,
            timestamp=timestamp,
            identifier=identifier,
            payload=payload,
        )

    def flush(self, timeout: float | None = None) -> bool:
        """Send what waits now, without waiting for full batches.

        Args:
            timeout: Seconds to wait at most. None: as long as it takes, also through an outage.

        Returns:
            True: everything recorded before the call is settled (delivered, dead-lettered,
            uncertain or dropped). False: the time was over first, or the agent closed meanwhile, or
            a signal handler called that struck this thread under a lock of the agent.
        """
        return self._pipeline.flush(None if timeout is None else min(timeout, _TIMEOUT_MAX))

    def close(self, timeout: float | None = None) -> Stats:
        """Refuse new events, send what waits, end the sender threads.

        Idempotent, and callable from several threads. Returns within *timeout* + 0.5 seconds
        whatever the network does. What is unsent by then is dropped and counted under `"shutdown"`;
        what Stripe may have received is `uncertain`, and written to the dead-letter file if there
        is one.

        Args:
            timeout: Seconds. None: the setting *shutdown_timeout_seconds*.

        Returns:
            The final ledger; as it stands, where a signal handler calls that struck this thread
            under a lock of the agent. Then a thread of its own ends what this call began.
        """
        if timeout is None:
            timeout = self._config.shutdown_timeout_seconds
        deadline = self._runtime.monotonic() + min(max(0.0, timeout), _TIMEOUT_MAX)
        self._pipeline.begin_close(deadline)
        return self._pipeline.finish_close(deadline)

    def stats(self) -> Stats:
        """Return a snapshot of the ledger. Cheap; callable from any thread."""
        return self._pipeline.stats()

    def health(self) -> Health:
        """Return how the agent is doing, for health endpoints and probes.

        Cheap; callable from any thread. It makes no request; with a spool it lists its directory.
        Neither `alive` nor `ready` depends on Stripe: see `Health`.

        Example:
            >>> agent.health().as_dict()  # doctest: +SKIP
            {'alive': True, 'ready': True, 'degraded': False, 'problems': {}}
        """
        return self._pipeline.health()

    async def aflush(self, timeout: float | None = None) -> bool:
        """Do as `flush()` does, without blocking the event loop."""
        return await self._beside_the_loop(lambda: self.flush(timeout))

    async def aclose(self, timeout: float | None = None) -> Stats:
        """Do as `close()` does, without blocking the event loop."""
        return await self._beside_the_loop(lambda: self.close(timeout))

    async def _beside_the_loop(self, call: Callable[[], _Result]) -> _Result:
        # Not the loop's own executor: when requests hang in all of its threads, which is a common
        # reason to shut down, the events would wait behind them until the process is killed.
        import asyncio  # noqa: PLC0415 - only who calls this has paid for it already
        from concurrent.futures import Future  # noqa: PLC0415

        done: Future[_Result] = Future()
        done.set_running_or_notify_cancel()  # who cancels the wait does not cancel the work

        def work() -> None:
            try:
                done.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised again by the `await`
                done.set_exception(error)

        try:
            self._runtime.start_thread(work, "meter-agent-async")
        except (RuntimeError, MemoryError):
            work()  # out of threads: to block the loop is better than to lose the events
        return await asyncio.wrap_future(done)

    @property
    def closed(self) -> bool:
        """Whether `close()` was called: what is recorded now is refused."""
        return self._pipeline.closed

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self._config

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<MeterAgent recorded={stats.recorded} delivered={stats.delivered} "
            f"buffered={stats.buffered} in_flight={stats.in_flight}>"
        )


def build(config: Config, **seams: Any) -> MeterAgent:
    """Return an agent with another runtime or network adapter, for tests and simulations."""
    agent = MeterAgent.__new__(MeterAgent)
    agent._assemble(config, **seams)  # noqa: SLF001
    return agent


def _refuse_wrong_arguments(config: object, **callbacks: object) -> None:
    problems = [
        f"{name}={shown(callback)}: must be a function that is called, and not awaited:"
        " a coroutine function would never run"
        for name, callback in callbacks.items()
        if callback is not None
        and (not callable(callback) or inspect.iscoroutinefunction(callback))
    ]
    if config is not None and not isinstance(config, Config):
        rule = "must be a Config; single settings are given by keyword, api_key=... for example"
        problems.append(f"config={shown(config)}: {rule}")
    if problems:
        raise ConfigError(problems)


@contextmanager
def standing_on(wrap: Callable[[MakePipeline], MakePipeline]) -> Iterator[None]:
    """Within the block every agent that is built stands on what the wrapped maker returns.

    For `meter_agent.testing`: agents are built by the application under test, so that there is no
    constructor to hand something else to.
    """
    global _make_pipeline  # noqa: PLW0603
    before = _make_pipeline
    _make_pipeline = wrap(before)
    try:
        yield
    finally:
        _make_pipeline = before


def refusing(reason: DropReason) -> MeterAgent:
    """Return an agent that refuses and counts every event."""
    return build(Config(disabled=True), refusal=reason)


def room(agent: MeterAgent) -> Room:
    """Return how much of what the waiting events of *agent* may take up is taken."""
    return agent._pipeline.room()  # noqa: SLF001


def recover_all(agent: MeterAgent) -> bool:
    """Have *agent* take over all that dead processes left in its spool.

    Also segments of version 1, which do not say for whom their events are: who calls this says it.

    Returns:
        True: nothing is left that could be taken. False: there may be more, ask again.
    """
    return agent._pipeline.recover_all()  # noqa: SLF001


def adopt(agent: MeterAgent) -> bool:
    """Have *agent* take over what dead processes left in its spool before anything else is asked.

    Returns:
        True: done. False: a sender thread is just doing it, ask again.
    """
    return agent._pipeline.adopt()  # noqa: SLF001
