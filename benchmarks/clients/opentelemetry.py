"""OpenTelemetry's logs over OTLP and HTTP; a longer queue than its default."""

from __future__ import annotations

from typing import Any

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

from benchmarks.clients import CUSTOMER, EVENT, Client


class _Logs:
    call = f"emit(body={EVENT!r}, attributes={{'customer': {CUSTOMER!r}, 'value': 1}})"

    def __init__(self, provider: LoggerProvider) -> None:
        self._provider = provider
        self.names: dict[str, Any] = {"emit": provider.get_logger("benchmarks").emit}

    def finish(self) -> None:
        if not self._provider.force_flush(240_000):
            raise RuntimeError("OpenTelemetry did not flush")

    def close(self) -> None:
        pass


def open_client(url: str, *, capacity: int = 100_000, **_options: Any) -> Client:
    provider = LoggerProvider()
    exporter = OTLPLogExporter(endpoint=f"{url}/v1/logs")
    provider.add_log_record_processor(
        BatchLogRecordProcessor(exporter, max_queue_size=max(2048, capacity))
    )
    return _Logs(provider)
