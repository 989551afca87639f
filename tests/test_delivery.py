"""Delivery against the sandbox in virtual time: every event settled, none lost, none doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import pairwise
from ssl import SSLCertVerificationError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import ConnectTimeout, SSLError
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import MaxRetryError, NewConnectionError
from urllib3.exceptions import SSLError as Urllib3SSLError

from meter_agent._answer import Answer
from meter_agent._batch import Batch
from meter_agent._body_limit import BodyLimit
from meter_agent._brake import Brake
from meter_agent._dead_letters import DeadLetterReason
from meter_agent._delivery import Delivery
from meter_agent._event import EventEncoder, MeterEvent
from meter_agent._held import HeldBatches
from meter_agent._ledger import Outcome, Traffic
from meter_agent._log import EventLog
from meter_agent._pace import Pace
from meter_agent._session import SessionCache
from meter_agent._stream import MeterEventStream
from meter_agent._transport import Transport
from meter_agent.exceptions import AuthenticationError, MeterAgentError, StreamUnavailableError
from meter_agent.sandbox import Fault, Sandbox, SandboxAdapter
from tests.virtual import START, VirtualRuntime

DAY = 86_400.0
POOL, CONNECTION = HTTPConnectionPool("stripe.test"), HTTPConnection("stripe.test")


class World:
    """One sender, the sandbox, and virtual time."""

    def __init__(self, **sandbox: Any) -> None:
        self.runtime = VirtualRuntime()
        self.sandbox = Sandbox(time=self.runtime.clock.time, **sandbox)
        self.traffic = Traffic()
        self.errors: list[MeterAgentError] = []
        self.settled: list[tuple[str, Outcome, DeadLetterReason | None, Answer | None]] = []
        self.pace = Pace(
            self.runtime,
            events_per_second=1e6,
            burst_events=100,
            base_seconds=0.5,
            max_seconds=30.0,
        )
        log = EventLog(self.runtime)
        stream = MeterEventStream(
            self.runtime,
            transport=Transport(
                connect_timeout_seconds=5,
                read_timeout_seconds=30,
                open_adapter=lambda: SandboxAdapter(self.sandbox, sleep=self.runtime.advance),
            ),
            session_url="http://127.0.0.1:1/v2/billing/meter_event_session",
            event_url="https://api.stripe.test/v2/billing/meter_events",
            meters_url="http://127.0.0.1:1/v1/billing/meters",
            stream_url="http://127.0.0.1:1/v2/billing/meter_event_stream",
            read_api_key=lambda: "sk_test_1",
            headers={"Stripe-Version": "2026-10-28.endive"},
            traffic=self.traffic,
            seconds_left=self.pace.seconds_left,
        )
        self.body_limit = BodyLimit(self.runtime, 100)
        self.brake = Brake(self.runtime)
        self.held = HeldBatches(self.runtime)
        self.delivery = Delivery(
            self.runtime,
            stream=stream,
            sessions=SessionCache(self.runtime, log=log),
            pace=self.pace,
            attempts=self,
            body_limit=self.body_limit,
            brake=self.brake,
            held=self.held,
            traffic=self.traffic,
            log=log,
            on_error=self.errors.append,
            resend_window_seconds=23 * 3600.0,
        )

    def batch(self, count: int, *, timestamp: float | None = None, name: str = "tokens") -> Batch:
        encoder = EventEncoder()
        now = self.runtime.clock.time()
        events = [
            encoder.encode(
                (now, name, f"cus_{n}", n, timestamp, None, None), f"{name}-{id(self)}-{n:04}"
            )
            for n in range(count)
        ]
        batch = Batch(list(events), position=0, floor=0)
        batch.events = None
        batch.open = events
        batch.oldest_timestamp = min(event.timestamp for event in events)
        return batch

    def begin_attempt(self, batch: Batch, part: Sequence[MeterEvent]) -> bool:
        batch.begin_attempt(part, self.runtime.clock.time(), self.runtime.monotonic())
        return not batch.abandoned

    def forget_attempt(self, batch: Batch, attempted: dict[int, tuple[float, float]]) -> None:
        batch.attempted = attempted

    def settle(
        self,
        part: Sequence[MeterEvent],
        outcome: Outcome,
        reason: DeadLetterReason | None,
        answer: Answer | None,
    ) -> None:
        self.settled.extend((event.identifier, outcome, reason, answer) for event in part)

    def deliver(self, count: int = 100) -> Batch:
        batch = self.batch(count)
        self.delivery.deliver(batch, self.settle)
        return batch

    def outcomes(self) -> Counter[Outcome]:
        return Counter(outcome for _, outcome, _, _ in self.settled)

    def stream_requests(self) -> list[Any]:
        return [log for log in self.sandbox.requests if log.path.endswith("meter_event_stream")]


@pytest.fixture
def world() -> World:
    return World()


def test_a_good_batch_is_one_session_and_one_request(world: World) -> None:
    world.deliver()
    assert world.outcomes() == {Outcome.DELIVERED: 100}
    assert len(world.sandbox.requests) == 2
    assert world.sandbox.totals()["accepted"] == 100


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 302])
def test_the_same_bytes_go_again_until_they_are_accepted(world: World, status: int) -> None:
    world.sandbox.add_fault(Fault("status", status=status, times=7))
    world.deliver()
    assert world.outcomes() == {Outcome.DELIVERED: 100}
    requests = world.stream_requests()
    assert len(requests) == 8
    assert len({request.idempotency_key for request in requests}) == 1
    assert len({request.identifiers for request in requests}) == 1
    assert len(world.errors) == 7


def test_a_lost_acknowledgement_bills_nothing_twice(world: World) -> None:
    world.sandbox.add_fault(Fault("reset", when="after", times=1))
    world.sandbox.add_fault(Fault("status", status=500, accept=True, times=1))
    world.sandbox.add_fault(Fault("truncate", times=1))
    world.deliver()
    totals = world.sandbox.totals()
    assert (totals["accepted"], totals["duplicates"]) == (100, 300)
    assert world.outcomes() == {Outcome.DELIVERED: 100}


def test_a_hanging_server_costs_its_read_timeout_and_nothing_else(world: World) -> None:
    world.sandbox.add_fault(Fault("hang", times=1))
    world.deliver()
    assert world.outcomes() == {Outcome.DELIVERED: 100}
    assert world.runtime.clock.time() - START >= 30


def test_retry_after_holds_the_next_request_back(world: World) -> None:
    world.sandbox.add_fault(Fault("status", status=429, retry_after="17", times=1))
    world.deliver()
    first, second = world.stream_requests()
    assert second.at - first.at >= 17


def test_one_poisoned_event_dies_alone(world: World) -> None:
    world.sandbox.add_fault(Fault("poison", match={"payload.value": "42"}, code="no_meter"))
    world.deliver()
    assert world.outcomes() == {Outcome.DELIVERED: 99, Outcome.DEAD_LETTERED: 1}
    identifier, _, reason, answer = next(
        row for row in world.settled if row[1] is Outcome.DEAD_LETTERED
    )
    assert identifier.endswith("0042")
    assert reason is DeadLetterReason.REJECTED
    assert answer is not None
    assert (answer.code, bool(answer.request_id)) == ("no_meter", True)
    assert len(world.stream_requests()) <= 15
    assert world.traffic.splits.read() == 7


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 99), max_size=12))
def test_any_poisoned_events_die_alone_within_fourteen_requests_each(poison: set[int]) -> None:
    world = World()
    poisoned = {f"cus_{n}" for n in poison}
    world.sandbox.add_fault(
        Fault("poison", predicate=lambda e: e["payload"]["stripe_customer_id"] in poisoned)
    )
    world.deliver()
    dead = {identifier[-4:] for identifier, o, _, _ in world.settled if o is Outcome.DEAD_LETTERED}
    assert dead == {f"{n:04}" for n in poison}
    assert world.sandbox.totals()["accepted"] == 100 - len(poison)
    assert len(world.stream_requests()) <= 14 * len(poison) + 1
    assert len(world.settled) == 100


def test_a_batch_cut_anew_gets_a_key_of_its_own(world: World) -> None:
    world.sandbox.add_fault(Fault("poison", match={"payload.value": "0"}))
    world.deliver(4)
    keys = [request.idempotency_key for request in world.stream_requests()]
    assert len(set(keys)) == len(keys)


def test_events_that_stripe_already_has_are_delivered() -> None:
    world = World(duplicates="reject")
    earlier = world.batch(30)
    world.delivery.deliver(earlier, world.settle)
    world.settled.clear()
    world.deliver(100)
    assert world.outcomes() == {Outcome.DELIVERED: 100}
    assert world.sandbox.totals()["accepted"] == 100


@pytest.mark.parametrize("expired_status", [400, 401])
def test_an_expired_session_is_renewed_and_the_batch_sent_again_at_once(
    expired_status: int,
) -> None:
    world = World(expired_status=expired_status)
    world.deliver(1)
    world.sandbox.revoke_sessions()
    world.runtime.waits.clear()
    before = len(world.sandbox.requests)
    world.deliver(2)
    paths = [log.path.rsplit("_", 1)[1] for log in list(world.sandbox.requests)[before:]]
    assert paths == ["stream", "session", "stream"]
    assert world.runtime.waits == []


def test_a_session_that_expires_twice_in_a_row_backs_off(world: World) -> None:
    world.deliver(1)
    world.sandbox.add_fault(Fault("revoke", times=5))
    world.deliver(2)
    assert world.outcomes() == {Outcome.DELIVERED: 3}
    assert len(world.runtime.waits) >= 3


def test_a_wrong_key_is_asked_about_slowly_and_nothing_is_dropped() -> None:
    world = World(api_keys={"sk_test_other"})
    batch = world.batch(100)
    world.pace.close(world.runtime.monotonic() + 60.0)
    world.delivery.deliver(batch, world.settle)
    assert world.settled == []
    assert len(batch.open) == 100
    assert not batch.attempted
    assert len(world.sandbox.requests) <= 60
    assert all(isinstance(error, AuthenticationError) for error in world.errors)


def test_a_refused_token_gets_one_fresh_session_at_once_and_then_waits(world: World) -> None:
    world.sandbox.add_fault(
        Fault("status", status=403, code="forbidden", message="no permission", times=4)
    )
    world.deliver(1)
    times = [request.at for request in world.stream_requests()]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] == 0
    assert all(gap >= 1.0 for gap in gaps[1:])
    assert world.outcomes() == {Outcome.DELIVERED: 1}


@pytest.mark.parametrize("status", [400, 404, 422, 500, 429])
def test_a_session_host_that_fails_costs_no_event(world: World, status: int) -> None:
    world.sandbox.add_fault(Fault("status", on="session", status=status, times=3))
    world.deliver(100)
    assert world.outcomes() == {Outcome.DELIVERED: 100}
    assert len(world.stream_requests()) == 1


def test_a_session_without_a_token_is_asked_for_again(world: World) -> None:
    world.sandbox.add_fault(Fault("status", on="session", status=200, body="{}", times=1))
    world.deliver(1)
    assert world.outcomes() == {Outcome.DELIVERED: 1}


def test_after_a_413_bodies_shrink_and_then_grow_back(world: World) -> None:
    world.sandbox.add_fault(Fault("status", status=413, code="too_large", times=2))
    for _ in range(20):
        world.deliver(100)
    assert world.outcomes() == {Outcome.DELIVERED: 2000}
    sizes = [request.events for request in world.stream_requests()]
    assert sizes[:3] == [100, 50, 25]
    assert sizes[-1] == 100


def test_an_event_that_is_too_large_alone_is_a_dead_letter_unless_it_may_have_arrived(
    world: World,
) -> None:
    world.sandbox.add_fault(Fault("status", status=413, code="too_large", times=1))
    world.deliver(1)
    world.sandbox.add_fault(Fault("status", status=500, accept=True, times=1))
    world.sandbox.add_fault(Fault("status", status=413, code="too_large", times=1))
    world.deliver(1)
    assert [outcome for _, outcome, _, _ in world.settled] == [
        Outcome.DEAD_LETTERED,
        Outcome.UNCERTAIN,
    ]


def test_what_may_have_been_accepted_is_not_sent_again_after_the_resend_window(
    world: World,
) -> None:
    world.sandbox.add_fault(Fault("status", status=503))
    world.deliver(10)
    assert world.outcomes() == {Outcome.UNCERTAIN: 10}
    requests = world.stream_requests()
    assert requests[-1].at - requests[0].at < 23 * 3600
    assert world.runtime.clock.time() - requests[0].at >= 23 * 3600
    assert all(reason is DeadLetterReason.UNCERTAIN for _, _, reason, _ in world.settled)


@pytest.mark.parametrize("machine", ["asleep", "awake"])
def test_a_day_that_goes_by_ends_the_resend_window_also_while_the_machine_sleeps(
    world: World, machine: str
) -> None:
    def let_a_day_go_by() -> None:
        if machine == "asleep":
            world.runtime.sleep_through(DAY)
        else:
            world.runtime.uptime += DAY

    world.sandbox.add_fault(Fault("status", status=503, times=1))
    world.runtime.on_wait = let_a_day_go_by
    world.deliver(10)
    assert world.outcomes() == {Outcome.UNCERTAIN: 10}
    assert len(world.stream_requests()) == 1


@pytest.mark.parametrize("jump", [DAY, 36 * DAY])
def test_a_wall_clock_that_jumps_for_a_moment_in_an_outage_ends_no_event(
    world: World, jump: float
) -> None:
    # Wrong for the first seven seconds of the outage.
    def jump_for_a_moment() -> None:
        since = world.runtime.uptime - 1000.0
        world.runtime.wall_clock.wall = START + since + (jump if since < 7 else 0.0)

    world.sandbox.add_fault(Fault("status", status=503, times=1))
    world.runtime.on_wait = jump_for_a_moment
    world.deliver(10)
    assert world.outcomes() == {Outcome.DELIVERED: 10}
    # What Stripe may have waits for a clock that is certain.
    assert len(world.stream_requests()) == 2
    assert world.runtime.uptime - 1000.0 >= 7
    assert world.sandbox.totals()["accepted"] == 10


def test_a_wall_clock_that_keeps_to_its_claim_for_a_minute_is_believed(world: World) -> None:
    jumped: list[bool] = []

    def jump_once() -> None:
        if not jumped:
            jumped.append(True)
            world.runtime.wall_clock.wall += DAY

    world.sandbox.add_fault(Fault("status", status=503, times=1))
    world.runtime.on_wait = jump_once
    world.deliver(10)
    assert world.outcomes() == {Outcome.UNCERTAIN: 10}
    assert len(world.stream_requests()) == 1
    assert 60 <= world.runtime.uptime - 1000.0 < 200


def test_what_was_surely_not_accepted_may_be_sent_for_weeks(world: World) -> None:
    world.sandbox.add_fault(Fault("status", status=429, retry_after="300", times=1000))
    world.deliver(10)
    assert world.runtime.clock.time() - START > 2 * DAY
    assert world.outcomes() == {Outcome.DELIVERED: 10}


def test_what_has_become_too_old_while_it_waited_is_set_aside_and_the_rest_is_sent(
    world: World,
) -> None:
    batch = world.batch(10, timestamp=START - 35 * DAY + 600)
    fresh = world.batch(3)
    for place, event in enumerate(fresh.open):
        batch.open.append(event._replace(identifier=f"fresh-{place}"))
    world.sandbox.add_fault(Fault("status", status=429, retry_after="300", times=4))
    world.delivery.deliver(batch, world.settle)
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 10, Outcome.DELIVERED: 3}
    assert {reason for _, _, reason, _ in world.settled if reason} == {DeadLetterReason.TOO_OLD}


def test_too_old_and_perhaps_accepted_is_uncertain(world: World) -> None:
    batch = world.batch(1, timestamp=START - 35 * DAY + 100)
    world.sandbox.add_fault(Fault("hang", times=4))
    world.delivery.deliver(batch, world.settle)
    assert world.outcomes() == {Outcome.UNCERTAIN: 1}


def test_closing_leaves_what_is_unsent_in_the_batch(world: World) -> None:
    world.sandbox.add_fault(Fault("status", status=503))
    world.pace.close(world.runtime.monotonic() + 5.0)
    batch = world.deliver(10)
    assert world.settled == []
    assert len(batch.open) == 10
    assert len(batch.attempted) == 10
    assert world.runtime.monotonic() <= 1005.0


def test_a_request_near_the_end_gets_no_more_time_than_is_left(world: World) -> None:
    world.sandbox.add_fault(Fault("hang"))
    world.pace.close(world.runtime.monotonic() + 2.0)
    world.deliver(1)
    assert world.runtime.monotonic() <= 1002.1


def test_each_failed_request_is_told_to_the_application(world: World) -> None:
    world.sandbox.add_fault(Fault("status", status=503, times=2))
    world.deliver(1)
    assert [type(error) for error in world.errors] == [StreamUnavailableError] * 2
    assert world.traffic.last_error is not None
    assert "HTTP 503" in world.traffic.last_error
    assert world.traffic.retries.read() == 2


def random_faults(draw: Callable[..., Any]) -> list[Fault]:
    kinds = st.sampled_from(
        [
            Fault("status", status=503, times=2),
            Fault("status", status=500, accept=True, times=2),
            Fault("status", status=429, times=1),
            Fault("status", status=409, times=1),
            Fault("status", status=413, code="too_large", times=1),
            Fault("reset", when="before", times=1),
            Fault("reset", when="after", times=2),
            Fault("truncate", times=1),
            Fault("hang", accept=True, times=1),
            Fault("revoke", times=1),
            Fault("status", on="session", status=503, times=2),
            Fault("poison", match={"payload.value": "7"}),
            Fault("poison", match={"payload.value": "63"}),
        ]
    )
    return list(draw(st.lists(kinds, max_size=6)))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["absorb", "reject"]), st.booleans(), st.integers(1, 100))
def test_whatever_the_server_does_every_event_ends_once_and_is_billed_at_most_once(
    data: st.DataObject, duplicates: str, atomic: bool, count: int
) -> None:
    world = World(duplicates=duplicates, batch_atomic=atomic)
    for fault in random_faults(data.draw):
        world.sandbox.add_fault(fault)
    batch = world.deliver(count)
    assert sorted(identifier for identifier, *_ in world.settled) == sorted(
        event.identifier for event in batch.open
    )
    delivered = {i for i, outcome, _, _ in world.settled if outcome is Outcome.DELIVERED}
    ledger = {entry["identifier"]: entry for entry in world.sandbox.ledger()}
    uncertain = {i for i, outcome, _, _ in world.settled if outcome is Outcome.UNCERTAIN}
    assert delivered <= set(ledger) <= delivered | uncertain
    assert len(world.sandbox.ledger()) == len(ledger)
    billed = sum(Decimal(entry["value"]) for entry in ledger.values())
    assert billed == sum(int(identifier[-4:]) for identifier in ledger)


def test_only_the_part_that_was_sent_may_have_been_accepted(world: World) -> None:
    world.sandbox.max_body_bytes = 1000
    world.sandbox.add_fault(Fault("status", status=413, times=1))
    world.sandbox.add_fault(Fault("status", status=503))
    world.pace.close(world.runtime.monotonic() + 5.0)
    batch = world.deliver(4)
    assert [id(event) for event in batch.open[:2]] == list(batch.attempted)


def test_a_refused_batch_may_have_been_taken_in_but_for_the_bad_event(world: World) -> None:
    world.sandbox.add_fault(Fault("status", status=400, times=1))
    world.sandbox.add_fault(Fault("status", status=429))
    world.pace.close(world.runtime.monotonic() + 5.0)
    batch = world.deliver(4)
    assert len(batch.open) == len(batch.attempted) == 4


def test_an_accepted_batch_stays_attempted_until_it_is_counted(world: World) -> None:
    batch = world.batch(4)
    seen: list[int] = []
    world.delivery.deliver(batch, lambda *settled: seen.append(len(batch.attempted)))
    assert seen == [4]


def test_nothing_is_sent_again_when_the_session_took_longer_than_the_window(world: World) -> None:
    expired = "billing_meter_event_session_expired"
    world.sandbox.add_fault(Fault("delay", on="session", seconds=29.0))
    world.sandbox.add_fault(Fault("reset", when="after", times=1))
    world.sandbox.add_fault(Fault("status", status=401, code=expired, times=1))
    world.delivery._window._seconds = 20.0
    world.deliver(1)
    assert world.outcomes() == {Outcome.UNCERTAIN: 1}
    assert len(world.stream_requests()) == 2


def test_a_connection_that_breaks_after_the_window_earns_no_free_retry(world: World) -> None:
    world.deliver(1)  # from now on the connection is kept alive
    world.sandbox.add_fault(Fault("delay", on="stream", seconds=10.0, times=1))
    world.sandbox.add_fault(Fault("reset", when="after", times=1))
    world.delivery._window._seconds = 5.0
    world.deliver(1)
    assert world.outcomes() == {Outcome.DELIVERED: 1, Outcome.UNCERTAIN: 1}
    assert len(world.stream_requests()) == 2


@pytest.mark.parametrize(
    "ambiguous",
    [
        Fault("status", status=504, accept=True, times=1),
        Fault("gateway", form="nginx-403", accept=True, times=1),
        Fault("gateway", form="validator-422", accept=True, times=1),
        Fault("reset", when="after", times=1),
        Fault("hang", accept=True, times=1),
        Fault("status", status=400, headers={"Stripe-Should-Retry": "true"}, accept=True, times=1),
    ],
    ids=["5xx", "gateway's 403", "gateway's 422", "reset", "hang", "should retry"],
)
def test_a_refusal_after_an_ambiguous_attempt_is_uncertain(world: World, ambiguous: Fault) -> None:
    world.sandbox.add_fault(ambiguous)
    world.sandbox.add_fault(Fault("status", status=429, times=1))
    # From now on the meter is archived.
    world.sandbox.add_fault(Fault("status", status=400, code="archived_meter"))
    world.deliver(7)
    assert world.outcomes() == {Outcome.UNCERTAIN: 7}
    answer = world.settled[0][3]
    assert answer is not None
    assert answer.code == "archived_meter"
    assert "an earlier request with this event" in answer.message


@pytest.mark.parametrize(
    "plain",
    [
        Fault("status", status=429, times=2),
        Fault("status", status=400, times=1),
        Fault("status", status=401, code="invalid_api_key", times=3),
        Fault("status", status=413, code="request_too_large", times=1),
        Fault("gateway", form="nginx-413", times=1),
        Fault("status", on="session", status=503, times=2),
        Fault("reset", on="session", when="after", times=2),
    ],
    ids=["429", "refused as a whole", "401", "413", "gateway's 413", "no session", "lost session"],
)
def test_a_refusal_without_an_ambiguous_attempt_before_it_is_a_dead_letter(
    world: World, plain: Fault
) -> None:
    world.sandbox.add_fault(plain)
    world.sandbox.add_fault(Fault("status", status=400, code="archived_meter"))
    world.deliver(7)
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 7}


def test_only_the_events_of_the_ambiguous_request_are_uncertain_when_refused(world: World) -> None:
    world.sandbox.add_fault(Fault("status", status=413, code="request_too_large", times=1))
    world.sandbox.add_fault(Fault("status", status=503, accept=True, times=1))
    world.sandbox.add_fault(Fault("status", status=400, code="archived_meter"))
    world.deliver(8)
    assert world.outcomes() == {Outcome.UNCERTAIN: 4, Outcome.DEAD_LETTERED: 4}


def test_an_ambiguous_event_that_stripe_has_is_delivered() -> None:
    world = World(duplicates="reject")
    world.sandbox.add_fault(Fault("gateway", form="nginx-502", accept=True, times=2))
    world.deliver(10)
    assert world.outcomes() == {Outcome.DELIVERED: 10}


# -- events that may not be sent now -------------------------------------------------------------


def archive(world: World, **more: Any) -> None:
    world.sandbox.add_fault(
        Fault("poison", match={"event_name": "tokens"}, code="no_meter", **more)
    )


def test_twenty_identical_refusals_pause_the_events_of_that_name(world: World) -> None:
    archive(world)
    batch = world.deliver(100)
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 20}
    assert batch.held_until == world.runtime.monotonic() + 30
    assert "every event 'tokens' is refused" in world.brake.describe()
    assert "no_meter" in world.brake.describe()


def test_a_pause_that_is_over_and_keeps_no_event_is_no_longer_told(world: World) -> None:
    archive(world)
    batch = world.deliver(21)
    again(world, batch)
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 21}
    assert "'tokens' is refused, and the next one is tried in 60 s" in world.brake.describe()
    world.runtime.advance(60)
    assert world.brake.describe() == ""


def test_other_events_go_on_beside_a_paused_name(world: World) -> None:
    archive(world)
    world.deliver(40)
    world.settled.clear()
    batch = world.batch(3)
    batch.open += world.batch(5, name="requests").open
    world.delivery.deliver(batch, world.settle)
    assert world.outcomes() == {Outcome.DELIVERED: 5}
    assert batch.held_until is not None


def again(world: World, batch: Batch) -> None:
    """Let the pause pass and deliver what is left of *batch*."""
    assert batch.held_until is not None
    world.runtime.advance(batch.held_until - world.runtime.monotonic())
    ended = {identifier for identifier, *_ in world.settled}
    batch.open = [event for event in batch.open if event.identifier not in ended]
    world.delivery.deliver(batch, world.settle)


def test_after_each_pause_one_event_is_tried_and_the_next_pause_is_longer(world: World) -> None:
    archive(world)
    batch = world.deliver(100)
    pauses = []
    for _ in range(8):
        pauses.append(batch.held_until - world.runtime.monotonic())  # type: ignore[operator]
        before = len(world.stream_requests())
        again(world, batch)
        assert len(world.stream_requests()) == before + 1
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 28}


def test_when_the_tried_event_is_accepted_all_go_on(world: World) -> None:
    archive(world)
    batch, other = world.deliver(100), world.deliver(50)
    world.held.put(other)
    world.sandbox.clear_faults()
    again(world, batch)
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 20, Outcome.DELIVERED: 80}
    assert world.brake.describe() == ""
    assert world.held.take() is other


def test_a_pause_outlives_refusals_of_a_thousand_other_names(world: World) -> None:
    archive(world)
    batch = world.deliver(30)
    for n in range(1100):
        (event,) = world.batch(1, name=f"name_{n}").open
        world.brake.refused(event, "no_meter", "")
    assert world.brake.let_through(batch.open) == []


def test_a_pause_that_ends_just_before_a_batch_is_held_delays_it_no_longer(world: World) -> None:
    archive(world)
    batch = world.deliver(100)
    world.held.release()  # as another sender does whose event was accepted
    world.held.put(batch)
    assert world.held.take() is batch


def test_refusals_with_something_accepted_in_between_pause_nothing(world: World) -> None:
    poison = {str(n) for n in range(100) if n % 10 < 3}
    world.sandbox.add_fault(Fault("poison", predicate=lambda e: e["payload"]["value"] in poison))
    world.deliver(100)
    assert world.outcomes() == {Outcome.DELIVERED: 70, Outcome.DEAD_LETTERED: 30}


def test_refusals_with_different_codes_pause_nothing(world: World) -> None:
    def is_even(event: dict[str, Any]) -> bool:
        return int(event["payload"]["value"]) % 2 == 0

    world.sandbox.add_fault(Fault("poison", code="no_meter", predicate=is_even))
    world.sandbox.add_fault(Fault("poison", code="archived_meter"))
    world.deliver(100)
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 100}


def missing_meters(world: World, *names: str, code: str = "no_meter") -> None:
    world.sandbox.clear_faults()
    for name in names:
        world.sandbox.add_fault(Fault("poison", match={"event_name": name}, code=code))


def test_a_name_whose_meter_is_back_goes_on_beside_one_whose_meter_is_still_missing(
    world: World,
) -> None:
    missing_meters(world, "tokens", "calls")
    batch = world.batch(50)
    batch.open += world.batch(50, name="calls").open
    world.delivery.deliver(batch, world.settle)
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 40}
    missing_meters(world, "calls")
    again(world, batch)
    assert world.outcomes() == {Outcome.DELIVERED: 30, Outcome.DEAD_LETTERED: 41}


def test_the_event_that_is_tried_after_a_pause_is_tried_alone_when_its_batch_is_refused(
    world: World,
) -> None:
    missing_meters(world, "tokens")
    world.deliver(40)
    world.settled.clear()
    world.runtime.advance(30)
    batch = world.batch(3)
    batch.open += world.batch(5, name="requests").open
    world.delivery.deliver(batch, world.settle)
    assert world.outcomes() == {Outcome.DELIVERED: 5, Outcome.DEAD_LETTERED: 1}
    assert batch.held_until == world.runtime.monotonic() + 60


def test_a_pause_outlives_a_refusal_for_another_reason(world: World) -> None:
    missing_meters(world, "tokens")
    batch = world.deliver(40)
    missing_meters(world, "tokens", code="archived_meter")
    again(world, batch)
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 21}
    assert batch.held_until == world.runtime.monotonic() + 60
    assert "archived_meter" in world.brake.describe()


def test_an_event_that_a_gateway_finds_too_large_is_kept_and_tried_rarely(world: World) -> None:
    world.sandbox.add_fault(Fault("gateway", form="nginx-413", times=10))
    batch = world.deliver(1)
    for _ in range(9):
        assert world.settled == []
        assert not batch.attempted
        again(world, batch)
    assert world.runtime.monotonic() - 1000 >= 30 + 60 + 120 + 240 + 480 + 4 * 900
    again(world, batch)
    assert world.outcomes() == {Outcome.DELIVERED: 1}


def test_the_others_of_a_batch_go_past_an_event_that_is_too_large_for_a_gateway(
    world: World,
) -> None:
    world.sandbox.add_fault(Fault("gateway", form="nginx-413", times=4))
    batch = world.deliver(8)  # 8, 4, 2, 1
    assert world.outcomes() == {Outcome.DELIVERED: 7}
    assert batch.held_until is not None


def test_where_too_much_is_held_refused_events_are_dead_letters(world: World) -> None:
    archive(world)
    for _ in range(1000):
        world.held.put(world.batch(1))
    world.deliver(100)
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 100}


def test_a_refusal_behind_a_free_retry_is_uncertain(world: World) -> None:
    world.deliver(1)  # from now on the connection is kept alive
    world.sandbox.add_fault(Fault("reset", when="after", times=1))
    world.sandbox.add_fault(Fault("status", status=400, code="archived_meter"))
    world.deliver(1)
    assert [outcome for _, outcome, _, _ in world.settled] == [
        Outcome.DELIVERED,
        Outcome.UNCERTAIN,
    ]
    assert len(world.stream_requests()) == 3


@pytest.mark.parametrize(
    "error",
    [
        RequestsConnectionError(
            MaxRetryError(POOL, "/", NewConnectionError(CONNECTION, "refused"))
        ),
        ConnectTimeout("no answer"),
        SSLError(MaxRetryError(POOL, "/", Urllib3SSLError(SSLCertVerificationError("no")))),
    ],
    ids=["refused", "connect timeout", "TLS"],
)
def test_a_connection_that_was_never_made_is_not_ambiguous(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    world.delivery._sessions.token(world.delivery._stream.open_session)
    send, unreachable = SandboxAdapter.send, [error] * 2

    def fail_first(adapter: SandboxAdapter, *request: Any, **options: Any) -> Any:
        if unreachable:
            raise unreachable.pop()
        return send(adapter, *request, **options)

    monkeypatch.setattr(SandboxAdapter, "send", fail_first)
    world.sandbox.add_fault(Fault("status", status=400, code="archived_meter"))
    world.deliver(1)
    assert world.outcomes() == {Outcome.DEAD_LETTERED: 1}
    assert len(world.errors) == 2
