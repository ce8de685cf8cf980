"""Counters for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kinema.server.engine import Engine
from kinema.server.jobs import Progress, ServiceError, Status

JOB_SECONDS = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 7200)
STEP_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
MAX_JOBS = 1024
"""Jobs whose last step is remembered."""


class Metrics(Collector):
    """What /metrics shows. States, queue and workers are read from the engine when it is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._registry = CollectorRegistry()
        self._last: dict[str, float] = {}
        requests = "Answered requests by route, method and status"
        self._requests = Counter("kinema_requests", requests, ["route", "method", "code"], registry=self._registry)
        self._jobs = Histogram(
            "kinema_job_seconds", "Duration of completed jobs", buckets=JOB_SECONDS, registry=self._registry
        )
        self._steps = Histogram(
            "kinema_step_seconds", "Duration of sampling steps", buckets=STEP_SECONDS, registry=self._registry
        )
        self._registry.register(self)
        engine.listen(self.event)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def answered(self, scope: Mapping[str, Any], status: int) -> None:
        """Count an answer, by the route's pattern: addresses that clients make up would be labels without end."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"
        self._requests.labels(route, method, str(status)).inc()

    def event(self, video_id: str, progress: Progress) -> None:
        """Listener of the engine: durations between steps, and of jobs at their end."""
        if progress.kind == "phase":
            self._last.pop(video_id, None)  # the time between stages is no step
        elif progress.kind == "step":
            now, before = monotonic(), self._last.pop(video_id, None)
            if before is not None and progress.data.get("index", 1) > 1:
                self._steps.observe(now - before)
            self._last[video_id] = now
            if len(self._last) > MAX_JOBS:
                self._last.pop(next(iter(self._last)))
        elif progress.kind == "status" and progress.data.get("status") == "completed":
            self._last.pop(video_id, None)
            self._completed(video_id)

    def _completed(self, video_id: str) -> None:
        try:
            job = self._engine.get(video_id)
        except ServiceError:
            return  # removed already
        if job.completed_at is not None and job.started_at is not None:
            self._jobs.observe(max(0.0, job.completed_at - job.started_at))

    def collect(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily("kinema_jobs", "Jobs by state", labels=["status"])
        counts = self._engine.counts()
        for status in get_args(Status):
            jobs.add_metric([status], counts.get(status, 0))
        queue = self._engine.queue()
        yield jobs
        yield GaugeMetricFamily("kinema_queue_length", "Waiting jobs", value=len(queue["queued"]))
        yield GaugeMetricFamily("kinema_queue_paused", "1 while the queue is paused", value=int(queue["paused"]))
        restarts = CounterMetricFamily("kinema_worker_restarts", "Restarts of a worker", labels=["device"])
        loaded = GaugeMetricFamily("kinema_loaded_bytes", "Bytes of loaded models", labels=["device"])
        for worker in queue["workers"]:
            restarts.add_metric([worker["device"]], worker.get("restarts", 0))
            loaded.add_metric([worker["device"]], sum(each["bytes"] for each in worker.get("loaded", ())))
        yield restarts
        yield loaded
