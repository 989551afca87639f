"""`python -m meter_agent`, which is also the script `meter-agent`."""

import sys

from meter_agent.cli.extras import missing_extra
from meter_agent.cli.streams import prepare_streams

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its status."""
    prepare_streams()
    complaint = missing_extra("cli")
    if complaint is not None:
        sys.stderr.write(f"meter-agent: {complaint}\n")
        sys.exit(2)
    from meter_agent.cli.app import app  # noqa: PLC0415 - it needs what was just looked for

    app(prog_name="meter-agent")


if __name__ == "__main__":
    main()
