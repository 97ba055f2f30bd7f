"""Prometheus metrics of one web process: latency by route template, jobs by state at the moment of the scrape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

_BUCKETS = (0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0)


class Metrics:
    """One registry an application, so that several applications in a process do not clash."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "moongate_http_seconds",
            "Seconds until the answer began (a stream lasts longer)",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._jobs = Gauge(
            "moongate_jobs", "Jobs by kind and state", ("kind", "state"), registry=self._registry
        )
        self._workers = Gauge("moongate_workers", "Supervisors by state", ("state",), registry=self._registry)
        self._queue_age = Gauge(
            "moongate_queue_age_seconds", "Age of the oldest waiting job", registry=self._registry
        )
        self._streams = Gauge("moongate_event_streams", "Open event streams", registry=self._registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """``route`` is a template, never a path with ids: the number of series stays bounded."""
        self._latency.labels(method if len(method) < 8 else "OTHER", route, str(status)).observe(seconds)

    def text(
        self,
        jobs: Iterable[tuple[str, str, int]],
        workers: Mapping[str, int],
        queue_age_s: float,
        streams: int,
    ) -> bytes:
        """The page ``/metrics``: what was observed, and what the database says now."""
        self._jobs.clear()
        for kind, state, count in jobs:
            self._jobs.labels(kind, state).set(count)
        self._workers.clear()
        for state, count in workers.items():
            self._workers.labels(state).set(count)
        self._queue_age.set(queue_age_s)
        self._streams.set(streams)
        return bytes(generate_latest(self._registry))
