"""A server that is down: one sender knocks, the others wait, nothing is lost."""

from __future__ import annotations

import threading

from meter_agent.sandbox import Sandbox
from tests.virtual import HastyRuntime
from tests.wire.front import Exchange, Front, assert_billed_once, real_agent, record

EVENTS = 5000
SENDERS = 8
OUTAGE_SECONDS = 6.0


class Outage:
    """Fails from the moment in which all senders have a request here, for six seconds."""

    def __init__(self, runtime: HastyRuntime) -> None:
        self._runtime = runtime
        self._burst = threading.Barrier(SENDERS, action=self._begin)
        self._lock = threading.Lock()
        self._ends_at = float("inf")
        self._inside = 0
        self.burst = 0
        self.probes = 0
        self.most_at_once = 0

    def _begin(self) -> None:
        self._ends_at = self._runtime.monotonic() + OUTAGE_SECONDS

    def __call__(self, exchange: Exchange) -> None:
        if not exchange.for_stream or self._runtime.monotonic() >= self._ends_at:
            exchange.serve()
            return
        with self._lock:
            self.burst += 1
            in_burst = self.burst <= SENDERS
        if in_burst:
            self._burst.wait(20)
        else:
            self._probe()
        exchange.say(503)

    def _probe(self) -> None:
        with self._lock:
            self.probes += 1
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        threading.Event().wait(0.02)  # long enough for another one to come in
        with self._lock:
            self._inside -= 1


def test_in_an_outage_one_sender_at_a_time_probes_and_afterwards_everything_is_billed_once(
    sandbox: Sandbox,
) -> None:
    runtime = HastyRuntime()
    outage = Outage(runtime)
    front = Front(sandbox, behave=outage)
    with front.open() as server:
        agent = real_agent(
            server.url,
            runtime=runtime,
            max_in_flight=SENDERS,
            buffer_events=EVENTS,
            retry_base_seconds=0.5,
            retry_max_seconds=0.5,
        )
        record(agent, EVENTS)
        assert agent.flush()
        final = agent.close()
    assert_billed_once(sandbox, final, EVENTS)
    assert outage.most_at_once == 1
    # How many more than one depends on the machine: its time counts on top of what is skipped.
    assert 1 <= outage.probes < 80 - SENDERS
