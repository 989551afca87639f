"""Run one simulated world."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import requests  # noqa: F401 - see below

from meter_agent import (  # noqa: F401 - see below
    _buffer,
    _delivery,
    _lifecycle,
    _log,
    _segment_lock,
    _sender,
    _spool,
    _stream,
)
from tests.simulation.scheduler import BrokenPromiseError
from tests.simulation.shared_world import SharedWorld
from tests.simulation.spool_world import SpoolWorld
from tests.simulation.world import World

__all__ = ["run_seed", "run_shared_seed"]

# As many as there are simulated threads. The real number would need a thousand events for each
# world that is to meet the boundary.
PLACES_UNDER_LOCK = 24

# What the package does once per process must not be done within the first world: imports, and the
# handler of its logger.
_log.write("meter_agent.closed", logging.DEBUG)


def run_seed(seed: int, directory: Path) -> World:
    """Play the world of *seed* and return it.

    Raises:
        BrokenPromiseError: A promise was broken; the message ends with how to see it again.
    """
    with undisturbed(), patch.object(_buffer, "_PLACES_UNDER_LOCK", PLACES_UNDER_LOCK):
        world = (SpoolWorld if seed % 3 == 2 else World)(seed, directory)
        world.path.unlink(missing_ok=True)
        try:
            with world.installed():
                world.scheduler.run(world.play)
        except BrokenPromiseError as violation:
            raise BrokenPromiseError(f"{violation}\nagain: make sim SEED={seed}") from None
    return world


def run_shared_seed(seed: int, directory: Path) -> SharedWorld:
    """Play the world of *seed* in which several processes share a spool, and return it.

    Raises:
        BrokenPromiseError: A promise was broken.
    """
    with undisturbed():
        world = SharedWorld(seed, directory)
        try:
            with world.installed():
                world.scheduler.run(world.play)
        except BrokenPromiseError as violation:
            raise BrokenPromiseError(f"{violation}\nof the shared world {seed}") from None
    return world


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing that earlier worlds left behind comes into this one."""
    # The collector would come when it likes.
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        # A world in which a promise broke stands still: no exit of this process may wait for it.
        _lifecycle._state.pipelines.clear()
        _segment_lock._claims.clear()
