import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import meter_agent
from meter_agent.cli.app import app
from tests.patience import PATIENCE_SECONDS

from .processes import run


@pytest.fixture
def cli() -> CliRunner:
    return CliRunner()


def test_the_version_goes_to_stdout(cli: CliRunner) -> None:
    outcome = cli.invoke(app, ["--version"], prog_name="meter-agent")
    assert outcome.stdout == f"meter-agent {meter_agent.__version__}\n"
    assert outcome.exit_code == 0


def test_the_help_names_each_command(cli: CliRunner) -> None:
    outcome = cli.invoke(app, ["--help"])
    assert outcome.exit_code == 0
    assert all(f"\n  {name} " in outcome.stdout for name in app.commands)


def test_no_command_at_all_is_answered_with_help_on_stderr(cli: CliRunner) -> None:
    outcome = cli.invoke(app, [])
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    sections = [line for line in outcome.stderr.splitlines() if line.endswith(":")]
    assert sections == ["Options:", "Bill usage:", "Look after it:", "Try it out:"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--colour"], "meter-agent: No such option '--colour'"),
        (["sandbux"], "meter-agent: No such command 'sandbux'"),
        (["sandbox", "--prot", "1"], "meter-agent sandbox: No such option '--prot'"),
        (["sandbox", "--port", "70000"], "meter-agent sandbox: Invalid value for '--port'"),
        (["sandbox", "--session-seconds", "0"], "session_seconds must be more than 0"),
        (["sandbox", "--session-seconds", "nan"], "session_seconds must be more than 0"),
        (["sandbox", "--host", "0.0.0.0"], "0.0.0.0 is not a loopback address"),
        (["demo", "--seconds", "-1"], "meter-agent demo: Invalid value for '--seconds'"),
        (["spool", "lx"], "meter-agent spool: No such command 'lx'"),
        (["spool", "replay", "--patience", "0"], "Invalid value for '--patience'"),
        (["dead-letters", "ls", "--reason", "bad"], "Invalid value for '--reason'"),
        (["dead-letters", "resend", "--all"], "No such option '--all'"),
        (["demo", "extra"], "meter-agent demo: Got unexpected extra argument"),
    ],
)
def test_a_usage_error_is_one_line_on_stderr(
    cli: CliRunner, arguments: list[str], complaint: str
) -> None:
    outcome = cli.invoke(app, arguments, prog_name="meter-agent")
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    # Older releases of click write the option without quotes.
    assert complaint.replace("'", "") in outcome.stderr.replace("'", "")
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["click", "rich"])
def test_a_missing_cli_extra_is_named_in_one_line(package: str) -> None:
    complaint = (
        f"meter-agent: {package} not installed; the extra 'cli' brings it: "
        "pip install 'meter-agent[cli]'\n"
    )
    assert _run_without(package, "--version") == (2, "", complaint)


@pytest.mark.parametrize("command", ["sandbox", "demo"])
def test_a_missing_sandbox_extra_is_named_in_one_line(command: str) -> None:
    complaint = (
        f"meter-agent {command}: uvicorn not installed; the extra 'sandbox' brings it: "
        "pip install 'meter-agent[sandbox]'\n"
    )
    assert _run_without("uvicorn", command) == (2, "", complaint)


def test_help_needs_neither_server_nor_display() -> None:
    status, _, errors = _run_code(
        "import sys, meter_agent.cli.app\n"
        "print(sorted({'uvicorn', 'starlette', 'rich', 'requests'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    assert (status, errors) == (0, "[]\n")


def _run_without(package: str, *arguments: str) -> tuple[int, str, str]:
    """Run the command line where *package* cannot be imported."""
    return _run_code(
        f"import sys; sys.modules[{package!r}] = None; sys.argv[1:] = {list(arguments)!r}\n"
        "from meter_agent.__main__ import main; main()"
    )


def _run_code(code: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("meter-agent s", ["plain,send", "plain,status", "plain,spool", "plain,sandbox"]),
        ("meter-agent import --format p", ["plain,parquet"]),
        ("meter-agent send --val", ["plain,--validate"]),
        ("meter-agent import tra", ["file,tra"]),
    ],
)
def test_a_shell_is_told_how_a_word_goes_on(words: str, expected: list[str]) -> None:
    environ = {
        **os.environ,
        "_METER_AGENT_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    outcome = run(env=environ)
    assert outcome.stdout.split() == expected


def test_a_real_bash_completes_the_commands() -> None:
    script = """
        eval "$(_METER_AGENT_COMPLETE=bash_source meter-agent)"
        function=$(complete -p meter-agent | sed 's/.* -F //; s/ .*//')
        COMP_WORDS=(meter-agent config s) COMP_CWORD=2
        "$function" meter-agent
        echo "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("show\n", "")


def test_every_command_that_prints_data_has_json() -> None:
    def leaves(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from leaves(command, *above, name)
            else:
                yield " ".join([*above, name]), command

    without = {
        name
        for name, command in leaves(app)
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    # The sandbox prints its URL alone.
    assert without == {"sandbox"}


def test_python_m_is_the_same_as_the_script() -> None:
    outcome = run("--version")
    assert outcome.stdout == f"meter-agent {meter_agent.__version__}\n"
