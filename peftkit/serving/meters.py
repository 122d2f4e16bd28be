"""What Prometheus reads at /metrics: requests and how long they took, tokens, rows, who runs and who waits."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from peftkit.serving.worker import Worker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Meters:
    """One service's; a registry of its own, so that two in one process do not count together."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, worker: Worker) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("peftkit_requests", "Requests answered.", ["path", "status"], registry=self._registry)
        self._seconds = Histogram(
            "peftkit_request_seconds",
            "From a request's first byte to its answer's last.",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.first = Histogram(
            "peftkit_first_token_seconds",
            "Until the first piece of a streamed text.",
            ["model"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.tokens = Counter("peftkit_tokens", "Tokens read and written.", ["model", "kind"], registry=self._registry)
        self.rows = Counter("peftkit_rows", "Rows answered, or not.", ["model", "outcome"], registry=self._registry)
        running = Gauge("peftkit_running", "Texts and lists of rows that are being computed.", registry=self._registry)
        running.set_function(lambda: worker.running)
        waiting = Gauge("peftkit_waiting", "Those that wait for a place.", registry=self._registry)
        waiting.set_function(lambda: worker.waiting)

    def request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
