"""The command group, and how its failures are told: one line on stderr, never a traceback."""

from __future__ import annotations

import sys
from typing import Any

import click

from meter_agent._version import __version__
from meter_agent.cli.config_command import config
from meter_agent.cli.dead_letters_command import dead_letters
from meter_agent.cli.demo_command import demo
from meter_agent.cli.doctor_command import doctor
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.groups import Group, group_help
from meter_agent.cli.import_command import import_files
from meter_agent.cli.printing import say
from meter_agent.cli.sandbox_command import sandbox
from meter_agent.cli.send_command import send
from meter_agent.cli.spool_command import spool
from meter_agent.cli.status_command import status
from meter_agent.cli.streams import OutputError, changes_something, finish_output

__all__ = ["app"]


class _Group(Group):
    """A group whose usage errors are one line, without the usage text around them.

    Its help lists commands by section.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sections: dict[str, list[str]] = {}

    def add_to(self, section: str, command: click.Command) -> None:
        """Add *command* below the heading *section*."""
        self.add_command(command)
        self._sections.setdefault(section, []).append(command.name or "")

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's name
        """Return the names as the help has them."""
        return [name for names in self._sections.values() for name in names]

    def sections(self, ctx: click.Context) -> dict[str, list[str]]:  # noqa: ARG002 - click's name
        """Return the names of commands by heading."""
        return self._sections

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; where it gave up, name the one that knows why."""
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit as end:
            gave_up = end.exit_code in {ExitCode.AUTHENTICATION, ExitCode.UNREACHABLE}
            if gave_up and ctx.invoked_subcommand != doctor.name:
                say("`meter-agent doctor` tells what is wrong, and what mends it", err=True)
            raise

    def main(self, *args: Any, **options: Any) -> Any:
        """Run, and exit with the status."""
        try:
            status = super().main(*args, **{**options, "standalone_mode": False})
            unwritten = finish_output()
        except click.ClickException as error:
            say(f"{_where(error)}: {' '.join(error.format_message().split())}", err=True)
            sys.exit(error.exit_code)
        except OutputError as error:
            if not error.is_broken_pipe:
                say(f"meter-agent: {error}", err=True)
            sys.exit(ExitCode.OUTPUT)
        except OSError as error:
            # A disk that fails in the middle of the work.
            say(f"meter-agent: {error}", err=True)
            sys.exit(ExitCode.USAGE)
        except click.Abort:
            say("interrupted", err=True)
            sys.exit(ExitCode.INTERRUPTED)
        if unwritten is not None:
            say(f"meter-agent: {unwritten}; the exit code is that of the events", err=True)
        sys.exit(status if isinstance(status, int) else 0)


def _where(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return context.command_path if context is not None else "meter-agent"


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def app(context: click.Context) -> None:
    """Usage metering for Stripe: send usage, run a local Stripe, look after your events.

    Exit codes: 0 ok; 1 the answer is bad; 2 usage or configuration; 3 partly done; 4 the key is
    refused; 5 Stripe cannot be reached; 6 the output cannot be written. That of a command which
    sends or changes something is about the events alone.
    """
    group_help(context)


for section, commands in {
    "Bill usage": (send, import_files),
    "Look after it": (status, doctor, config, dead_letters, spool),
    "Try it out": (sandbox, demo),
}.items():
    for command in commands:
        app.add_to(section, command)

for command in (
    send,
    import_files,
    spool.commands["replay"],
    dead_letters.commands["resend"],
    dead_letters.commands["discard"],
):
    changes_something(command)
