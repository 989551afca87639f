"""The network of a simulated world: delays, hangs, and a record of everything that went over it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
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
        self.ambiguous: set[str] = set()
        """Identifiers that Stripe may have without having said so."""
        self.identifier_of: dict[int, str] = {}
        """Under which identifier each value is known."""
        self.posthumous = 0
        """How many requests of dead processes have not arrived yet."""
        self._sessions_on_the_way: Counter[int] = Counter()
        self._outbound: dict[object, tuple[list[str], Callable[[], Any]]] = {}
        self._bodies: dict[str, str] = {}
        self._random = random

    def send(
        self, request: requests.PreparedRequest, answer: Callable[[], Any], process: int
    ) -> Any:
        """Carry *request* of *process* to *answer* and back, and check it on the way."""
        forbid_locks(self.scheduler._me(), "send a request")
        is_session = "session" in (request.url or "")
        if is_session and self._sessions_on_the_way[process]:
            raise BrokenPromiseError("two sessions are asked for at the same time")
        self._sessions_on_the_way[process] += is_session
        try:
            return self._carry(request, answer, is_session)
        finally:
            self._sessions_on_the_way[process] -= is_session

    def _carry(
        self, request: requests.PreparedRequest, answer: Callable[[], Any], is_session: bool
    ) -> Any:
        sent_at = self.scheduler.now
        identifiers = [] if is_session else self._identifiers(request)
        self.last_sent_at.update(dict.fromkeys(identifiers, sent_at))
        if self._random.random() < self.deadly:
            raise MemoryError("a sender dies")
        self._pass(self.lookup_seconds_max)
        letter = object()
        if identifiers:
            self._outbound[letter] = identifiers, answer
        self._pass(self.latency_seconds_max)
        self._outbound.pop(letter, None)
        failed = ambiguous = True
        try:
            if self.down:
                ambiguous = False
                raise RequestsConnectionError("Connection refused", request=request)
            response = answer()
            self._pass(self.latency_seconds_max)
            # All that Stripe says carries one here, and nothing that a gateway says.
            is_stripes, status = "Request-Id" in response.headers, response.status_code
            failed = not (status == 413 or (is_stripes and status in {200, 400, 401}))
            ambiguous = status not in {413, 429} and (not is_stripes or status >= 500)
            return response
        finally:
            if failed:
                self.failed_at.append(sent_at)
            if ambiguous:
                self.ambiguous.update(identifiers)

    @property
    def is_busy(self) -> bool:
        """Whether events are on their way to the server."""
        return bool(self._outbound)

    def process_died(self) -> set[str]:
        """Some of what its process had sent arrives all the same; returns all identifiers in it."""
        outbound, self._outbound = list(self._outbound.values()), {}
        self.ambiguous.update(
            identifier for identifiers, _ in outbound for identifier in identifiers
        )
        for _, answer in outbound:
            if self._random.random() < 0.5:
                self.posthumous += 1
                self.scheduler.start(partial(self._arrive, answer), "dead man's letter")
        return {identifier for identifiers, _ in outbound for identifier in identifiers}

    def _arrive(self, answer: Callable[[], Any]) -> None:
        self._pass(self.latency_seconds_max)
        if not self.down:
            with suppress(requests.RequestException):
                answer()
        self.posthumous -= 1

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
            self.expect_identifier(int(event["payload"]["value"]), identifier)
            identifiers.append(identifier)
        if len(identifiers) > self.batch_size:
            raise BrokenPromiseError(f"a batch of {len(identifiers)} events")
        if len(set(identifiers)) != len(identifiers):
            raise BrokenPromiseError("one request carried an identifier twice")
        return identifiers

    def expect_identifier(self, value: int, identifier: str) -> None:
        """An event keeps its identifier for ever, whichever process has it."""
        if self.identifier_of.setdefault(value, identifier) != identifier:
            raise BrokenPromiseError(
                f"event {value} was {self.identifier_of[value]} and is {identifier}"
            )

    def value_of(self, identifier: str) -> int:
        """The value of an event that was sent."""
        return int(json.loads(self._bodies[identifier])["payload"]["value"])

    def _pass(self, seconds_max: float) -> None:
        if seconds_max:
            self.scheduler.wait(self._random.random() * seconds_max)
        else:
            self.scheduler.step()


class SimulatedAdapter(SandboxAdapter):
    """The sandbox's door behind a simulated network, for the threads of *process*."""

    def __init__(self, network: Network, process: int) -> None:
        super().__init__(network.sandbox, sleep=network.scheduler.wait)
        self._network = network
        self._process = process

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> Any:
        return self._network.send(
            request,
            lambda: super(SimulatedAdapter, self).send(request, *args, **options),
            self._process,
        )
