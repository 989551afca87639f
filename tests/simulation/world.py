"""One seed, one world: settings, machine, network, weather, and what the application does.

Swarm style: each world switches most kinds of trouble off, so that the rare combinations are met
undiluted (Groce et al., "Swarm Testing", 2012).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from meter_agent import Config, MeterAgent, Stats
from meter_agent import _buffer as buffer_module
from meter_agent._agent import build
from meter_agent.sandbox import Fault, Sandbox
from tests.simulation.books import Books
from tests.simulation.network import Network, SimulatedAdapter
from tests.simulation.runtime import START, SimulatedRuntime
from tests.simulation.scheduler import BrokenPromiseError, Scheduler, Task
from tests.simulation.weather import NAMES, POISONED, Weather

__all__ = ["World"]

PACKAGE = Path(buffer_module.__file__).parent
TRACED = frozenset(
    str(PACKAGE / f"{name}.py")
    for name in (
        "_body_limit",
        "_brake",
        "_buffer",
        "_deaths",
        "_delivery",
        "_event_buffer",
        "_flusher",
        "_held",
        "_ledger",
        "_log",
        "_pace",
        "_pipeline",
        "_schedule",
        "_sender",
        "_session",
        "_spool",
        "_spool_directory",
        "_spool_record",
    )
)
UNASKED_SECONDS = 1200.0
"""After so long without trouble everything is sent, though nobody asked: longer than any interval,
back-off, timeout and queue of these worlds."""
IDLE_SECONDS = 600.0
BEDTIMES = 6
BEDTIME_SECONDS = 120.0
"""Enough for two events without any trouble: longer than any interval and read timeout."""
TICK_SECONDS = 0.05
STARTED_BY_CLOSE_MAX = 100
CLOSE_GRACE_SECONDS = 0.5
"""What `close()` may take beyond its timeout, to wait for the last line of another call."""
"""Senders that die and are replaced, included."""
PATIENCE_SECONDS = 7200.0


class World:
    """Everything of one seed.

    Args:
        seed: Which world.
        directory: For its dead-letter file.
    """

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.heals = random.random() < 0.7
        """Whether every trouble ends before the last close, which then has all the time."""
        traced = random.random() < 0.3
        stalls = random.random() < 0.15
        self.scheduler = Scheduler(
            random,
            preempt=random.choice((0.02, 0.1, 0.4)) if not traced else random.choice((0.02, 0.1)),
            stall=0.002 if stalls else 0.0,
            stall_seconds_max=random.choice((0.01, 1.0)),
            traced_files=TRACED if traced else frozenset(),
            interrupt=self.interrupt if traced and random.random() < 0.5 else None,
        )
        self.lacks_threads = random.random() < 0.1
        self.runtime = SimulatedRuntime(
            self.scheduler, random, no_thread=0.3 if self.lacks_threads else 0.0
        )
        self.sandbox = Sandbox(
            session_seconds=random.choice((2.0, 10.0, 900.0)),
            duplicates=random.choice(("absorb", "absorb", "reject")),
            batch_atomic=random.random() < 0.8,
            expired_status=random.choice((400, 401)),
            max_body_bytes=random.choice((1_000_000, 1_000_000, 1_500)),
            time=lambda: START + self.scheduler.now,
            seed=seed,
        )
        self.settings = self.draw_settings()
        self.network = Network(
            self.scheduler,
            random,
            self.sandbox,
            batch_size=self.settings["batch_size"],
            latency_seconds_max=random.choice((0.0, 0.01, 0.2)),
            lookup_seconds_max=0.0,
        )
        self.path = directory / f"{seed}.jsonl"
        self.books = Books()
        self.sandbox.add_fault(
            Fault(
                "poison",
                code=POISONED,
                predicate=lambda event: int(event["payload"]["value"]) in self.books.poison,
            )
        )
        self.weather = Weather(self)
        self.closed = False
        self.is_stormy = True
        self.meddlesome = random.random() < 0.2
        self.poison_share = random.choice((0.0, 0.0, 0.02, 0.2))
        self.invalid_share = random.choice((0.0, 0.05))
        self.twice_allowed: set[int] = set()
        """Events that may have two letters, because a crash came between the first and its note."""
        self.producers_running = 0
        self.recording = 0
        self.closers_running = 0
        self.closers_started = 0

    def draw_settings(self) -> dict[str, Any]:
        random = self.random
        return {
            "sandbox_url": "http://127.0.0.1:1",
            # Room for the places under the lock, and for few or many before it.
            "buffer_events": random.choice((1, 4, 30, 40, 200, 200)),
            "overflow": random.choice(("drop_newest", "drop_newest", "drop_oldest", "block")),
            "block_timeout_seconds": random.choice((0.0, 0.1, 5.0)),
            "batch_size": random.choice((1, 3, 10, 20)),
            "flush_interval_seconds": random.choice((0.01, 1.0, 1.0, 20.0)),
            "max_in_flight": random.choice((1, 2, 4, 8)),
            "max_events_per_second": random.choice((20.0, 10_000.0, 10_000.0)),
            "read_timeout_seconds": random.choice((1.0, 30.0)),
            "retry_base_seconds": random.choice((0.1, 0.5)),
            "retry_max_seconds": random.choice((2.0, 30.0)),
            "resend_window_seconds": random.choice((5.0, 60.0, 82_800.0, 82_800.0)),
        }

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Prepare the package for this world."""
        yield

    # -- the application -----------------------------------------------------------------------

    def play(self) -> None:
        """The whole life of the world, as its main thread."""
        self.agent: MeterAgent = self.open_agent()
        self.scheduler.start(self.weather.blow, "weather")
        self.start_application()
        self.live()
        self.leave()

    def open_agent(self) -> MeterAgent:
        process = self.runtime.process
        return build(
            self.make_config(),
            runtime=self.runtime,
            open_adapter=lambda: SimulatedAdapter(self.network, process),
            on_dead_letter=self.on_dead_letter,
            on_error=self.on_error,
        )

    def make_config(self) -> Config:
        return Config(**self.settings, dead_letter_file=self.path)

    def start_application(self) -> None:
        for _ in range(self.random.choice((1, 2, 3))):
            self.producers_running += 1
            self.start(self.produce, "producer")
        self.start(self.observe, "observer")
        if self.random.random() < 0.5:
            self.start(self.flush_now_and_then, "flusher's caller")

    def start(self, target: Callable[[], None], name: str) -> None:
        """Start a thread of the application."""
        self.scheduler.start(target, name, process=self.runtime.process)

    def live(self) -> None:
        """Until the application has closed the agent."""
        closes_early = not self.heals and self.random.random() < 0.5
        while not closes_early and (self.producers_running or (self.heals and self.is_stormy)):
            self.scheduler.wait(1.0)
        if closes_early:
            self.scheduler.wait(self.random.random() * 10.0)
            if self.random.random() < 0.3:
                self.start(self.close, "another closer")
        elif self.heals:
            self.recover()
        self.close()
        while self.producers_running or self.closers_running:
            self.scheduler.wait(1.0)

    EVENTS_PER_PRODUCER = (3, 20, 50)

    def produce(self) -> None:
        gap_seconds = self.random.choice((0.0, 0.0, 0.05, 1.0))
        for _ in range(self.random.choice(self.EVENTS_PER_PRODUCER)):
            self.record()
            self.scheduler.wait(self.random.random() * gap_seconds)
        self.producers_running -= 1

    def record(self) -> None:
        number = self.books.next_number()
        kind = self.random.random()
        name, poison = NAMES[number % len(NAMES)], False
        if kind < self.poison_share:
            poison = True
        elif kind < self.poison_share + self.invalid_share:
            name = ""
        self.books.begins(number, poison=poison, invalid=not name)
        self.recording += 1
        held = self.agent.record(name, "cus_1", number)
        self.recording -= 1
        self.books.ends(number, held=held)
        self.check_capacity()

    def interrupt(self) -> None:
        """A signal handler or `__del__` that records, in whatever task and line it comes."""
        if self.producers_running and not self.closed and len(self.books.called) < 300:
            # It may wait, and whom it interrupted waits with it, whatever lock that one holds.
            if self.settings["overflow"] == "block":
                self.scheduler.stall_for(self.settings["block_timeout_seconds"])
            self.record()
            if self.random.random() < 0.1:
                timeout = self.random.choice((0.0, 0.5))
                self.scheduler.stall_for(timeout)
                self.flush(timeout)

    def flush_now_and_then(self) -> None:
        for _ in range(self.random.choice((1, 4))):
            self.scheduler.wait(self.random.random() * 20.0)
            self.flush(self.random.choice((0.0, 0.5, 10.0, 60.0)))

    def flush(self, timeout: float) -> None:
        before = self.books.held_for_sure()
        began = self.scheduler.now
        settled = self.agent.flush(timeout)
        self.check_budget("flush", began, timeout)
        if settled:
            self.check_settled(before)

    def observe(self) -> None:
        while not self.closed:
            self.check_ledger(self.agent.stats())
            self.check_capacity()
            self.scheduler.wait(self.random.random() * self.observe_seconds)

    @property
    def observe_seconds(self) -> float:
        return 3.0

    def close(self) -> None:
        self.closers_running += 1
        self.closers_started += 1
        timeout = PATIENCE_SECONDS if self.heals else self.random.choice((0.0, 0.3, 5.0))
        began, tasks = self.scheduler.now, len(self.scheduler.tasks)
        self.check_ledger(self.agent.close(timeout))
        self.check_budget("close", began, timeout)
        if len(self.scheduler.tasks) > tasks + STARTED_BY_CLOSE_MAX:
            raise BrokenPromiseError(f"close() started {len(self.scheduler.tasks) - tasks} threads")
        self.closed = True
        self.closers_running -= 1

    def recover(self) -> None:
        """All trouble is over: what is held must arrive, and then all must be still."""
        before = self.books.held_for_sure()
        if self.random.random() < 0.5:
            if self.lacks_threads:
                self.record()  # which finds that threads can be started again
            self.scheduler.wait(UNASKED_SECONDS)
            self.check_settled(before)
            self.record_at_bedtime()
        if not self.agent.flush(PATIENCE_SECONDS):
            raise BrokenPromiseError(
                f"not settled within {PATIENCE_SECONDS} s after the trouble ended"
            )
        self.check_settled(before)
        if self.scheduler.interrupt is None:
            self.check_idleness()

    def record_at_bedtime(self) -> None:
        """Events that come just when the last sender falls asleep, and nobody asks."""
        for _ in range(BEDTIMES):
            self.record()
            # Where answers take no time, the sender is done at the very moment.
            self.scheduler.wait(self.settings["flush_interval_seconds"])
            self.record()
            before = self.books.held_for_sure()
            self.scheduler.wait(self.bedtime_seconds)
            self.check_settled(before)

    @property
    def bedtime_seconds(self) -> float:
        return BEDTIME_SECONDS

    def on_dead_letter(self, letter: Any) -> None:
        self.check_callback()
        self.books.announced.append(self.books.number_of(letter.event))
        if self.meddlesome:
            self.meddle()

    def on_error(self, error: Exception) -> None:
        self.check_callback()
        if self.meddlesome and self.random.random() < 0.2:
            self.meddle()

    def meddle(self) -> None:
        action = self.random.choice(
            (self.record_once, self.agent.stats, self.flush_briefly, self.throw)
        )
        action()

    def record_once(self) -> None:
        if len(self.books.called) < 300:
            self.record()

    def flush_briefly(self) -> None:
        self.agent.flush(0.1)

    def throw(self) -> None:
        raise SystemExit(3)

    # -- what must hold ------------------------------------------------------------------------

    def check_ledger(self, stats: Stats) -> None:
        if not stats.balanced:
            raise BrokenPromiseError(f"the ledger does not add up: {stats}")

    def check_capacity(self) -> None:
        # Who is just in `record()` may have come too late, and is about to take its event back.
        waiting = len(self.agent._pipeline._buffer) - self.recording
        if waiting > self.settings["buffer_events"]:
            raise BrokenPromiseError(
                f"{waiting} events wait, more than {self.settings['buffer_events']}"
            )

    def check_callback(self) -> None:
        if self.scheduler._me().held and not self.scheduler._me().interrupted:
            raise BrokenPromiseError("a callback was called with a lock in hand")
        if self.books.final is not None:
            raise BrokenPromiseError("a callback was called after the end")

    def check_budget(self, name: str, began: float, timeout: float) -> None:
        took = self.scheduler.now - began
        if self.lacks_threads:
            # The caller sends by itself. Connecting and reading have a timeout each.
            timeout += 2 * self.network.latency_seconds_max
        if name == "close" and self.closers_started > 1:
            timeout += CLOSE_GRACE_SECONDS
        stalled = self.scheduler.stalled_since(began)
        if took > timeout + stalled + TICK_SECONDS + (0.5 if stalled else 0.0):
            raise BrokenPromiseError(
                f"{name}({timeout}) took {took:.3f} s of which {stalled:.3f} stalled"
            )

    def check_settled(self, numbers: set[int]) -> None:
        """`flush()` returned True: each of *numbers* has ended."""
        billed = {int(row["value"]) for row in self.sandbox.ledger()}
        missing = numbers - billed - set(self.letters())
        dropped = self.agent.stats().dropped
        given_up = dropped.get("shutdown", 0)
        if self.settings["overflow"] == "drop_oldest":
            given_up += dropped.get("overflow", 0)
        if len(missing) > given_up:
            raise BrokenPromiseError(f"flush() said True and {sorted(missing)} are not settled")

    def check_idleness(self) -> None:
        while any(not task.done and not task.killed for task in self.senders(former=True)):
            self.scheduler.wait(10.0)  # requests of a closed agent that come to their end
        self.scheduler.wait(60.0)
        self.scheduler._calm = True
        wakes, requests = sum(task.wakes for task in self.senders()), len(self.sandbox.requests)
        self.scheduler.wait(IDLE_SECONDS)
        again = sum(task.wakes for task in self.senders()) - wakes
        self.scheduler._calm = False
        if again > self.wakes_when_idle or len(self.sandbox.requests) != requests:
            raise BrokenPromiseError(f"an idle agent woke {again} times")

    def senders(self, *, former: bool = False) -> Iterator[Task]:
        """The sender threads of this process, or of former ones."""
        for task in self.scheduler.tasks:
            is_former = task.process != self.runtime.process
            if task.name == "meter-agent-sender" and is_former == former:
                yield task

    @property
    def wakes_when_idle(self) -> float:
        return 0

    def letters(self) -> dict[int, str]:
        """Number and reason of every dead letter in the file, those of dropped events excepted."""
        letters = self._all_letters()
        return {number: reason for number, reason in letters.items() if reason != "dropped"}

    def check_dropped(self) -> int:
        """No dropped event that was handed over was sent; return how many there were."""
        reasons = self._all_letters()
        dropped = {number for number, reason in reasons.items() if reason == "dropped"}
        billed = {int(row["value"]) for row in self.sandbox.ledger()}
        if dropped & billed or not dropped <= set(self.books.called):
            raise BrokenPromiseError(f"dropped and billed: {sorted(dropped & billed)}")
        return len(dropped)

    def _all_letters(self) -> dict[int, str]:
        letters: dict[int, str] = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                letter = json.loads(line)
                number = self.books.number_of(letter["event"])
                if number in letters and number not in self.twice_allowed:
                    raise BrokenPromiseError(f"event {number} has two dead letters")
                if number not in letters or letter["reason"] != "dropped":
                    letters[number] = letter["reason"]
        return letters

    def leave(self) -> None:
        """The agent is closed and nobody records: the books are final."""
        self.books.final = stats = self.agent.stats()
        self.check_ledger(stats)
        self.books.check(stats, self.letters(), self.sandbox.ledger())
        self.check_refusals()
        if self.check_dropped() > stats.dropped_total:
            raise BrokenPromiseError(f"more letters of dropped events than drops\n{stats}")
        self.check_pressure()
        if self.heals:
            self.check_recovered(stats)

    def check_recovered(self, stats: Stats) -> None:
        lost = {
            reason: n for reason, n in stats.dropped.items() if reason not in {"overflow", "closed"}
        }
        if lost or stats.buffered or stats.in_flight:
            raise BrokenPromiseError(
                f"events were left behind by a close that had all the time: {stats}"
            )
        # A close that is pressed may catch a request between its note and the wire; this one not.
        if never_sent := self.books.never_sent(self.letters(), self.network):
            raise BrokenPromiseError(f"uncertain, and never sent: {never_sent}")

    def check_refusals(self) -> None:
        """What was ambiguous once never ends as a plain refusal."""
        refused = {number for number, reason in self.letters().items() if reason == "rejected"}
        ambiguous = {self.network.value_of(identifier) for identifier in self.network.ambiguous}
        if both := refused & ambiguous:
            raise BrokenPromiseError(f"refused after an ambiguous attempt: {sorted(both)}")

    @property
    def clock_error_seconds(self) -> float:
        return 0.0

    def check_pressure(self) -> None:
        """No storm: what fails is not asked again and again."""
        failed = self.network.failed_at
        for first, later in zip(failed, failed[60:], strict=False):
            if later - first < 1.0:
                raise BrokenPromiseError(f"60 failing requests in {later - first:.2f} s")
        window_seconds = self.settings["resend_window_seconds"]
        late = self.books.resent_too_late(
            self.network, self.sandbox.ledger(), window_seconds, self.clock_error_seconds
        )
        if late:
            raise BrokenPromiseError(
                f"sent again after the resend window of {window_seconds} s: {late}"
            )
