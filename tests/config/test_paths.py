"""Paths in the settings are made absolute where they are read."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from meter_agent import Config, ConfigError, MeterAgent
from tests.config.settings import KEY

PATHS = ["spool_dir", "dead_letter_file", "api_key_file"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which is also the home directory."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_text(KEY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def built(name: str, value: str | Path) -> Config:
    key: dict[str, Any] = {} if name == "api_key_file" else {"api_key": KEY}
    config = Config(**{name: value}, **key)  # type: ignore[arg-type]
    assert config == Config.from_env({f"METER_AGENT_{name.upper()}": str(value)}, **key)
    return config


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    "value", ["sub/x", "./sub//x", "~/sub/x", Path("sub", "x"), "sub/../sub/x"]
)
def test_a_path_is_absolute_and_a_tilde_expanded(here: Path, name: str, value: str | Path) -> None:
    path = getattr(built(name, value), name)
    assert os.path.isabs(path)
    assert os.path.realpath(path) == os.path.realpath(here / "sub" / "x")


def test_the_home_of_another_user_is_expanded() -> None:
    user = pwd.getpwuid(os.getuid())
    config = Config(api_key=KEY, spool_dir=f"~{user.pw_name}/spool")
    assert config.spool_dir == os.path.join(user.pw_dir, "spool")


def test_a_name_that_begins_with_a_tilde_is_kept_behind_a_dot(here: Path) -> None:
    assert Config(api_key=KEY, spool_dir="./~spool").spool_dir == str(here / "~spool")


def test_the_directory_above_a_linked_one_is_that_of_its_target(here: Path) -> None:
    (here / "link").symlink_to(here / "sub", target_is_directory=True)
    (here / "sub" / "deep").mkdir()
    (here / "deep").symlink_to(here / "sub" / "deep", target_is_directory=True)
    path = Config(api_key=KEY, spool_dir="deep/../x").spool_dir
    assert path is not None
    assert os.path.realpath(path) == os.path.realpath(here / "sub" / "x")


@pytest.mark.parametrize("name", PATHS)
def test_a_relative_path_without_a_working_directory_is_refused(here: Path, name: str) -> None:
    gone = here / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match=f"METER_AGENT_{name.upper()}='x': must be a path"):
        Config(sandbox_url="http://localhost", **{name: "x"})  # type: ignore[arg-type]


def test_a_change_of_the_working_directory_changes_nothing(here: Path) -> None:
    with MeterAgent(
        sandbox_url="http://127.0.0.1:1", spool_dir="spool", dead_letter_file="dead.jsonl"
    ) as agent:
        assert agent.record("tokens", "cus_1")
        os.chdir(here / "sub")
        assert agent.record("", "cus_1")
        final = agent.close(0)
    assert {p.name for p in here.iterdir()} - {"dead.jsonl"} == {"spool", "sub"}
    assert [p.name for p in (here / "sub").iterdir()] == ["x"]
    assert final.recorded == 2
    assert final.buffered + final.dead_lettered == 2
