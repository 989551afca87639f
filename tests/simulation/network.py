"""The network of a simulated world: delays, hangs, and a record of everything that went over it."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import requests
from requests.exceptions import ConnectionError as RequestsConnectionError

from meter_agent.sandbox import Sandbox, SandboxAdapter
from tests.simulation.runtime import forbid_locks
from tests.simulation.scheduler import BrokenPromiseError, Scheduler

__all__ = ["Network", "SimulatedAdapter"]


class Network:
    """What the adapters of all sender threads share.

    Args:
        scheduler: Passes the time.
        random: Draws delays.
        sandbox: The server.
        batch_size: Most events that a request may carry.
        latency_seconds_max: Longest way there, and longest way back.
        lookup_seconds_max: Longest name lookup, which no timeout bounds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        random: Random,
        sandbox: Sandbox,
        *,
        batch_size: int,
        latency_seconds_max: float,
        lookup_seconds_max: float,
    ) -> None:
        self.scheduler = scheduler
        self.sandbox = sandbox
        self.batch_size = batch_size
        self.down = False
        self.deadly = 0.0
        """How likely the thread that sends a request dies of it."""
        self.latency_seconds_max = latency_seconds_max
        self.lookup_seconds_max = lookup_seconds_max
        self.last_sent_at: dict[str, float] = {}
        """When the last request with each identifier set off."""
        self.failed_at: list[float] = []
        self.on_the_way = 0
        self._sessions_on_the_way = 0
        self._bodies: dict[str, str] = {}
        self._random = random

    def send(self, request: requests.PreparedRequest, answer: Callable[[], Any]) -> Any:
        """Carry *request* to *answer* and back, and check it on the way."""
        forbid_locks(self.scheduler._me(), "send a request")
        is_session = "session" in (request.url or "")
        if is_session and self._sessions_on_the_way:
            raise BrokenPromiseError("two sessions are asked for at the same time")
        self._sessions_on_the_way += is_session
        self.on_the_way += 1
        try:
            return self._carry(request, answer, is_session)
        finally:
            self.on_the_way -= 1
            self._sessions_on_the_way -= is_session

    def _carry(
        self, request: requests.PreparedRequest, answer: Callable[[], Any], is_session: bool
    ) -> Any:
        sent_at = self.scheduler.now
        if not is_session:
            self.last_sent_at.update(dict.fromkeys(self._identifiers(request), sent_at))
        if self._random.random() < self.deadly:
            raise MemoryError("a sender dies")
        self._pass(self.lookup_seconds_max)
        self._pass(self.latency_seconds_max)
        failed = True
        try:
            if self.down:
                raise RequestsConnectionError("Connection refused", request=request)
            response = answer()
            self._pass(self.latency_seconds_max)
            failed = response.status_code not in {200, 400, 401, 413}
            return response
        finally:
            if failed:
                self.failed_at.append(sent_at)

    def _identifiers(self, request: requests.PreparedRequest) -> list[str]:
        body = request.body
        assert isinstance(body, bytes)
        identifiers = []
        for event in json.loads(body)["events"]:
            identifier, form = event["identifier"], json.dumps(event)
            if self._bodies.setdefault(identifier, form) != form:
                raise BrokenPromiseError(
                    f"{identifier} changed: {self._bodies[identifier]} -> {form}"
                )
            identifiers.append(identifier)
        if len(identifiers) > self.batch_size:
            raise BrokenPromiseError(f"a batch of {len(identifiers)} events")
        if len(set(identifiers)) != len(identifiers):
            raise BrokenPromiseError("one request carried an identifier twice")
        return identifiers

    def value_of(self, identifier: str) -> int:
        """The value of an event that was sent."""
        return int(json.loads(self._bodies[identifier])["payload"]["value"])

    def _pass(self, seconds_max: float) -> None:
        if seconds_max:
            self.scheduler.wait(self._random.random() * seconds_max)
        else:
            self.scheduler.step()


class SimulatedAdapter(SandboxAdapter):
    """The sandbox's door behind a simulated network."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.sandbox, sleep=network.scheduler.wait)
        self._network = network

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> Any:
        return self._network.send(
            request, lambda: super(SimulatedAdapter, self).send(request, *args, **options)
        )
