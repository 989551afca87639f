"""`meter-agent doctor --offline`: files, the resend window, and how the service runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meter_agent import Config
from meter_agent._dead_letters import FILE_BYTES_MAX
from meter_agent.cli.doctor.file_systems import FileSystem, file_system_of
from meter_agent.cli.doctor.files import judge_file_system, judge_space
from meter_agent.cli.doctor.process import check_process
from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.crash.disks import FullDisk, full_disk

from .advice import Patient, assert_cured
from .test_cli_spool import damage, die_with

MEBIBYTE = 1024 * 1024


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Patient:
    """Somebody without any trouble, who asks nobody."""
    for name in ("HTTP_PROXY", "http_proxy", "GUNICORN_CMD_ARGS"):
        monkeypatch.delenv(name, raising=False)
    somebody = Patient(monkeypatch)
    somebody.set(METER_AGENT_SANDBOX_URL="http://127.0.0.1:1", METER_AGENT_SPOOL_BYTES=MEBIBYTE)
    somebody.set(METER_AGENT_DEAD_LETTER_FILE=tmp_path / "letters.jsonl")
    return somebody


@pytest.fixture
def spool(patient: Patient, tmp_path: Path) -> Path:
    path = tmp_path / "the spool"
    path.mkdir(mode=0o700)
    patient.set(METER_AGENT_SPOOL_DIR=path)
    return path


# -- the spool -------------------------------------------------------------------------------------


def test_a_good_directory_is_tried_out_and_left_as_it_was(patient: Patient, spool: Path) -> None:
    diagnosis = patient.ask("--offline")
    assert diagnosis.states("spool") == ["ok"]
    assert list(spool.iterdir()) == []


def test_a_directory_that_is_not_there_yet_is_made_by_the_agent_and_not_by_the_doctor(
    patient: Patient, tmp_path: Path
) -> None:
    patient.set(METER_AGENT_SPOOL_DIR=tmp_path / "a" / "b")
    finding = patient.ask("--offline").of("spool")
    assert (finding["state"], "the first agent makes it" in finding["detail"]) == ("ok", True)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_directory_is_made_absolute(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    patient.set(METER_AGENT_SPOOL_DIR="spool")
    assert_cured(patient, "spool", "warning", "--offline")
    assert os.environ["METER_AGENT_SPOOL_DIR"] == str(tmp_path / "spool")


def test_a_directory_that_others_may_write_to_is_mended(patient: Patient, spool: Path) -> None:
    spool.chmod(0o777)
    assert_cured(patient, "spool", "failed", "--offline", exit_code=2)


def test_a_file_in_the_place_of_the_directory_is_told(patient: Patient, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    patient.set(METER_AGENT_SPOOL_DIR=place)
    diagnosis = patient.ask("--offline")
    assert diagnosis.exit_code == 2
    assert "is not a directory" in diagnosis.of("spool")["detail"]
    patient.set(METER_AGENT_SPOOL_DIR=place / "below")
    diagnosis = patient.ask("--offline")
    assert diagnosis.exit_code == 2
    assert f"`sudo install -d -m 700 -o {os.geteuid()}" in diagnosis.of("spool")["advice"]


def test_the_directory_of_another_user_is_told(patient: Patient, tmp_path: Path) -> None:
    path = Path("/proc/1") if os.geteuid() else tmp_path / "other"
    if os.geteuid() == 0:
        path.mkdir(mode=0o700)
        os.chown(path, 12_345, 12_345)
    patient.set(METER_AGENT_SPOOL_DIR=path)
    diagnosis = patient.ask("--offline")
    assert diagnosis.exit_code == 2
    advice = diagnosis.of("spool")["advice"]
    assert advice.startswith("ask as the user of the service")
    if os.geteuid() == 0:
        patient.follow(advice.replace("sudo ", ""))
        assert patient.ask("--offline").of("spool")["state"] == "ok"


def test_a_directory_in_which_no_file_can_be_made_is_told(patient: Patient) -> None:
    if os.geteuid() == 0:
        patient.set(METER_AGENT_SPOOL_DIR="/proc/self/fd")
    else:
        patient.set(METER_AGENT_SPOOL_DIR="/proc/self/task")
    diagnosis = patient.ask("--offline")
    assert diagnosis.exit_code == 2
    assert diagnosis.of("spool")["state"] == "failed"


def test_events_of_dead_processes_are_told_and_replayed(patient: Patient, spool: Path) -> None:
    die_with(spool, 1, 2, 3)
    before = patient.ask("--offline").of("spool")
    assert "3 events of dead processes in" in before["detail"]
    stripe = Sandbox()
    with SandboxServer(stripe) as server:
        patient.set(METER_AGENT_SANDBOX_URL=server.url, NO_PROXY="127.0.0.1")
        assert_cured(patient, "spool", "warning", "--offline")
    assert stripe.totals()["accepted"] == 3


def test_damage_is_told_then_quarantined_then_taken_away(patient: Patient, spool: Path) -> None:
    damage(die_with(spool, 1, 2, 3), b'"cus_1",2]')
    first = patient.ask("--offline")
    assert first.exit_code == 1
    with SandboxServer() as server:
        patient.set(METER_AGENT_SANDBOX_URL=server.url, NO_PROXY="127.0.0.1")
        patient.follow(first.of("spool")["advice"], which=1, ends_with=3)
    assert "1 damaged piece in" in patient.ask("--offline").of("spool")["detail"]
    assert_cured(patient, "spool", "warning", "--offline")
    assert (spool.parent / "the spool-quarantine").is_dir()


def test_space_that_will_not_do_is_told_with_a_limit_that_does(patient: Patient) -> None:
    path = Path("/spool")
    assert judge_space(path, free=10 * MEBIBYTE, used=0, allowed=10 * MEBIBYTE) is None
    short = judge_space(path, free=8 * MEBIBYTE, used=2 * MEBIBYTE, allowed=20 * MEBIBYTE)
    assert short is not None
    patient.follow(short.advice or "")
    smaller = int(os.environ["METER_AGENT_SPOOL_BYTES"])
    assert judge_space(path, free=8 * MEBIBYTE, used=2 * MEBIBYTE, allowed=smaller) is None
    # No spool is as small as what would fit.
    none = judge_space(path, free=MEBIBYTE, used=0, allowed=20 * MEBIBYTE)
    assert none is not None
    assert "METER_AGENT_SPOOL_BYTES" not in (none.advice or "")
    full = judge_space(path, free=900 * MEBIBYTE, used=95, allowed=100)
    assert full is not None
    patient.follow(full.advice or "", which=1)
    larger = int(os.environ["METER_AGENT_SPOOL_BYTES"])
    assert judge_space(path, free=900 * MEBIBYTE, used=95, allowed=larger) is None


MOUNTS = """\
22 21 0:20 / /mnt/my\\040files rw,nosuid shared:5 - nfs4 server:/export rw
23 21 0:21 / /mnt/my\\040files/local rw - xfs /dev/vdb rw
24 21 0:22 / /mnt/covered rw - xfs /dev/vdc rw
25 21 0:23 / /mnt/covered rw - cifs //server/share rw
21 1 254:1 / / rw,relatime - ext4 /dev/vda rw
half a line
"""


def test_a_network_file_system_is_known_by_the_nearest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    kinds = {
        path: file_system_of(Path(path), mounts)
        for path in ("/var", "/mnt/my files/x", "/mnt/my files/local", "/mnt/covered/x", "/mnt/my")
    }
    assert {path: found.kind for path, found in kinds.items() if found is not None} == {
        "/var": "ext4",
        "/mnt/my files/x": "nfs4",
        "/mnt/my files/local": "xfs",
        "/mnt/covered/x": "cifs",
        "/mnt/my": "ext4",
    }
    shared = judge_file_system(Path("/spool"), kinds["/mnt/my files/x"])
    assert shared is not None
    assert "nfs4 (/mnt/my files)" in shared.detail
    assert judge_file_system(Path("/spool"), FileSystem("ext4", "/")) is None
    assert file_system_of(tmp_path, tmp_path / "not there") is None


FULL = """
import os, sys
{control}
fill()
os.execv(sys.executable, [sys.executable, "-m", "meter_agent", "doctor", "--offline", "--json"])
"""


@pytest.mark.parametrize("full", [full_disk()], ids=lambda full: full.name)
def test_a_full_disk_is_told_and_not_died_of(
    patient: Patient, tmp_path: Path, full: FullDisk
) -> None:
    patient.set(METER_AGENT_SPOOL_DIR=tmp_path)
    done = subprocess.run(
        [*full.within(tmp_path), sys.executable, "-c", FULL.format(control=full.control(tmp_path))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    (finding,) = [each for each in findings if each["check"] == "spool"]
    assert finding["state"] == "failed"
    assert full.complaint in finding["detail"]
    assert finding["advice"].startswith("make space there")


def test_space_is_looked_at_before_the_directory_is_there(patient: Patient, tmp_path: Path) -> None:
    patient.set(METER_AGENT_SPOOL_DIR=tmp_path / "new", METER_AGENT_SPOOL_BYTES=1 << 40)
    assert_cured(patient, "spool", "warning", "--offline")


# -- dead letters ----------------------------------------------------------------------------------


def test_without_a_file_dead_letters_are_a_warning(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("METER_AGENT_DEAD_LETTER_FILE")
    assert_cured(
        patient,
        "dead letters",
        "warning",
        "--offline",
        follow=lambda advice: patient.follow(advice.replace("/var/lib/SERVICE", str(tmp_path))),
    )


def test_a_file_without_a_folder_is_made_absolute(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    patient.set(METER_AGENT_DEAD_LETTER_FILE="letters.jsonl")
    assert_cured(patient, "dead letters", "warning", "--offline")
    assert os.environ["METER_AGENT_DEAD_LETTER_FILE"] == str(tmp_path / "letters.jsonl")


def test_a_folder_that_is_missing_is_made(patient: Patient, tmp_path: Path) -> None:
    patient.set(METER_AGENT_DEAD_LETTER_FILE=tmp_path / "my files" / "letters.jsonl")
    assert_cured(patient, "dead letters", "failed", "--offline", exit_code=2)


def test_what_is_no_regular_file_is_told(patient: Patient, tmp_path: Path) -> None:
    patient.set(METER_AGENT_DEAD_LETTER_FILE=tmp_path)
    diagnosis = patient.ask("--offline")
    assert diagnosis.exit_code == 2
    assert "is not a regular file" in diagnosis.of("dead letters")["detail"]


@pytest.mark.parametrize(
    ("size", "state", "exit_code"),
    [(FILE_BYTES_MAX, "failed", 2), (FILE_BYTES_MAX * 95 // 100, "warning", 0)],
)
def test_a_file_that_is_full_is_moved_away(
    patient: Patient, tmp_path: Path, size: int, state: str, exit_code: int
) -> None:
    letters = tmp_path / "letters.jsonl"
    with letters.open("wb") as file:
        file.truncate(size)  # a hole, which takes no space
    assert_cured(patient, "dead letters", state, "--offline", exit_code=exit_code)
    assert (tmp_path / "letters.jsonl.old").exists()


# -- resend window and process ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "state", "exit_code"), [(86_399, "failed", 2), (86_000, "warning", 0)]
)
def test_a_resend_window_too_near_to_24_hours_is_told(
    patient: Patient, seconds: int, state: str, exit_code: int
) -> None:
    patient.set(METER_AGENT_RESEND_WINDOW_SECONDS=seconds)
    assert_cured(patient, "resend window", state, "--offline", exit_code=exit_code)


@pytest.mark.parametrize(
    "arguments", ["--graceful-timeout 5", "--preload --graceful-timeout=4 -w 3"]
)
def test_a_gunicorn_that_kills_before_the_agent_is_done_is_told(
    patient: Patient, arguments: str
) -> None:
    patient.set(GUNICORN_CMD_ARGS=arguments)
    assert_cured(patient, "process", "warning", "--offline")


def test_a_uwsgi_without_threads_is_told(patient: Patient) -> None:
    patient.set(UWSGI_MASTER="true")
    assert_cured(patient, "process", "warning", "--offline")


@pytest.mark.parametrize(
    ("environ", "state", "detail"),
    [
        ({}, "not checked", "meter_agent.configure(handle_sigterm=True)"),
        ({"GUNICORN_CMD_ARGS": "-w 3 --preload"}, "ok", "gunicorn with sync workers"),
        ({"GUNICORN_CMD_ARGS": "-kgthread"}, "ok", "gunicorn with gthread workers"),
        ({"GUNICORN_CMD_ARGS": "-k uvicorn_worker.UvicornWorker"}, "not checked", "the lifespan"),
        ({"GUNICORN_CMD_ARGS": "--name 'x"}, "warning", "No closing quotation"),
        ({"UWSGI_THREADS": "4"}, "ok", "uWSGI"),
    ],
)
def test_what_the_environment_tells_of_the_server_is_told(
    environ: dict[str, str], state: str, detail: str
) -> None:
    finding = check_process(Config(disabled=True), environ)
    assert (finding.state, detail in finding.detail) == (state, True)


def test_of_handle_sigterm_it_is_told_what_it_needs() -> None:
    finding = check_process(Config(disabled=True, handle_sigterm=True), {})
    assert finding.state == "not checked"
    assert "call meter_agent.get_agent() where the server loads the application" in finding.detail
