"""A Stripe that falls silent in the middle of the work."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from meter_agent.sandbox import Fault, Reply, Sandbox
from tests.patience import PATIENCE_SECONDS


class Stalling(Sandbox):
    """Takes everything in and, from the event after *stall_at* on, acknowledges nothing."""

    stall_at = 10**9

    def __init__(self) -> None:
        super().__init__()
        self._stalled = threading.Event()

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if not self.faults and self.totals()["accepted"] >= self.stall_at:
            self.add_fault(Fault("hang", accept=True))
        reply = super().handle(method, path, headers, body)
        if reply.cut == "hang":
            self._stalled.set()
        return reply

    def wait_until_stalled(self) -> None:
        """Wait until a request was taken in that gets no answer."""
        assert self._stalled.wait(PATIENCE_SECONDS), "no request was left without an answer"

    def go_on(self) -> None:
        """Acknowledge again."""
        self.stall_at = 10**9
        self.clear_faults()
