"""A `Config` is a value: equal, immutable, picklable."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

from meter_agent._config import Config
from meter_agent.exceptions import ConfigError
from tests.config.settings import KEY

RICH = Config(
    api_key=KEY,
    spool_dir=Path("/spool"),
    payload_keys={"tokens": {"customer_key": "a", "value_key": "b"}},
)


def test_a_config_survives_pickling_and_copying() -> None:
    for copied in (pickle.loads(pickle.dumps(RICH)), copy.deepcopy(RICH), copy.copy(RICH)):
        assert copied == RICH
        assert hash(copied) == hash(RICH)
        assert repr(copied) == repr(RICH)


def test_a_changed_copy_is_checked_like_a_new_one() -> None:
    changed = dataclasses.replace(RICH, batch_size=5)
    assert (changed.batch_size, changed.payload_keys) == (5, RICH.payload_keys)
    assert changed != RICH
    with pytest.raises(ConfigError, match="METER_AGENT_BATCH_SIZE=0"):
        dataclasses.replace(RICH, batch_size=0)


def test_a_config_cannot_be_changed() -> None:
    keys: Any = RICH.payload_keys
    with pytest.raises(dataclasses.FrozenInstanceError):
        RICH.strict = True  # type: ignore[misc]
    for change in (lambda: keys.update(a={}), lambda: keys.pop("tokens"), keys.clear):
        with pytest.raises(TypeError, match="immutable"):
            change()
    with pytest.raises(TypeError, match="immutable"):
        keys["tokens"]["value_key"] = "c"


def test_a_config_keeps_its_own_copy_of_a_mapping() -> None:
    given_keys = {"tokens": {"value_key": "b"}}
    config = Config(api_key=KEY, payload_keys=given_keys)
    given_keys["tokens"]["value_key"] = "c"
    assert config.payload_keys == {"tokens": {"value_key": "b"}}
