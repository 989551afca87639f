"""The default agent behind the module's functions, built from the environment on first use."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from meter_agent import _lifecycle
from meter_agent._agent import MeterAgent, build, refusing
from meter_agent._config import Config
from meter_agent._event import Label, Name, Value
from meter_agent._event_buffer import Record
from meter_agent._health import Health
from meter_agent._ledger import DropReason, Stats
from meter_agent._log import ERROR, WARNING, write
from meter_agent.exceptions import ConfigError, MeterAgentError

__all__ = [
    "close",
    "configure",
    "current_agent",
    "flush",
    "get_agent",
    "health",
    "record",
    "reopen",
    "set_aside",
    "stats",
]


class _Default:
    """Holds the default agent; *record* is its hot path, looked up once per call."""

    __slots__ = ("agent", "lock", "record", "refused", "trouble_told", "wrong")

    def __init__(self) -> None:
        # Re-entrant: a signal handler may record while this very thread builds the agent.
        self.lock = threading.RLock()
        self.agent: MeterAgent | None = None
        self.wrong: ConfigError | None = None
        self.record: Record = _record_first
        self.forget_refused()

    def forget_refused(self) -> None:
        # Events recorded before an agent could be built; it takes their count over.
        self.refused = 0
        self.trouble_told = False


def _record_first(*event: Any, **options: Any) -> bool:
    try:
        agent = _agent_or_refusal()
    except MeterAgentError:
        raise  # of `meter_agent.testing`: in a test, nobody is billed
    except Exception as error:  # noqa: BLE001 - no descriptor, no memory, a chroot without us
        return _refuse_for_now(error)
    return agent.record(*event, **options)


def _refuse_for_now(error: Exception) -> bool:
    # The next call tries again: the trouble may pass. False, always.
    try:
        with _default.lock:
            told, _default.trouble_told = _default.trouble_told, True
            if _default.agent is None:
                _default.refused += 1
            else:  # another thread has been luckier meanwhile
                _default.agent._pipeline.count_refused(DropReason.NOT_CONFIGURED, 1)  # noqa: SLF001
        if not told:
            atexit.register(_tell_refused)
            write("meter_agent.not_configured", ERROR, error=f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001, S110 - nor is there memory, or stack, for this
        pass
    return False


def _tell_refused() -> None:
    if _default.refused:
        write(
            "meter_agent.events_dropped",
            WARNING,
            reason=DropReason.NOT_CONFIGURED.value,
            events=_default.refused,
        )


_default = _Default()


def record(
    event_name: Name,
    customer_id: Name,
    value: Value = 1,
    *,
    timestamp: datetime | float | None = None,
    identifier: Name | None = None,
    payload: Mapping[str, Label] | None = None,
) -> bool:
    """Record one meter event with the default agent; see `MeterAgent.record`.

    The first call builds the agent from the environment. If that fails, for want of an API key for
    example, this returns False, the event is counted under `"not_configured"`, and the log says
    once what to set. If it fails for want of memory or of descriptors, the next call tries again.

    Example:
        >>> import meter_agent
        >>> meter_agent.record("api_requests", "cus_123", 1)  # doctest: +SKIP
        True
    """
    return _default.record(
        event_name,
        customer_id,
        value,
        timestamp=timestamp,
        identifier=identifier,
        payload=payload,
    )


def flush(timeout: float | None = None) -> bool:
    """Send what the default agent holds; see `MeterAgent.flush`. True when there is no agent."""
    agent = _default.agent
    return True if agent is None else agent.flush(timeout)


def close(timeout: float | None = None) -> Stats:
    """Close the default agent; see `MeterAgent.close`. `configure()` sets up another one."""
    agent = _default.agent
    return _stats_without_agent() if agent is None else agent.close(timeout)


def stats() -> Stats:
    """Return the ledger of the default agent; all zero before its first use."""
    agent = _default.agent
    return _stats_without_agent() if agent is None else agent.stats()


def _stats_without_agent() -> Stats:
    refused = _default.refused
    dropped = {DropReason.NOT_CONFIGURED.value: refused} if refused else {}
    return Stats(recorded=refused, dropped=dropped)


def health() -> Health:
    """Return how the default agent is doing; see `MeterAgent.health`.

    Before its first use all is well.

    Example:
        >>> import meter_agent
        >>> meter_agent.health().alive
        True
    """
    agent = _default.agent
    return Health() if agent is None else agent.health()


def configure(config: Config | None = None, **settings: Any) -> MeterAgent:
    """Build the default agent anew and return it.

    The agent it replaces sends what it holds in the background, and what is still recorded with it.

    Args:
        config: The settings. None: read from the environment.
        **settings: As for `MeterAgent`, callbacks included; they win over *config*.

    Raises:
        ConfigError: The settings are wrong; the agent before, if any, stays in place.
    """
    agent = MeterAgent(config, **settings)
    with _default.lock:
        before = _default.agent
        _install(agent)
        _default.wrong = None
    if before is not None:
        before._pipeline.retire()  # noqa: SLF001
    return agent


def get_agent() -> MeterAgent:
    """Return the default agent, built from the environment on first use.

    Called at the start of a server, it imports there what sending needs.

    Raises:
        ConfigError: The environment does not describe an agent. Mend it and call `configure()`.
    """
    agent = _agent_or_refusal()
    if _default.wrong is not None:
        raise _default.wrong
    agent._pipeline.load()  # noqa: SLF001
    return agent


def current_agent() -> MeterAgent | None:
    """Return the default agent as it is, closed or not; None before its first use."""
    return _default.agent


def reopen() -> MeterAgent:
    """Return the default agent; if it was closed, a new one with its settings and callbacks.

    For hosts that start an application again in the same process, as test clients do.

    Raises:
        ConfigError: As `get_agent()`.
    """
    agent = get_agent()
    if not agent.closed:
        return agent
    on_dead_letter, on_error, on_drop = agent._pipeline.callbacks  # noqa: SLF001
    return configure(
        agent.config, on_dead_letter=on_dead_letter, on_error=on_error, on_drop=on_drop
    )


@contextmanager
def set_aside() -> Iterator[None]:
    """Within the block there is no default agent at first; afterwards the one before is it again.

    Neither is closed or told of the other.
    """
    state = _default
    with state.lock:
        before = state.agent, state.wrong, state.record
        state.agent, state.wrong, state.record = None, None, _record_first
    try:
        yield
    finally:
        with state.lock:
            state.agent, state.wrong, state.record = before


def _agent_or_refusal() -> MeterAgent:
    _lifecycle.call_after_fork(_start_over_after_fork)
    with _default.lock:
        if _default.agent is not None:
            return _default.agent
        try:
            # Not `MeterAgent()`, which imports what sending needs: `record()` may be the caller.
            agent = build(Config.from_env())
        except ConfigError as error:
            # `record()` never raises: who misses events finds the line below, and the count.
            _default.wrong = error
            agent = refusing(DropReason.NOT_CONFIGURED)
        _install(agent)
    # Outside the lock: a logging handler may record, in a thread that holds the handler's own lock.
    if _default.wrong is not None:
        write("meter_agent.not_configured", ERROR, error="; ".join(_default.wrong.problems))
    else:
        agent._pipeline.tell_unknown_variables()  # noqa: SLF001
    return agent


def _install(agent: MeterAgent) -> None:
    # Called with the lock held.
    _default.agent = agent
    _default.record = agent.record
    agent._pipeline.count_refused(DropReason.NOT_CONFIGURED, _default.refused)  # noqa: SLF001
    _default.forget_refused()


def _start_over_after_fork() -> None:
    # A thread of the parent may have held it at the moment of the fork.
    _default.lock = threading.RLock()
    _default.forget_refused()
