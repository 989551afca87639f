"""What goes wrong in a simulated world: network, server, clock, threads, disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meter_agent.sandbox import Fault
from meter_agent.sandbox._gateways import GATEWAY_ANSWERS

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["LOOKUP_SECONDS_MAX", "NAMES", "POISONED", "Weather"]

NAMES = ("requests", "tokens")
"""Of the events in these worlds."""
POISONED = "poisoned"
"""The code of events that are refused for ever, in every world."""
STORM_SECONDS_MAX = 120.0
LOOKUP_SECONDS_MAX = 90.0


class Weather:
    """Trouble of the kinds that this world draws."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.random = world.random
        self.scheduler = world.scheduler
        self.runtime = world.runtime
        self.network = world.network
        self.sandbox = world.sandbox

    def blow(self) -> None:
        """Trouble of a few kinds, for a while."""
        kinds = [kind for kind in self.KINDS if self.random.random() < 0.25]
        ends = self.scheduler.now + self.random.random() * STORM_SECONDS_MAX
        while kinds and self.scheduler.now < ends and not self._world.closed:
            self.scheduler.wait(self.random.random() * 5.0)
            self.random.choice(kinds)(self)
        if self._world.heals:
            self.heal()
        self._world.is_stormy = False

    def heal(self) -> None:
        self.network.down = False
        self.network.lookup_seconds_max = 0.0
        self.network.deadly = 0.0
        self.runtime.no_thread = 0.0
        poison = [fault for fault in self.sandbox.faults if fault.code == POISONED]
        self.sandbox.clear_faults()
        for fault in poison:
            self.sandbox.add_fault(fault)

    def outage(self) -> None:
        self.network.down = not self.network.down

    def errors(self) -> None:
        status = self.random.choice((500, 502, 503, 504, 408, 409, 425))
        accept = status >= 500 and self.random.random() < 0.5
        self.add("status", on="any", status=status, accept=accept)

    def too_many(self) -> None:
        wait = self.random.choice((None, "0", "3", "-1", "nonsense", "1e9", "nan"))
        self.add("status", on="any", status=429, retry_after=wait)

    def gateways(self) -> None:
        form = self.random.choice(list(GATEWAY_ANSWERS))
        on = self.random.choice(("stream", "stream", "session"))
        # What is too large for a gateway is not passed on.
        accept = "413" not in form and self.random.random() < 0.5
        self.add("gateway", on=on, form=form, accept=accept)

    def narrow_gateway(self) -> None:
        self.add("gateway", form="nginx-413")

    def archived_meter(self) -> None:
        if not self.sandbox._batch_atomic:
            # An event may have been taken in with a batch that was refused for another one. If it
            # is refused alone afterwards, nobody can know (the failure modes say so).
            return

        names = self.random.choice((NAMES, NAMES[:1], NAMES[1:]))

        def note(event: dict[str, Any]) -> bool:
            if event["event_name"] not in names:
                return False
            self._world.books.archived.add(int(event["payload"]["value"]))
            return True

        self.add("poison", predicate=note, code="archived_meter")

    def lost_answers(self) -> None:
        self.add("reset", on="any", when=self.random.choice(("before", "after")))

    def broken_answers(self) -> None:
        self.add("truncate", on="any")

    def hanging_answers(self) -> None:
        self.add("hang", on="any", accept=self.random.random() < 0.5)

    def slow_answers(self) -> None:
        self.add("delay", on="any", seconds=self.random.choice((0.5, 5.0, 40.0)))

    def revoked_sessions(self) -> None:
        self.sandbox.revoke_sessions()

    def revoked_at_once(self) -> None:
        self.add("revoke")

    def refused_key(self) -> None:
        self.add("status", on="session", status=401, code="invalid_api_key")

    def expired_grants(self) -> None:
        body = {
            "authentication_token": f"token_{self.random.getrandbits(40)}",
            "created": "2020-01-01T00:00:00Z",
            "expires_at": self.random.choice(
                ("2020-01-01T00:00:00Z", "2019-01-01T00:00:00Z", "soon")
            ),
            "id": "mes_1",
        }
        self.add("status", on="session", status=200, body=json.dumps(body))

    def clock_step(self) -> None:
        # Not beyond what Stripe takes, which is 5 minutes ahead.
        self.runtime.clock.step_to(self.random.choice((-3600.0, -5.0, 0.0, 5.0, 200.0)))

    def slow_lookups(self) -> None:
        if self._world.lacks_threads:
            return  # the caller sends by itself, and no timeout bounds a lookup
        self.network.lookup_seconds_max = self.random.choice((0.0, 3.0, LOOKUP_SECONDS_MAX))

    def dying_senders(self) -> None:
        if not self._world.lacks_threads:
            self.network.deadly = self.random.choice((0.0, 0.1, 0.5))

    def add(self, kind: Any, **fields: Any) -> None:
        times = self.random.choice((1, 1, 3, 10, 60))
        self.sandbox.add_fault(Fault(kind, times=times, **fields))

    KINDS: tuple[Callable[[Any], None], ...] = (
        outage,
        errors,
        gateways,
        narrow_gateway,
        archived_meter,
        too_many,
        lost_answers,
        broken_answers,
        hanging_answers,
        slow_answers,
        revoked_sessions,
        revoked_at_once,
        refused_key,
        expired_grants,
        clock_step,
        slow_lookups,
        dying_senders,
    )
