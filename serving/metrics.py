"""What happens in the server, as metrics.

They are declared in serving.metric_families. Counters are exact: each started request ends in
exactly one finished{code}, so started - finished is what is active. A series whose labels are known
exists from the start with 0, so that its first count is a rise too.
"""

from collections.abc import Callable, Sequence

from serving import metric_families as families
from serving.engine_statistics import EngineStatistics, StepStats
from serving.metric_families import Family
from serving.metric_series import MetricSeries


class CallMetrics:
    """The grpc_server_... series of one method. Safe to use from any thread."""

    def __init__(self, series: MetricSeries, *labels: str) -> None:
        self._started = series.counter(families.GRPC_STARTED, *labels)
        self._received = series.counter(families.GRPC_RECEIVED, *labels)
        self._sent = series.counter(families.GRPC_SENT, *labels)
        self._seconds = series.histogram(families.GRPC_HANDLING_SECONDS, *labels)
        self._handled = {
            code: series.counter(families.GRPC_HANDLED, *labels, code)
            for code in families.GRPC_CODES
        }

    def started(self) -> None:
        """Counts a call."""
        self._started.inc()

    def received(self) -> None:
        """Counts a message that came in."""
        self._received.inc()

    def sent(self) -> None:
        """Counts a message that went out."""
        self._sent.inc()

    def handled(self, code: str, seconds: float) -> None:
        """Counts the end of a call, with one of GRPC_CODES."""
        self._handled[code].inc()
        self._seconds.observe(seconds)


