"""What a command does when what it prints cannot be written, or comes from somebody else."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS

from .letters import letter, write
from .processes import command, run

Environ = dict[str, str]


@pytest.fixture
def stripe() -> Sandbox:
    return Sandbox()


@pytest.fixture
def environ(stripe: Sandbox, tmp_path: Path) -> Iterator[Environ]:
    with SandboxServer(stripe) as server:
        yield {
            **os.environ,
            "NO_PROXY": "127.0.0.1",
            "METER_AGENT_SANDBOX_URL": server.url,
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }


def shell(script: str, *arguments: object, env: Environ) -> subprocess.CompletedProcess[str]:
    """Run `script`, in which "$@" is the command with *arguments*."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *command(*arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env=env,
    )


def send(_: Path) -> list[object]:
    return ["send", "tokens", "cus_1", "7", "--identifier", "event-1"]


def import_file(directory: Path) -> list[object]:
    path = directory / "usage.csv"
    path.write_text("identifier,org,n\nevent-1,cus_1,7\n")
    maps = ["--map", "customer=org", "--map", "value=n"]
    return ["import", path, "--event", "tokens", *maps]


def resend(directory: Path) -> list[object]:
    path = write(directory / "letters.jsonl", letter("event-1", 7))
    return ["dead-letters", "resend", path, "--yes"]


def replay(directory: Path) -> list[object]:
    code = (
        "import os, sys, meter_agent\n"
        "meter_agent.configure(sandbox_url='http://127.0.0.1:9', spool_dir=sys.argv[1])\n"
        "meter_agent.record('tokens', 'cus_1', 7, identifier='event-1')\n"
        "os._exit(0)"
    )
    path = directory / "spool"
    subprocess.run([command()[0], "-c", code, str(path)], check=True, timeout=PATIENCE_SECONDS)
    return ["spool", "replay", path]


SENDING = [send, import_file, resend, replay]
UNWRITABLE = {
    "a full disk": '"$@" >/dev/full',
    "two full disks": '"$@" >/dev/full 2>/dev/full',
    "a closed stdout": '"$@" >&-',
    "a closed stderr": '"$@" 2>&-',
    "nothing open": '"$@" <&- >&- 2>&-',
    "a reader that has gone": 'set -o pipefail; "$@" 2>&1 | true',
}


@pytest.mark.parametrize("script", UNWRITABLE.values(), ids=UNWRITABLE)
@pytest.mark.parametrize("work", SENDING)
def test_the_exit_code_is_that_of_the_event_where_nothing_can_be_printed(
    work: Callable[[Path], list[object]],
    script: str,
    environ: Environ,
    stripe: Sandbox,
    tmp_path: Path,
) -> None:
    outcome = shell(script, *work(tmp_path), env=environ)
    assert [row["identifier"] for row in stripe.ledger()] == ["event-1"]
    assert "Traceback" not in outcome.stderr
    assert outcome.returncode == 0


def test_that_the_output_is_lost_is_said_where_it_can_be(environ: Environ) -> None:
    outcome = shell('"$@" >/dev/full', *send(Path()), env=environ)
    assert "the output cannot be written: No space left on device" in outcome.stderr


def test_an_event_that_is_not_delivered_keeps_its_exit_code_too(
    environ: Environ, stripe: Sandbox
) -> None:
    stripe.set_meters(["seats"])
    assert shell('"$@" >/dev/full', *send(Path()), "--validate", env=environ).returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [["config", "show"], ["config", "show", "--json"], ["--help"], ["send", "a", "b", "--dry-run"]],
)
def test_a_command_that_only_prints_fails_when_it_cannot(
    arguments: list[str], environ: Environ
) -> None:
    outcome = shell('"$@" >/dev/full', *arguments, env=environ)
    assert outcome.returncode == 6
    assert outcome.stderr.endswith("the output cannot be written: No space left on device\n")
    assert "Traceback" not in outcome.stderr


def test_an_export_to_a_full_disk_is_no_success(environ: Environ, tmp_path: Path) -> None:
    path = write(tmp_path / "letters.jsonl", letter("event-1"))
    outcome = shell('"$@" >/dev/full', "dead-letters", "export", path, env=environ)
    assert outcome.returncode == 6


def test_a_reader_that_has_seen_enough_is_no_complaint(environ: Environ, tmp_path: Path) -> None:
    path = write(tmp_path / "letters.jsonl", *[letter(f"event-{n}") for n in range(5000)])
    outcome = shell('"$@" | head -1', "dead-letters", "ls", path, env=environ)
    assert outcome.stdout.startswith("  LINE")
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_no_file_takes_the_place_of_a_closed_stream(environ: Environ, tmp_path: Path) -> None:
    arguments = import_file(tmp_path)
    assert shell('"$@" <&- >&- 2>&-', *arguments, env=environ).returncode == 0
    (progress,) = (tmp_path / "state").rglob("*.journal")
    for line in progress.read_text().splitlines():
        json.loads(line)


