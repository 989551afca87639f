"""A world in which several processes live on one spool at the same time, and some of them die."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast
from unittest.mock import patch

import requests

from meter_agent import (
    Config,
    Stats,
    _lifecycle,
    _segment_lock,
    _spool_care,
    _spool_directory,
)
from meter_agent._agent import build
from meter_agent._segment_lock import Claim
from meter_agent._spool import SpoolBuffer
from meter_agent._spool_header import HEADER_BYTES
from meter_agent.sandbox import Fault, Sandbox
from tests.simulation import autopsy
from tests.simulation.books import Books
from tests.simulation.disk import Disk, SimulatedDirectory, close_files, installed
from tests.simulation.network import Network, SimulatedAdapter
from tests.simulation.runtime import START, SimulatedRuntime
from tests.simulation.scheduler import BrokenPromiseError, Scheduler
from tests.simulation.world import PATIENCE_SECONDS, TRACED

__all__ = ["WAYS", "SharedWorld"]

WAYS = ("died beside another", "adopted", "died as an adopter", "refused", "memory took over")
"""What `SharedWorld.met` counts."""

_PROCESSES = 5
_STORM_SECONDS = 60.0


class SharedNetwork(Network):
    """The way of one process to the server that all of them share."""

    def __init__(self, world: SharedWorld, process: int) -> None:
        super().__init__(
            world.scheduler,
            world.random,
            world.sandbox,
            batch_size=world.settings["batch_size"],
            latency_seconds_max=world.latency_seconds_max,
            lookup_seconds_max=0.0,
        )
        self._world = world
        self._process = process
        # What is known of each event is the same for all.
        self.identifier_of = world.identifier_of
        self._bodies = world.bodies

    def _identifiers(self, request: requests.PreparedRequest) -> list[str]:
        identifiers = super()._identifiers(request)
        for identifier in identifiers:
            self._world.sends(self._process, identifier)
        return identifiers


class Process:
    """One life: its agent, and what its application knows."""

    def __init__(self, world: SharedWorld, number: int) -> None:
        world.all.append(self)
        self.number = number
        self.called: list[int] = []
        self.held: set[int] = set()
        self.refused = 0
        self.owns_files = True
        """Until it dies or begins to close: from then on others may have its events."""
        self.network = SharedNetwork(world, number)
        self.runtime = SimulatedRuntime(world.scheduler, world.random)
        self.runtime.process = number
        self.agent = build(
            world.config,
            runtime=self.runtime,
            open_adapter=lambda: SimulatedAdapter(self.network, number),
        )

    @property
    def buffer(self) -> SpoolBuffer:
        return cast("SpoolBuffer", self.agent._pipeline._buffer)

    @property
    def directory(self) -> SimulatedDirectory:
        return cast("SimulatedDirectory", self.buffer._care._directory)


class SharedWorld:
    """Two or three processes at a time, five in all; what one leaves, another adopts.

    Args:
        seed: Which world.
        directory: For its spool.
    """

    def __init__(self, seed: int, directory: Path) -> None:
        self.random = random = Random(seed)
        traced = random.random() < 0.3
        self.scheduler = Scheduler(
            random,
            preempt=random.choice((0.02, 0.1)),
            traced_files=TRACED if traced else frozenset(),
        )
        self.sandbox = Sandbox(
            duplicates=random.choice(("absorb", "reject")),
            time=lambda: START + self.scheduler.now,
            seed=seed,
        )
        self.settings: dict[str, Any] = {
            "batch_size": random.choice((1, 3, 10)),
            "flush_interval_seconds": random.choice((0.01, 1.0, 20.0)),
            "max_in_flight": random.choice((1, 2, 4)),
            "retry_max_seconds": random.choice((2.0, 30.0)),
            "overflow": random.choice(("drop_newest", "block")),
            "block_timeout_seconds": 0.1,
        }
        self.latency_seconds_max = random.choice((0.0, 0.01, 0.2))
        self.disk = Disk(directory / f"{seed}.shared")
        shutil.rmtree(self.disk.path, ignore_errors=True)
        self.path = self.disk.path / "dead-letters.jsonl"
        self.segment_bytes_min = HEADER_BYTES + random.choice((336, 936, 3936))
        self.spool_bytes = self.segment_bytes_min * random.choice((4, 8, 200))
        self.config = Config(
            sandbox_url="http://127.0.0.1:1", spool_dir=self.disk.path, **self.settings
        )
        object.__setattr__(self.config, "spool_bytes", self.spool_bytes)
        self.identifier_of: dict[int, str] = {}
        self.bodies: dict[str, str] = {}
        self.senders: dict[str, int] = {}
        self.living: dict[int, Process] = {}
        self.all: list[Process] = []
        self.lost: set[int] = set()
        """Events that a process which died held in memory alone."""
        self.cut_off: set[int] = set()
        """Events whose `record()` never returned."""
        self.numbers = 0
        self.producers = 0
        self.is_stormy = True
        self.met: Counter[str] = Counter()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Prepare the package for this world."""
        self._claimed: dict[Claim, int] = {}

        def noted(claim: Callable[..., Claim | None]) -> Callable[..., Claim | None]:
            # What a process has claimed stands for the locks that the kernel gives it.
            def claim_and_note(*arguments: Any) -> Claim | None:
                key = claim(*arguments)
                if key is not None:
                    self._claimed[key] = self.scheduler._me().process
                return key

            return claim_and_note

        with ExitStack() as stack:
            stack.enter_context(installed(self.disk, self.segment_bytes_min))
            for name in ("claim", "claim_file"):
                claim = noted(getattr(_segment_lock, name))
                stack.enter_context(patch.object(_spool_directory, name, claim))
            yield

    # -- lives ---------------------------------------------------------------------------------

    def play(self) -> None:
        """The whole of it, as the main thread of no process."""
        self.scheduler.start(self.blow, "weather")
        for _ in range(2):
            self.bear()
        while len(self.all) < _PROCESSES:
            self.wait_a_while()
            if len(self.living) == 3 or self.random.random() < 0.5:
                self.die(self.random.choice(list(self.living.values())))
            if len(self.living) < 2 or self.random.random() < 0.5:
                self.bear()
            self.check_disk()
        self.wait_a_while()
        # The last to die has nobody but who has long looked for orphans.
        self.die(self.random.choice(list(self.living.values())))
        while self.producers or self.is_stormy:
            self.scheduler.wait(1.0)
        self.inherit()
        self.check_books()

    def wait_a_while(self) -> None:
        self.scheduler.wait_steps(
            int(self.random.random() * self.random.choice((100, 1000, 5000))),
            self.random.random() * 40.0,
        )

    def bear(self) -> None:
        process = Process(self, len(self.all) + 1)
        self.living[process.number] = process
        self.start(process, self.produce)
        self.start(process, self.observe)

    def start(self, process: Process, target: Callable[[Process], None]) -> None:
        self.producers += target == self.produce
        name = f"{target.__name__} {process.number}"
        self.scheduler.start(partial(target, process), name, process=process.number)

    def produce(self, process: Process) -> None:
        gap_seconds = self.random.choice((0.0, 0.05, 1.0))
        for _ in range(self.random.choice((3, 10, 30))):
            self.numbers += 1
            number = self.numbers
            process.called.append(number)
            if process.agent.record("requests", "cus_1", number):
                process.held.add(number)
            else:
                process.refused += 1
                self.met["refused"] += 1
            self.check_disk()
            self.scheduler.wait(self.random.random() * gap_seconds)
        self.producers -= 1

    def observe(self, process: Process) -> None:
        while process.owns_files:
            if not process.agent.stats().balanced:
                raise BrokenPromiseError(f"the ledger does not add up: {process.agent.stats()}")
            self.scheduler.wait(self.random.random() * 100.0)

    def die(self, process: Process) -> None:
        """Killed: its threads stop where they are, its files and the other processes stay."""
        self.scheduler.kill(process.number)
        del self.living[process.number]
        process.owns_files = False
        process.network.process_died()
        self.met["died beside another"] += bool(self.living)
        self.met["died as an adopter"] += bool(process.buffer._adopted)
        records = self.disk.records()
        autopsy.inspect(process.buffer, records)
        in_memory = autopsy.in_memory(process.buffer)
        self.met["memory took over"] += process.buffer._troubles.failures
        self.lost |= in_memory
        if len(process.called) > len(process.held) + process.refused:
            self.cut_off.add(process.called[-1])
        if not self.finished(process):
            self.producers -= 1
        for segment in process.directory.segments:
            segment.release()
        for key in [key for key, number in self._claimed.items() if number == process.number]:
            if key not in self.keys_of_the_living():
                _segment_lock.unclaim(key)
            del self._claimed[key]
        living = {key[3] for key in (*self._claimed, *self.keys_of_the_living())}
        close_files(file for file in self.disk.path.glob("*.segment") if file.name not in living)
        _lifecycle.unregister(process.agent._pipeline)
        process.agent._pipeline._final = Stats()

    def finished(self, process: Process) -> bool:
        name = f"produce {process.number}"
        return not any(task.killed and task.name == name for task in self.scheduler.tasks)

    def keys_of_the_living(self) -> set[Claim]:
        return {
            key
            for process in self.living.values()
            for segment in process.directory.segments
            for key in segment.keys
        }

    def inherit(self) -> None:
        """All trouble is over: those that live send everything, unasked, and then they end."""
        began = self.scheduler.now
        while self.left() and self.scheduler.now < began + PATIENCE_SECONDS:
            self.scheduler.wait(_spool_care.ADOPT_SECONDS)
        # Files of the dead in which nothing has to be sent are adopted as well.
        self.scheduler.wait(2 * _spool_care.ADOPT_SECONDS)
        for process in list(self.living.values()):
            process.owns_files = False
            stats = process.agent.close(PATIENCE_SECONDS)
            self.met["adopted"] += stats.recovered
            self.met["memory took over"] += stats.spool_failures
            if not stats.balanced or stats.recorded != len(process.called):
                raise BrokenPromiseError(f"{len(process.called)} were recorded: {stats}")
            if stats.buffered or stats.in_flight or stats.dropped.get("damaged"):
                raise BrokenPromiseError(f"left behind by a close that had all the time: {stats}")

    def left(self) -> list[int]:
        return [found.number for found in self.disk.records() if not found.settled]

    # -- weather -------------------------------------------------------------------------------

    def blow(self) -> None:
        """Trouble for a while, and then none."""
        kinds = [kind for kind in self.KINDS if self.random.random() < 0.4]
        ends = self.scheduler.now + self.random.random() * _STORM_SECONDS
        while kinds and self.scheduler.now < ends:
            self.scheduler.wait(self.random.random() * 5.0)
            self.random.choice(kinds)(self)
        self.sandbox.clear_faults()
        self.disk.fails = False
        for process in self.all:
            process.network.down = False
        self.is_stormy = False

    def outage(self) -> None:
        for process in self.all:
            process.network.down = self.random.random() < 0.5

    def lost_answers(self) -> None:
        when = self.random.choice(("before", "after"))
        self.sandbox.add_fault(Fault("reset", when=when, times=3))  # type: ignore[arg-type]

    def errors(self) -> None:
        self.sandbox.add_fault(Fault("status", status=self.random.choice((429, 500)), times=3))

    def failing_disk(self) -> None:
        self.disk.fails = self.random.random() < 0.5

    KINDS = (outage, lost_answers, errors, failing_disk)

    # -- what must hold ------------------------------------------------------------------------

    def sends(self, number: int, identifier: str) -> None:
        """A process is about to send an event: nobody else who lives may have it."""
        before = self.senders.setdefault(identifier, number)
        if before != number and self.all[before - 1].owns_files:
            raise BrokenPromiseError(
                f"{identifier} is sent by process {number} and is that of process {before}"
            )
        self.senders[identifier] = number

    def check_disk(self) -> None:
        if self.random.random() < 0.8:
            return  # the disk is slow to ask
        taken = self.disk.bytes_taken()
        if self.path.exists():  # in the same directory, but not a part of the spool
            taken -= self.path.stat().st_size
        if taken > self.spool_bytes:
            raise BrokenPromiseError(f"the spool takes {taken} bytes of {self.spool_bytes}")

    def check_books(self) -> None:
        """Compare what all applications know with what the server has."""
        numbers = [int(row["value"]) for row in self.sandbox.ledger()]
        billed = set(numbers)
        held = {number for process in self.all for number in process.held}
        reasons = self.dead_letters()
        dropped = {number for number, reason in reasons.items() if reason == "dropped"}
        promises = {
            "each number is billed once": len(numbers) == len(billed),
            "nothing refused is billed": billed <= held | self.cut_off,
            "nothing is missing": held - self.lost <= billed,
            "dead letters are of dropped events alone": len(dropped) == len(reasons),
            "what was dropped is neither held nor billed": not dropped & (held | billed),
            "nothing is left": not list(self.disk.path.glob("*.segment")),
        }
        if broken := [promise for promise, kept in promises.items() if not kept]:
            raise BrokenPromiseError(
                f"not true: {broken}\nmissing {sorted(held - self.lost - billed)}\n"
                f"left {self.left()}\ndead letters {reasons}"
            )

    def dead_letters(self) -> dict[int, str]:
        if not self.path.exists():
            return {}
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return {Books.number_of(line["event"]): line["reason"] for line in lines}
