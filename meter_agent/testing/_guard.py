"""What keeps a test away from Stripe: no live key, no host but this one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from meter_agent._agent import MakePipeline, standing_on
from meter_agent._config import Config
from meter_agent.exceptions import MeterAgentError

__all__ = ["RefusedError", "environment", "offline", "refuse_live_key"]

_LIVE_KEY = re.compile(r"[sr]k_(?:org_)?live_")
_LEADS_AWAY = ("METER_AGENT_DISABLED", "METER_AGENT_SPOOL_DIR", "METER_AGENT_DEAD_LETTER_FILE")


class RefusedError(MeterAgentError, RuntimeError):
    """An agent was built, in a test, that could bill somebody.

    Not a `ConfigError`: `record()` must not take it for settings that are wrong and go on.
    """


@contextmanager
def offline() -> Iterator[None]:
    """Refuse, within the block, to build an agent with a live key or for a host that is not local.

    It is the building that is refused: `configure()`, `MeterAgent()`, or the first `record()` of
    the default agent. Agents that were built before are out of its reach. An agent with *disabled*
    may have any settings.

    Raises:
        RefusedError: Where the agent is built.
    """

    def wrap(make: MakePipeline) -> MakePipeline:
        return _checking(make, refuse_live_key, _refuse_other_hosts)

    with standing_on(wrap):
        yield


def refuse_live_key(config: Config) -> None:
    """Raise if *config* has a key that bills real customers, whether or not it would be sent."""
    __tracebackhide__ = True  # for pytest: what matters is who built the agent
    if config.disabled:
        return
    # The key of a file is only read where it would be used.
    key = config.api_key if config.sandbox_url else config.read_api_key()
    if key is not None and _LIVE_KEY.match(key):
        raise RefusedError(
            f"api_key={key!r} is a live key, and this is a test: unset METER_AGENT_API_KEY and"
            " STRIPE_API_KEY, or set a test key (sk_test_, rk_test_)"
        )


def _refuse_other_hosts(config: Config) -> None:
    __tracebackhide__ = True
    if not config.disabled and not config.is_local:
        raise RefusedError(
            f"an agent for {config.session_url} and {config.stream_url} was built in a test, which"
            " may bill on this host only: use meter_agent.testing.recording() or sandbox() (with"
            " pytest, the fixtures meter_events and meter_sandbox), or set"
            " METER_AGENT_SANDBOX_URL or METER_AGENT_DISABLED=true"
        )


def _checking(make: MakePipeline, *checks: Callable[[Config], None]) -> MakePipeline:
    def make_checked(config: Config, *arguments: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        for check in checks:
            check(config)
        return make(config, *arguments, **options)

    return make_checked


@contextmanager
def environment(sandbox_url: str) -> Iterator[None]:
    """Point what reads the environment at *sandbox_url*, child processes included.

    Variables that would have a test touch what outlives it are unset: a spool of the developer's
    machine, for one, holds events that are to be billed and not to be sent to a sandbox.
    """
    changed = dict.fromkeys(_LEADS_AWAY) | {"METER_AGENT_SANDBOX_URL": sandbox_url}
    before = {name: os.environ.get(name) for name in changed}
    with ExitStack() as restore:
        restore.callback(_set, before)
        _set(changed)
        yield


def _set(variables: dict[str, str | None]) -> None:
    for name, text in variables.items():
        if text is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = text
