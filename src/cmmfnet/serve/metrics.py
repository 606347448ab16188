"""The numbers of /metrics, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)


class Metrics:
    """Counts what a server does; each server has its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "cmmfnet_requests", "Answered requests", ["route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "cmmfnet_request_seconds",
            "Time from the head of a request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.waiting = Gauge(
            "cmmfnet_waiting", "Requests that are worked on or wait", registry=self._registry
        )
        self.batches = Histogram(
            "cmmfnet_batch_size",
            "Frames that went through a network together",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self._registry,
        )
        self.frames = Counter(
            "cmmfnet_video_frames", "Coloured frames of videos", registry=self._registry
        )

    def page(self) -> bytes:
        return generate_latest(self._registry)
