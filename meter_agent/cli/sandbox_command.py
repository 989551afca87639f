"""`meter-agent sandbox`: a local Stripe until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import click

from meter_agent.cli.extras import missing_extra
from meter_agent.cli.printing import say

__all__ = ["sandbox"]

_STDIN = 0
_GRACE_SECONDS = 2.0


@click.command
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=12111,
    show_default=True,
    help="Port to listen on; 0: any that is free.",
)
@click.option(
    "--session-seconds",
    type=float,
    default=900.0,
    show_default=True,
    help="Life of a session token.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Draws the faults with a probability."
)
@click.option(
    "--meter",
    "meters",
    multiple=True,
    metavar="EVENT_NAME",
    help="There is a meter for this event name, and none for others. Default: for every one.",
)
@click.option(
    "--allow-remote", is_flag=True, help="Let --host be no loopback address. There is no password."
)
@click.option(
    "--stop-on-eof", is_flag=True, help="End when standard input ends, as with a dead parent."
)
def sandbox(
    *,
    host: str,
    port: int,
    session_seconds: float,
    seed: int,
    meters: tuple[str, ...],
    allow_remote: bool,
    stop_on_eof: bool,
) -> None:
    """Run a local Stripe for meter events until Ctrl-C.

    Prints its URL on stdout as soon as it accepts connections. It is controlled and inspected under
    /_sandbox/.
    """
    complaint = missing_extra("sandbox")
    if complaint is not None:
        raise click.UsageError(complaint)
    from meter_agent.sandbox import Sandbox
    from meter_agent.sandbox.server import serve

    if stop_on_eof:
        _interrupt_at_eof()
    try:
        stripe = Sandbox(session_seconds=session_seconds, seed=seed, meters=meters or None)
        serve(host, port, stripe, allow_remote, ready=_announce)
    except OSError as error:
        raise click.UsageError(f"{error}; --port 0 takes any that is free") from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _announce(url: str) -> None:
    say(url)
    say(
        f"the sandbox runs; for your service: METER_AGENT_SANDBOX_URL={url} (Ctrl-C ends it)",
        err=True,
    )


def _interrupt_at_eof() -> None:
    threading.Thread(target=_wait_for_eof, name="meter-sandbox-stdin", daemon=True).start()


def _wait_for_eof() -> None:
    # Not sys.stdin: a daemon thread that holds its lock breaks the interpreter's shutdown.
    with contextlib.suppress(OSError):
        while os.read(_STDIN, 4096):
            pass
    os.kill(os.getpid(), signal.SIGINT)
    # A background job of a shell may have been started with SIGINT ignored, and then only the
    # running server listens to it. Nobody is left to use the sandbox: it must not stay for ever.
    threading.Event().wait(_GRACE_SECONDS)
    os._exit(0)
