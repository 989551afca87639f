"""A local Stripe for one test, the agents that talk to it, and what they leave behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from meter_agent._agent import MakePipeline, standing_on
from meter_agent._config import Config
from meter_agent._default import configure, get_agent, set_aside, stats
from meter_agent._ledger import DropReason, Stats
from meter_agent._pipeline import Pipeline
from meter_agent.testing._events import Event, Events
from meter_agent.testing._guard import environment, offline, refuse_live_key

if TYPE_CHECKING:
    from meter_agent.sandbox import Fault, RequestLog, Sandbox
    from meter_agent.sandbox.server import SandboxServer

__all__ = ["LeftBehindError", "MeterSandbox", "sandbox", "start_server"]

HASTE: dict[str, Any] = {
    "strict": True,
    "flush_interval_seconds": 0.02,
    "connect_timeout_seconds": 2.0,
    "read_timeout_seconds": 5.0,
    "retry_base_seconds": 0.01,
    "retry_max_seconds": 0.05,
    "shutdown_timeout_seconds": 5.0,
}
"""The default agent of a test: what is a wait in production is short."""

_PATIENCE_SECONDS = 5.0
_THREAD = "meter-agent-"


class LeftBehindError(AssertionError):
    """A test ended with events that were not delivered, or with agents or threads that go on."""


class SandboxClock(NamedTuple):
    """The clock of the local Stripe. The agents' own clocks are the system's."""

    sandbox: Sandbox

    def now(self) -> float:
        """Return unix seconds."""
        return self.sandbox.now()

    def advance(self, seconds: float) -> None:
        """Move it; 900 seconds end every session, 86 400 make identifiers forgotten."""
        self.sandbox.advance(seconds)


class MeterSandbox(Events):
    """A local Stripe over HTTP, and what it has billed. Made by `sandbox()`.

    Delivery takes place in the background: call `meter_agent.flush(10)` before asking.
    """

    def __init__(self, server: SandboxServer) -> None:
        self.url = server.url
        """Where it listens."""
        self.sandbox = server.sandbox
        """The whole of it, with sessions, ledger and settings."""
        self.clock = SandboxClock(server.sandbox)
        """Its clock, with `now()` and `advance(seconds)`."""
        self.allow_undelivered = False
        """True: events that could not be delivered when the block ends are no error."""

    @property
    def all(self) -> list[Event]:
        """Every event that was accepted so far, in order."""
        return [
            Event(
                event_name=row["event_name"],
                customer=row["customer"],
                value=Decimal(row["value"]),
                identifier=row["identifier"],
                timestamp=datetime.fromisoformat(row["timestamp"]),
                payload=row["payload"],
            )
            for row in self.sandbox.ledger()
        ]

    @property
    def requests(self) -> list[RequestLog]:
        """The requests that came, in order."""
        return self.sandbox.requests

    def inject(self, fault: Fault | str, **fields: Any) -> None:
        """Have something go wrong from now on.

        Args:
            fault: A `meter_agent.sandbox.Fault`, or its kind.
            **fields: The other fields of the fault, if *fault* is its kind.

        Raises:
            ValueError: There is no such fault.

        Example:
            >>> from meter_agent.testing import sandbox
            >>> with sandbox() as stripe:
            ...     stripe.inject("status", status=503, times=2)  # the next two requests
            ...     stripe.inject("reset", when="after", times=1)  # one answer gets lost
            ...     _ = meter_agent.record("api_requests", "cus_123")
            ...     _ = meter_agent.flush(10)
            >>> stripe.total("api_requests")
            Decimal('1')
        """
        from meter_agent.sandbox import Fault  # noqa: PLC0415 - brings requests

        made = Fault(cast("Any", fault), **fields) if isinstance(fault, str) else fault
        self.sandbox.add_fault(made)

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self.sandbox.clear_faults()

    def _remarks(self) -> list[str]:
        held = stats()
        waiting = held.buffered + held.in_flight
        remarks = [f"rejected: {row['message']}" for row in self.sandbox.rejected]
        if held.dead_lettered:
            remarks.append(f"refused: {held.dead_lettered} (last error: {held.last_error})")
        if waiting:
            remarks.append(
                f"the default agent still holds {waiting}: call meter_agent.flush(10) before"
                f" (last error: {held.last_error})"
            )
        return remarks


def start_server() -> SandboxServer:
    """Start a local Stripe on a free port.

    Raises:
        ImportError: The extra *sandbox* is not installed.
    """
    try:
        from meter_agent.sandbox.server import SandboxServer  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            f"the sandbox needs {error.name}: pip install 'meter-agent[sandbox]'"
        ) from error
    return SandboxServer().start()


@contextmanager
def sandbox(server: SandboxServer | None = None, **settings: Any) -> Iterator[MeterSandbox]:
    """Run a local Stripe within the block, and send it what all agents record.

    The default agent is replaced by one with *settings*, and is back afterwards. It is strict and
    waits for nothing long; any setting may be given to change that. `METER_AGENT_SANDBOX_URL` is
    set within the block, so that agents that the application builds, and those of child processes,
    find the local Stripe by themselves.

    At the end the default agent is closed, and it is an error if an event could not be delivered,
    if an agent other than the default one was not closed, or if a thread of one goes on. Nothing is
    looked for when the block ends with an exception.

    Args:
        server: One that is started, to be used again; it is reset. None: one for this block alone.
        **settings: For the default agent, as for `configure()`.

    Raises:
        ConfigError: The settings are wrong.
        RefusedError: A live key is set, or an agent for another host is built within the block.
        LeftBehindError: At the end, as told above.
        ImportError: The extra *sandbox* is not installed.
    """
    built: list[Pipeline] = []
    with ExitStack() as stack:
        if server is None:
            server = start_server()
            stack.callback(server.stop)
        server.sandbox.reset()
        stripe = MeterSandbox(server)
        watch = _watch(built, server.sandbox)
        for setting in (environment(stripe.url), offline(), standing_on(watch), set_aside()):
            stack.enter_context(setting)
        threads = _threads()
        try:
            configure(sandbox_url=stripe.url, **(HASTE | settings))
            yield stripe
        except BaseException:
            _close(built, at_once=True)
            server.disconnect()
            raise
        _end(stripe, server, built, threads)


def _watch(built: list[Pipeline], stripe: Sandbox) -> Callable[[MakePipeline], MakePipeline]:
    def wrap(make: MakePipeline) -> MakePipeline:
        def make_watched(config: Config, *arguments: Any, **options: Any) -> Pipeline:
            refuse_live_key(config)
            pipeline = make(config, *arguments, **options)
            if not config.disabled:
                built.append(pipeline)
                stripe.add_payload_keys(_payload_keys(config))
            return pipeline

        return make_watched

    return wrap


def _payload_keys(config: Config) -> dict[str, dict[str, str]]:
    """Return where the agent writes; the sandbox looks there, as the meters would."""
    default, by_event = config.encoder_keys
    return {name: keys._asdict() for name, keys in ({"": default} | by_event).items()}


def _end(
    stripe: MeterSandbox,
    server: SandboxServer,
    built: list[Pipeline],
    threads: set[threading.Thread],
) -> None:
    default = get_agent()._pipeline  # noqa: SLF001 - the application may have replaced it
    forgotten = [
        pipeline
        for pipeline in built
        if not (pipeline.closed or pipeline.retired or pipeline is default)
    ]
    final = _close(built, at_once=stripe.allow_undelivered)
    server.disconnect()  # a sender that waits for an answer goes on, and ends
    problems = [] if stripe.allow_undelivered else _undelivered(final)
    if forgotten:
        problems.append(
            f"{len(forgotten)} agent(s) built in this test were not closed: close each one where"
            " the application shuts down, or use it in a `with` block"
        )
    leaked = _going_on(threads)
    if leaked:
        names = ", ".join(sorted(thread.name for thread in leaked))
        problems.append(f"{len(leaked)} thread(s) go on after their agents were closed: {names}")
    if problems:
        raise LeftBehindError("\n".join(problems))


def _close(built: list[Pipeline], *, at_once: bool) -> list[Stats]:
    """Close all at the same time, each within its own *shutdown_timeout_seconds*."""
    now = time.monotonic()
    ends = [
        (pipeline, now + (0.0 if at_once else pipeline.shutdown_timeout_seconds))
        for pipeline in built
    ]
    for pipeline, deadline in ends:
        pipeline.begin_close(deadline)
    return [pipeline.finish_close(deadline) for pipeline, deadline in ends]


def _undelivered(final: list[Stats]) -> list[str]:
    problems = []
    for each in final:
        dropped = each.dropped.get(DropReason.SHUTDOWN.value, 0)
        left = each.buffered + each.in_flight + each.uncertain + dropped
        if left:
            problems.append(
                f"{left} of {each.recorded} event(s) were not delivered when the test ended"
                f" (uncertain={each.uncertain}, last error: {each.last_error}). Call clear_faults()"
                " and meter_agent.flush(10) before, or set allow_undelivered = True on the sandbox"
                " if that is what the test is about"
            )
    return problems


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(_THREAD)}


def _going_on(before: set[threading.Thread]) -> set[threading.Thread]:
    """Return the threads that are still there after a while; they do not end at once."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for thread in _threads() - before:
        thread.join(max(0.0, deadline - time.monotonic()))
    return _threads() - before
