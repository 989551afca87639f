"""The agent, with its defaults but for the limits that would hide its speed."""

from __future__ import annotations

from typing import Any

from benchmarks.clients import CUSTOMER, EVENT, Client
from meter_agent import MeterAgent


class _Agent:
    call = f"record({EVENT!r}, {CUSTOMER!r}, 1)"

    def __init__(self, agent: MeterAgent) -> None:
        self._agent = agent
        self.names: dict[str, Any] = {"record": agent.record, "agent": agent}

    def finish(self) -> None:
        if not self._agent.flush(240):
            raise RuntimeError(f"not everything was shipped: {self._agent.stats()}")

    def close(self) -> None:
        self._agent.close(0)


def open_client(
    url: str,
    *,
    capacity: int = 100_000,
    in_flight: int = 8,
    spool: str | None = None,
    **settings: Any,
) -> Client:
    return _Agent(
        MeterAgent(
            sandbox_url=url,
            buffer_events=capacity,
            max_in_flight=in_flight,
            spool_dir=spool,
            **{"max_events_per_second": 1e6} | settings,
        )
    )