def test_a_pipe_that_is_not_read_for_a_while_loses_nothing(
    environ: Environ, tmp_path: Path
) -> None:
    # Another holder of the pipe, Node for instance, has made it non-blocking.
    path = write(tmp_path / "letters.jsonl", *[letter(f"event-{n}") for n in range(1000)])
    read, written = os.pipe()
    os.set_blocking(written, False)
    with subprocess.Popen(
        command("dead-letters", "ls", "--json", path), stdout=written, env=environ
    ) as process:
        os.close(written)
        with open(read, "rb") as pipe:
            lines = pipe.read().splitlines()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert [json.loads(line)["event"]["identifier"] for line in lines] == [
        f"event-{n}" for n in range(1000)
    ]


# -- encodings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp437"])
def test_a_character_that_the_terminal_lacks_is_escaped(
    encoding: str, environ: Environ, stripe: Sandbox, tmp_path: Path
) -> None:
    arguments = import_file(tmp_path)
    path = tmp_path / "日本.csv"
    Path(str(arguments[1])).rename(path)
    arguments[1] = path
    environ["PYTHONIOENCODING"] = encoding

    outcome = run(*arguments, env=environ)
    assert (outcome.returncode, stripe.totals()["accepted"]) == (0, 1)
    assert "\\u65e5\\u672c.csv: 1 row:" in outcome.stdout

    status = run("status", env=environ)
    assert status.returncode == 0
    assert "\\u65e5\\u672c.csv" in status.stdout


def test_a_file_name_that_is_no_text_can_be_printed(environ: Environ, tmp_path: Path) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/\xff.jsonl")
    outcome = run("dead-letters", "ls", name, env=environ)
    assert outcome.returncode == 2
    assert "\\udcff.jsonl" in outcome.stderr


# -- what others write -----------------------------------------------------------------------------

HOSTILE = "\x1b]0;x\x07\u202egpj.exe\r\n\u200b\x9b2J"


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("listing", [["ls"], ["show"], ["ls", "--json"], ["export"]])
def test_dead_letters_cannot_write_on_a_terminal(
    listing: list[str], environ: Environ, tmp_path: Path
) -> None:
    hostile = json.loads(letter("event-1").to_json())
    hostile["message"] = hostile["event"]["identifier"] = hostile["event"]["event_name"] = HOSTILE
    hostile["event"]["payload"][HOSTILE] = HOSTILE
    hostile[HOSTILE] = HOSTILE
    path = tmp_path / f"a{HOSTILE}.jsonl"
    path.write_text(f"{json.dumps(hostile)}\nno letter\n")

    outcome = run("dead-letters", listing[0], path, *listing[1:], env=environ)

    assert outcome.returncode == 3
    assert is_harmless(outcome.stdout)
    assert is_harmless(outcome.stderr)
    assert "x1b]0;x" in outcome.stdout.replace("u001b", "x1b")


def test_settings_and_errors_cannot_write_on_a_terminal(environ: Environ) -> None:
    environ["METER_AGENT_STRIPE_VERSION"] = environ[f"METER_AGENT_{HOSTILE}"] = HOSTILE
    for arguments in (["config", "show"], ["status", "--state-dir", HOSTILE], [HOSTILE]):
        outcome = run(*arguments, env=environ)
        assert outcome.returncode == 2
        assert is_harmless(outcome.stdout)
        assert is_harmless(outcome.stderr)


def test_a_payload_is_shown_by_a_dry_run_without_moving_the_cursor(environ: Environ) -> None:
    name = f"a{HOSTILE[:8]}"
    outcome = run("send", "tokens", "cus_1", "--payload", f"k={name}", "--dry-run", env=environ)
    assert is_harmless(outcome.stdout)
    assert is_harmless(outcome.stderr)


# -- on a terminal ---------------------------------------------------------------------------------


def on_terminal(*arguments: object, env: Environ, columns: int = 60) -> str:
    """Everything that a command writes on a terminal of this width."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        command(*arguments),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**env, "COLUMNS": str(columns), "TERM": "dumb"},
    ) as process:
        os.close(follower)
        written = b""
        with suppress(OSError), open(leader, "rb", buffering=0) as terminal:
            while data := terminal.read(65_536):
                written += data
        process.wait(PATIENCE_SECONDS)
    return written.decode().replace("\r\n", "\n")


def test_lines_on_a_terminal_are_broken_between_words(environ: Environ) -> None:
    environ["METER_AGENT_RESEND_WINDOW_SECONDS"] = "86000"
    written = on_terminal("doctor", "--offline", env=environ)
    whole = run("doctor", "--offline", env=environ)
    assert written.split() == (whole.stdout + whole.stderr).split()
    lines = written.splitlines()
    assert any(len(line) > 60 for line in whole.stdout.splitlines())
    assert all(len(line) <= 60 or len(line.split()) == 1 for line in lines)


def test_a_row_that_is_wider_than_the_terminal_loses_nothing(
    environ: Environ, tmp_path: Path
) -> None:
    path = write(tmp_path / "letters.jsonl", letter("event-1"), letter("event-2"))
    written = on_terminal("dead-letters", "ls", path, env=environ, columns=80)
    whole = run("dead-letters", "ls", path, env=environ)
    assert written.split() == whole.stdout.split()
    assert all(len(line) <= 80 for line in written.splitlines())


def test_help_is_not_cut(environ: Environ) -> None:
    for group in ([], ["dead-letters"], ["spool"], ["config"]):
        written = run(*group, "--help", env=environ).stdout
        assert "..." not in written.replace("[ARGS]...", "")
        assert all(len(line) <= 80 for line in written.splitlines())
