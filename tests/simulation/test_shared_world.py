"""Several processes at once on one spool, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.run import run_shared_seed
from tests.simulation.shared_world import WAYS

WORLDS = 20
WORLDS_PER_TEST = 5


@pytest.mark.parametrize("first", range(0, WORLDS, WORLDS_PER_TEST))
def test_processes_that_share_a_spool_neither_lose_nor_double_nor_take_from_each_other(
    first: int, tmp_path: Path
) -> None:
    for seed in range(first, first + WORLDS_PER_TEST):
        run_shared_seed(seed, tmp_path)


def test_the_shared_worlds_meet_every_way_in_which_one_process_matters_to_another(
    tmp_path: Path,
) -> None:
    missing = set(WAYS)
    for seed in range(WORLDS, 10 * WORLDS):
        missing -= (+run_shared_seed(seed, tmp_path).met).keys()
        if not missing:
            break
    assert not missing
