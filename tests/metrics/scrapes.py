"""What a Prometheus server would see."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from meter_agent import MeterAgent
from meter_agent.integrations.prometheus import register
from tests.patience import PATIENCE_SECONDS

Samples = dict[tuple[str, str], float]
"""Numbers by name and by the value of the one label, "" without a label."""


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        text: str = answer.read().decode()
    return text


def samples_of(text: str) -> Samples:
    return flat(text_string_to_metric_families(text))


def flat(families: Iterable[Metric]) -> Samples:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def from_files(directory: Path) -> Samples:
    """What the processes have left in the files of the multiprocess mode."""
    collector: Any = MultiProcessCollector
    return flat(collector(None, path=str(directory)).collect())


@contextmanager
def serving(agent: MeterAgent | None = None) -> Iterator[str]:
    """Serve the metrics of *agent* over HTTP; gives the URL."""
    registry = CollectorRegistry()
    register(registry, agent=agent)
    app: Any = make_wsgi_app(registry)
    server = make_server("127.0.0.1", 0, app, handler_class=_Silent)
    # As `start_http_server`, but it hears of its end sooner.
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Silent(WSGIRequestHandler):
    def log_message(self, *_words: Any) -> None:
        pass
