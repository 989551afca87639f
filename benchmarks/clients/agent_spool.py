"""The agent with a spool: what was recorded survives `kill -9`."""

from __future__ import annotations

import tempfile
from typing import Any

from benchmarks.clients import Client, agent


class _Spooling:
    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="meter-agent-bench-")
        self._client = agent.open_client(url, spool=self._directory.name, **options)
        self.call, self.names = self._client.call, self._client.names
        self.finish = self._client.finish

    def close(self) -> None:
        self._client.close()
        self._directory.cleanup()


def open_client(url: str, **options: Any) -> Client:
    return _Spooling(url, options)
