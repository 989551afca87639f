"""Options of the commands that deliver."""

from __future__ import annotations

import click

__all__ = ["patience", "sandbox_url"]

sandbox_url = click.option(
    "--sandbox-url", help="Deliver to this sandbox. Default: METER_AGENT_SANDBOX_URL."
)
patience = click.option(
    "--patience",
    type=click.FloatRange(0.1, 86_400),
    default=60.0,
    show_default=True,
    help="Give up when nothing was delivered for so many seconds.",
)
