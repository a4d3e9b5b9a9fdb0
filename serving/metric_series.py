"""The registry of the metrics. The one module that imports prometheus_client."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

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

from serving.metric_families import FAMILIES, Family

_Key = tuple[Family | str, ...]


class _Collected(CollectorRegistry):
    """Metric families as they were at one moment."""

    def __init__(self, collected: list[Metric]) -> None:
        super().__init__()
        self._collected = collected

    def collect(self) -> Iterator[Metric]:
        yield from self._collected


class MetricSeries:
    """Every series of every family, found by its labels' values. Safe to use from any thread.

    The registry is its own: two servers in one process do not mix, and nothing is registered on
    import.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._parents = {family: _make(family, self._registry) for family in FAMILIES}
        # prometheus_client finds them too, in four times the time.
        self._children: dict[_Key, Counter | Gauge | Histogram] = {}

    def counter(self, family: Family, *values: str) -> Counter:
        """Returns the series of a counter that has these values for its labels."""
        found = self._find(family, values)
        assert isinstance(found, Counter)
        return found

    def gauge(self, family: Family, *values: str) -> Gauge:
        """Returns the series of a gauge that has these values for its labels."""
        found = self._find(family, values)
        assert isinstance(found, Gauge)
        return found

    def histogram(self, family: Family, *values: str) -> Histogram:
        """Returns the series of a histogram that has these values for its labels."""
        found = self._find(family, values)
        assert isinstance(found, Histogram)
        return found

    def begin(self, known: Mapping[str, Sequence[str]]) -> None:
        """Makes every series of the families whose labels' values are known, here or always."""
        for family in FAMILIES:
            values = [known.get(label) or always for label, always in family.labels.items()]
            for combination in itertools.product(*values):  # none if one is not known
                self._find(family, combination)

    def remove(self, family: Family, *values: str) -> None:
        """Takes a series away."""
        self._children.pop((family, *values), None)
        self._parents[family].remove(*values)

    def exposition(self) -> tuple[bytes, str]:
        """Returns everything in Prometheus' text format, and the content type of that."""
        # Each counter and histogram also has a "_created" series, which only doubles the volume.
        collected = list(self._registry.collect())
        for family in collected:
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
        return generate_latest(_Collected(collected)), CONTENT_TYPE_PLAIN_0_0_4

    def value(self, name: str, **labels: str) -> float:
        """Returns one sample; one that nothing has touched yet is 0.

        For example `value("diffusion_images_total", model="mnist", label="7")`.
        """
        return self._registry.get_sample_value(name, labels) or 0.0

    def _find(self, family: Family, values: tuple[str, ...]) -> Counter | Gauge | Histogram:
        key: _Key = (family, *values)
        found = self._children.get(key)
        if found is None:
            parent = self._parents[family]
            found = self._children[key] = parent.labels(*values) if family.labels else parent
        return found


def _make(family: Family, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    labels = tuple(family.labels)
    match family.kind:
        case "counter":
            return Counter(family.name, family.text, labels, registry=registry)
        case "gauge":
            return Gauge(family.name, family.text, labels, registry=registry)
        case "histogram":
            return Histogram(
                family.name, family.text, labels, buckets=family.buckets, registry=registry
            )