class Metrics:
    """The server's metrics. Safe to use from any thread."""

    def __init__(self) -> None:
        self._series = MetricSeries()
        self._series.begin({})
        self._loaded: dict[str, tuple[str, ...]] = {}  # labels of model_info

    # Requests

    def request_started(self, method: str) -> None:
        """Counts a request that reached `method`."""
        self._series.counter(families.REQUESTS_STARTED, method).inc()

    def request_finished(self, method: str, code: str, seconds: float) -> None:
        """Counts its end, once, with the name of its gRPC status."""
        self._series.counter(families.REQUESTS_FINISHED, method, code).inc()
        self._series.histogram(families.REQUEST_SECONDS, method).observe(seconds)

    def request_refused(self, reason: str) -> None:
        """Counts a request that cost no work; `reason` is one of REASONS."""
        self._series.counter(families.REQUESTS_REFUSED, reason).inc()

    def request_cancelled(self, phase: str) -> None:
        """Counts a request whose client left; `phase` is one of PHASES."""
        self._series.counter(families.REQUESTS_CANCELLED, phase).inc()

    def request_computed(self, model: str, queue_seconds: float, compute_seconds: float) -> None:
        """Notes how long a finished request waited and ran."""
        self._series.histogram(families.QUEUE_SECONDS, model).observe(queue_seconds)
        self._series.histogram(families.COMPUTE_SECONDS, model).observe(compute_seconds)

    def first_image_sent(self, method: str, model: str, seconds: float) -> None:
        """Notes how long a request took to its first image."""
        series = self._series.histogram(families.TIME_TO_FIRST_IMAGE_SECONDS, method, model)
        series.observe(seconds)

    def images_delivered(self, model: str, label: str, count: int) -> None:
        """Counts images handed to a client; `label` is the label's name."""
        self._series.counter(families.IMAGES, model, label).inc(count)

    def previews_dropped(self, model: str, count: int) -> None:
        """Counts previews that were overtaken before their reader took them."""
        self._series.counter(families.PREVIEWS_DROPPED, model).inc(count)

    def calls(self, grpc_type: str, service: str, method: str) -> CallMetrics:
        """Returns where the calls of a method of any gRPC service are counted."""
        return CallMetrics(self._series, grpc_type, service, method)

    # The engine

    def engine_stepped(self, model: str, stats: StepStats) -> None:
        """Notes one engine step."""
        series = self._series
        if stats.rows:
            series.histogram(families.ENGINE_STEP_SECONDS, model).observe(stats.total_seconds)
            series.histogram(families.ENGINE_STEP_ROWS, model).observe(stats.rows)
        for kind, rows in (
            ("useful", stats.rows_finished),
            ("padded", stats.rows - stats.rows_useful),
            ("wasted", stats.rows_given_up),
        ):
            if rows:
                series.counter(families.ROWS, model, kind).inc(rows)
        for family, count in (
            (families.LANE_PREEMPTIONS, stats.lanes_set_aside),
            (families.CACHE_HITS, stats.cache_hits),
            (families.IMAGES_SHARED, stats.images_shared),
            (families.NETWORK_FAILURES, stats.network_failures),
            (families.NONFINITE_LANES, stats.nonfinite_lanes),
        ):
            if count:
                series.counter(family, model).inc(count)

    def engine_restarted(self, model: str) -> None:
        """Counts an engine that broke."""
        self._series.counter(families.ENGINE_RESTARTS, model).inc()

    def watch_engine(self, model: str, statistics: Callable[[], EngineStatistics]) -> None:
        """Reads the engine's load at every scrape."""

        def reader(read: Callable[[EngineStatistics], float]) -> Callable[[], float]:
            return lambda: read(statistics())

        for family, read in _LOAD:
            self._series.gauge(family, model).set_function(reader(read))

    def watch_engine_threads(self, age_seconds: Callable[[], float]) -> None:
        """Reads the age of the oldest step that is under way at every scrape."""
        self._series.gauge(families.LAST_ENGINE_STEP_AGE_SECONDS).set_function(age_seconds)

    # The server

    def model_loaded(
        self,
        model: str,
        *,
        version: str,
        provider: str,
        runtime_version: str,
        label_names: Sequence[str],
        bit_equal: bool,
    ) -> None:
        """Says which model runs on what, and what its self-test found; replaces what it was."""
        self._series.begin({"model": (model,), "label": label_names})
        if (before := self._loaded.get(model)) is not None:
            self._series.remove(families.MODEL_INFO, *before)
        self._loaded[model] = (model, version, provider, runtime_version)
        self._series.gauge(families.MODEL_INFO, *self._loaded[model]).set(1)
        self._series.gauge(families.SELF_TEST_BIT_EQUAL, model).set(int(bit_equal))
        self._series.gauge(families.MODEL_LAST_RELOAD_SUCCESSFUL, model).set(1)

    def model_reloaded(self, model: str, outcome: str) -> None:
        """Counts a bundle that was loaded again; `outcome` is ok or failed."""
        self._series.counter(families.MODEL_RELOADS, model, outcome).inc()
        good = self._series.gauge(families.MODEL_LAST_RELOAD_SUCCESSFUL, model)
        good.set(int(outcome == "ok"))

    def watch_readiness(self, ready: Callable[[], bool], draining: Callable[[], bool]) -> None:
        """Reads the phase of the server at every scrape."""
        self._series.gauge(families.READY).set_function(lambda: float(ready()))
        self._series.gauge(families.DRAINING).set_function(lambda: float(draining()))

    def watch_certificate(self, expiry_timestamp_seconds: Callable[[], float]) -> None:
        """Reads at every scrape when the certificate of the gRPC port ends."""
        self._series.gauge(families.CERTIFICATE_EXPIRY).set_function(expiry_timestamp_seconds)

    # What is published

    def exposition(self) -> tuple[bytes, str]:
        """Returns everything in Prometheus' text format, and the content type of that."""
        return self._series.exposition()

    def value(self, name: str, **labels: str) -> float:
        """Returns one sample, as MetricSeries.value does."""
        return self._series.value(name, **labels)


_LOAD: tuple[tuple[Family, Callable[[EngineStatistics], float]], ...] = (
    (families.LANES_IN_USE, lambda load: load.lanes_active),
    (families.LANES_CAPACITY, lambda load: load.lanes_capacity),
    (families.LANES_SET_ASIDE, lambda load: load.lanes_set_aside),
    (families.CACHE_BYTES, lambda load: load.cache_bytes),
    (families.IMAGES_WAITING, lambda load: load.images_waiting),
    (families.IMAGES_WAITING_LIMIT, lambda load: load.images_waiting_limit),
    (families.REQUESTS_WAITING, lambda load: load.requests_waiting),
    (families.REQUESTS_WAITING_LIMIT, lambda load: load.requests_waiting_limit),
)
