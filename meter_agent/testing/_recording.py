"""Agents that keep in memory what they would send."""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, cast

from meter_agent._agent import MakePipeline, standing_on
from meter_agent._config import Config
from meter_agent._default import configure, set_aside
from meter_agent._event import EventEncoder, Label, MeterEvent, Name, PayloadKeys
from meter_agent._health import Health, Room, diagnose
from meter_agent._ledger import DropReason, Stats
from meter_agent._runtime import Runtime
from meter_agent.testing._events import Event, Events
from meter_agent.testing._guard import environment, refuse_live_key

__all__ = ["RecordedEvents", "recording"]

_NOBODY = "http://127.0.0.1:9"
"""The discard port: where a child process of the test finds no Stripe."""


class RecordedEvents(Events):
    """What was recorded within `recording()`, by whichever agent."""

    def __init__(self) -> None:
        # Re-entrant: a signal handler or `__del__` may record within `record()`.
        self._lock = threading.RLock()
        self._billed: dict[str, Event] = {}
        self._absorbed: list[Event] = []

    @property
    def all(self) -> list[Event]:
        """Every event so far that Stripe would bill, in order."""
        with self._lock:
            return list(self._billed.values())

    @property
    def absorbed(self) -> list[Event]:
        """Events whose identifier had come before: Stripe takes them and bills nothing."""
        with self._lock:
            return list(self._absorbed)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._billed.clear()
            self._absorbed.clear()

    def _add(self, event: Event) -> None:
        with self._lock:
            if self._billed.setdefault(event.identifier, event) is not event:
                self._absorbed.append(event)

    def _remarks(self) -> list[str]:
        return [
            f"absorbed, because identifier={event.identifier!r} had come before:"
            f" {event.event_name!r} {event.customer!r} {event.value}"
            for event in self.absorbed
        ]


@contextmanager
def recording(**settings: Any) -> Iterator[RecordedEvents]:
    """Keep in memory, within the block, what all agents would send.

    The default agent is replaced by one with *settings*, and is back afterwards. It is built from
    the environment, and so is any other agent that the application builds within the block by
    `configure()` or `MeterAgent()`: both record here. None of them has a thread, a file or a
    connection, `flush()` has nothing to wait for, and an invalid event raises `InvalidEventError`
    whatever the setting *strict* says.

    An agent that was built before, other than the default one, sends as ever. What another process
    records is not seen, and goes nowhere.

    Args:
        **settings: For the default agent, as for `configure()`.

    Raises:
        ConfigError: The settings are wrong.
        RefusedError: A live key is set, here or for an agent that is built within the block.

    Example:
        >>> from meter_agent.testing import recording
        >>> with recording() as events:
        ...     _ = meter_agent.record("output_tokens", "cus_123", 512)
        ...     _ = meter_agent.record("output_tokens", "cus_123", "0.5")
        >>> events.total("output_tokens")
        Decimal('512.5')
    """
    events = RecordedEvents()

    def wrap(_make: MakePipeline) -> MakePipeline:
        def make(config: Config, runtime: Runtime, **options: Any) -> Any:
            refuse_live_key(config)
            return _MemoryPipeline(events, config, runtime, **options)

        return cast("MakePipeline", make)

    with environment(_NOBODY), standing_on(wrap), set_aside():
        configure(**settings)
        yield events


class _MemoryPipeline:
    """In the place of a `Pipeline`: checks like one, and keeps."""

    def __init__(
        self,
        events: RecordedEvents,
        config: Config,
        runtime: Runtime,
        *,
        on_dead_letter: Any,
        on_error: Any,
        on_drop: Any,
        keep_dropped: bool,  # noqa: ARG002 - nothing is full here
        refusal: DropReason | None,
        open_adapter: Any,  # noqa: ARG002 - nothing is sent
    ) -> None:
        self._events = events
        self._runtime = runtime
        self._capacity = config.buffer_events
        self.shutdown_timeout_seconds = config.shutdown_timeout_seconds
        self._default_keys, self._keys_by_event = config.encoder_keys
        self._encoder = EventEncoder(self._default_keys, self._keys_by_event)
        self.callbacks = on_dead_letter, on_error, on_drop
        self._refusal = refusal
        self._recorded = 0
        self._dropped: Counter[str] = Counter()
        self._lock = threading.RLock()

    def recorder(self, *, strict: bool) -> Any:  # noqa: ARG002 - always
        # The clock, and not its function: `freeze_time` may replace that after this was made.
        encode, clock = self._encoder.encode, self._runtime.clock

        def record(
            event_name: Name,
            customer_id: Name,
            value: Any = 1,
            *,
            timestamp: Any = None,
            identifier: Name | None = None,
            payload: Mapping[str, Label] | None = None,
        ) -> bool:
            given = clock.time(), event_name, customer_id, value, timestamp, identifier, payload
            return self._keep(encode(given, str(uuid.uuid4())))

        # What Python says when it is called wrongly names the function by this.
        record.__qualname__ = "record"
        return record

    def _keep(self, sent: MeterEvent) -> bool:
        with self._lock:
            self._recorded += 1
            if self._refusal is not None:
                self._dropped[self._refusal.value] += 1
                return False
        self._events._add(self._read(sent))  # noqa: SLF001
        return True

    def count_refused(self, reason: DropReason, count: int) -> None:
        """Count events that were refused before this was made."""
        if count:
            with self._lock:
                self._recorded += count
                self._dropped[reason.value] += count

    def _read(self, sent: MeterEvent) -> Event:
        # From the bytes, so that a test sees what Stripe would.
        document = json.loads(sent.body)
        name, payload = document["event_name"], document["payload"]
        keys: PayloadKeys = self._keys_by_event.get(name, self._default_keys)
        return Event(
            event_name=name,
            customer=payload[keys.customer_key],
            value=Decimal(payload[keys.value_key]),
            identifier=document["identifier"],
            timestamp=datetime.fromisoformat(document["timestamp"]),
            payload=payload,
        )

    @property
    def closed(self) -> bool:
        return self._refusal is DropReason.CLOSED

    def stats(self) -> Stats:
        with self._lock:
            dropped = dict(self._dropped)
            return Stats(
                recorded=self._recorded,
                delivered=self._recorded - sum(dropped.values()),
                dropped=dropped,
            )

    def health(self) -> Health:
        return diagnose(
            self.stats(),
            self.room(),
            refusal=self._refusal,
            nobody_sends=False,
            key_refused=False,
            requests_fail=False,
            others={},
        )

    def room(self) -> Room:
        return Room(0, self._capacity)

    def adopt(self) -> bool:
        return True

    def flush(self, _timeout: float | None) -> bool:
        return True

    def begin_close(self, _deadline: float) -> None:
        self._refusal = DropReason.CLOSED

    def finish_close(self, _deadline: float) -> Stats:
        return self.stats()

    def load(self) -> None:
        """It sends nothing."""

    def retire(self) -> None:
        """It holds nothing that was not recorded at once."""

    def tell_unknown_variables(self) -> None:
        """A test is not the place to tell of the environment."""
