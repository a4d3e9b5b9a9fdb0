"""What the server publishes about itself. The one module that imports prometheus_client.

Every metric is named diffusion_... and lives in a registry of its own: two servers in one process
do not mix, and nothing is registered on import. Counters are exact: each started request ends in
exactly one finished{code}, so started - finished is what is active.
"""

from collections.abc import Callable, Iterator

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    generate_latest,
)

from serving.engine_statistics import EngineStatistics, StepStats

_REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)


class _Collected(CollectorRegistry):
    """Metric families as they were at one moment."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


class Metrics:
    """The server's metrics. Safe to use from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._started = self._counter(
            "requests_started", "Requests that reached a method.", "method"
        )
        self._finished = self._counter(
            "requests_finished",
            "Requests that ended, by the gRPC status that the server gave them.",
            "method",
            "code",
        )
        self._refused = self._counter(
            "requests_refused", "Requests refused before any work was done for them.", "reason"
        )
        self._images = self._counter("images", "Images handed to clients.", "model", "label")
        self._previews_dropped = self._counter(
            "previews_dropped", "Previews that a slow reader missed.", "model"
        )
        self._request_seconds = self._histogram(
            "request_seconds",
            "Seconds from the arrival of a request to its status.",
            _REQUEST_BUCKETS,
            "method",
        )
        self._queue_seconds = self._histogram(
            "queue_seconds",
            "Seconds from acceptance to the first image in a batch, of finished requests.",
            _REQUEST_BUCKETS,
            "model",
        )
        self._compute_seconds = self._histogram(
            "compute_seconds",
            "Seconds from the first image in a batch to the last one finished.",
            _REQUEST_BUCKETS,
            "model",
        )
        self._step_seconds = self._histogram(
            "engine_step_seconds", "Seconds of one engine step.", _STEP_BUCKETS, "model"
        )
        self._step_rows = self._histogram(
            "engine_step_rows", "Network rows in one engine step.", _ROW_BUCKETS, "model"
        )
        self._preemptions = self._counter(
            "lane_preemptions", "Images half done that made room for more urgent ones.", "model"
        )
        self._cache_hits = self._counter(
            "cache_hits", "Images that were in the cache of finished ones.", "model"
        )
        self._images_shared = self._counter(
            "images_shared", "Images that waited for an equal one in flight.", "model"
        )
        self._network_failures = self._counter(
            "network_failures", "Network calls that raised.", "model"
        )
        self._nonfinite_lanes = self._counter(
            "nonfinite_lanes", "Images for which the network gave NaN or Inf.", "model"
        )
        self._engine_restarts = self._counter(
            "engine_restarts", "Engines that broke and were made anew.", "model"
        )
        self._model_reloads = self._counter(
            "model_reloads", "Bundles that were loaded again: ok or failed.", "model", "outcome"
        )
        self._lanes_in_use = self._gauge("lanes_in_use", "Images being denoised.", "model")
        self._lanes_capacity = self._gauge(
            "lanes_capacity", "Images that can be denoised at once.", "model"
        )
        self._lanes_set_aside = self._gauge(
            "lanes_set_aside", "Images half done that wait until it is their turn again.", "model"
        )
        self._cache_bytes = self._gauge(
            "cache_bytes", "Memory of the cache of finished images.", "model"
        )
        self._images_waiting = self._gauge(
            "images_waiting",
            "Accepted images that wait for a lane, those set aside included.",
            "model",
        )
        self._step_age = self._gauge(
            "last_engine_step_age_seconds",
            "Seconds since the engine's thread last gave a sign of life.",
        )
        self._ready = self._gauge("ready", "1 while new clients should come here.")
        self._draining = self._gauge("draining", "1 while accepted requests are being finished.")
        self._loaded: dict[str, tuple[str, str, str]] = {}  # labels of model_info
        self._model_info = self._gauge(
            "model_info", "1 for each loaded model.", "model", "version", "provider"
        )
        self._self_test = self._gauge(
            "self_test_bit_equal",
            "1 if rows alone and in a crowd were equal to the bit at start-up.",
            "model",
        )

    def request_started(self, method: str) -> None:
        """Counts a request that reached `method`."""
        self._started.labels(method).inc()

    def request_finished(self, method: str, code: str, seconds: float) -> None:
        """Counts its end, once, with the name of its gRPC status."""
        self._finished.labels(method, code).inc()
        self._request_seconds.labels(method).observe(seconds)

    def request_refused(self, reason: str) -> None:
        """Counts a request that cost no work: invalid, unknown_model, queue_full, ..."""
        self._refused.labels(reason).inc()

    def request_computed(self, model: str, queue_seconds: float, compute_seconds: float) -> None:
        """Notes how long a finished request waited and ran."""
        self._queue_seconds.labels(model).observe(queue_seconds)
        self._compute_seconds.labels(model).observe(compute_seconds)

    def images_delivered(self, model: str, label: str, count: int) -> None:
        """Counts images handed to a client; `label` is the label's name."""
        self._images.labels(model, label).inc(count)

    def previews_dropped(self, model: str, count: int) -> None:
        """Counts previews that were overtaken before their reader took them."""
        self._previews_dropped.labels(model).inc(count)

    def engine_stepped(self, model: str, stats: StepStats) -> None:
        """Notes one engine step."""
        if stats.rows:
            self._step_seconds.labels(model).observe(stats.total_seconds)
            self._step_rows.labels(model).observe(stats.rows)
        for counter, count in (
            (self._preemptions, stats.lanes_set_aside),
            (self._cache_hits, stats.cache_hits),
            (self._images_shared, stats.images_shared),
            (self._network_failures, stats.network_failures),
            (self._nonfinite_lanes, stats.nonfinite_lanes),
        ):
            if count:
                counter.labels(model).inc(count)

    def engine_restarted(self, model: str) -> None:
        """Counts an engine that broke."""
        self._engine_restarts.labels(model).inc()

    def model_reloaded(self, model: str, outcome: str) -> None:
        """Counts a bundle that was loaded again; `outcome` is ok or failed."""
        self._model_reloads.labels(model, outcome).inc()

    def model_loaded(self, model: str, version: str, provider: str, bit_equal: bool) -> None:
        """Says which model runs on what, and what its self-test found; replaces what it was."""
        if (before := self._loaded.get(model)) is not None:
            self._model_info.remove(*before)
        self._loaded[model] = (model, version, provider)
        self._model_info.labels(model, version, provider).set(1)
        self._self_test.labels(model).set(int(bit_equal))

    def watch_engine(self, model: str, statistics: Callable[[], EngineStatistics]) -> None:
        """Reads the engine's load at every scrape."""
        self._lanes_in_use.labels(model).set_function(lambda: statistics().lanes_active)
        self._lanes_capacity.labels(model).set_function(lambda: statistics().lanes_capacity)
        self._lanes_set_aside.labels(model).set_function(lambda: statistics().lanes_set_aside)
        self._cache_bytes.labels(model).set_function(lambda: statistics().cache_bytes)
        self._images_waiting.labels(model).set_function(lambda: statistics().images_waiting)

    def watch_engine_thread(self, age_seconds: Callable[[], float]) -> None:
        """Reads the age of the engine thread's last sign of life at every scrape."""
        self._step_age.set_function(age_seconds)

    def watch_readiness(self, ready: Callable[[], bool], draining: Callable[[], bool]) -> None:
        """Reads the phase of the server at every scrape."""
        self._ready.set_function(lambda: float(ready()))
        self._draining.set_function(lambda: float(draining()))

    def exposition(self) -> tuple[bytes, str]:
        """Returns everything in Prometheus' text format, and the content type of that."""
        # Each counter and histogram also has a "_created" series, which only doubles the volume.
        families = list(self._registry.collect())
        for family in families:
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
        return generate_latest(_Collected(families)), CONTENT_TYPE_PLAIN_0_0_4

    def value(self, name: str, **labels: str) -> float:
        """Returns one sample; one that nothing has touched yet is 0.

        For example `value("diffusion_images_total", model="mnist", label="7")`.
        """
        return self._registry.get_sample_value(name, labels) or 0.0

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"diffusion_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"diffusion_{name}", text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"diffusion_{name}", text, labels, buckets=buckets, registry=self._registry
        )
