"""What an engine says about itself. The edge publishes it; nothing here knows how."""

from dataclasses import dataclass, field, replace

from serving.request import Outcome


@dataclass(slots=True)
class StepStats:
    """What one engine step did.

    A step that only ended requests (cancelled or expired) made no batch and has rows 0.

    Attributes:
        lanes: images in the batch.
        rows_useful: network rows in it.
        rows: network rows computed, padding included.
        reviewed: whether lanes were given out anew.
        kept_short: whether lanes were left out for the sake of the smaller requests in it.
        rows_finished: that the images which are finished have taken, in all their steps.
        rows_given_up: that images have taken which were given up: cancelled, late or failed.
        network_seconds: in the network call.
        total_seconds: in the step as a whole.
        images_started: that took their first lane.
        cache_hits: images that were in the cache.
        images_shared: that wait for the lane of an equal image.
        lanes_set_aside: that had to make room for more urgent ones.
        lanes_resumed: that had been set aside before.
        images_finished: handed to their sinks.
        previews: handed to their sinks.
        nonfinite_lanes: for which the network gave NaN or Inf.
        network_failures: 1 if the network call raised, else 0.
        requests_done: requests that ended, by outcome; outcomes that did not occur are absent.
    """

    lanes: int = 0
    rows_useful: int = 0
    rows: int = 0
    reviewed: bool = False
    kept_short: bool = False
    rows_finished: int = 0
    rows_given_up: int = 0
    network_seconds: float = 0.0
    total_seconds: float = 0.0
    images_started: int = 0
    cache_hits: int = 0
    images_shared: int = 0
    lanes_set_aside: int = 0
    lanes_resumed: int = 0
    images_finished: int = 0
    previews: int = 0
    nonfinite_lanes: int = 0
    network_failures: int = 0
    requests_done: dict[Outcome, int] = field(default_factory=dict)


@dataclass(slots=True)
class EngineTotals:
    """Sums of StepStats since the engine was made.

    Attributes:
        steps: that made a batch.
        rows, rows_useful, rows_finished, rows_given_up, images_finished, lanes_set_aside,
            nonfinite_lanes, network_failures: as in StepStats.
        requests_done: requests that ended, by outcome; every outcome is present.
    """

    steps: int = 0
    rows: int = 0
    rows_useful: int = 0
    rows_finished: int = 0
    rows_given_up: int = 0
    images_finished: int = 0
    lanes_set_aside: int = 0
    nonfinite_lanes: int = 0
    network_failures: int = 0
    requests_done: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))

    def add(self, stats: StepStats) -> None:
        """Adds a step."""
        self.steps += stats.lanes > 0
        self.rows += stats.rows
        self.rows_useful += stats.rows_useful
        self.rows_finished += stats.rows_finished
        self.rows_given_up += stats.rows_given_up
        self.images_finished += stats.images_finished
        self.lanes_set_aside += stats.lanes_set_aside
        self.nonfinite_lanes += stats.nonfinite_lanes
        self.network_failures += stats.network_failures
        for outcome, requests in stats.requests_done.items():
            self.requests_done[outcome] += requests

    def snapshot(self) -> "EngineTotals":
        """A copy that nobody adds to."""
        return replace(self, requests_done=dict(self.requests_done))


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """The state of an engine.

    Attributes:
        lanes_active: images being denoised.
        lanes_capacity: at most so many at once, at present.
        lanes_set_aside: images half done that wait until it is their request's turn again.
        images_waiting: accepted images without a lane, those set aside included.
        images_waiting_limit: the bound of that.
        requests_waiting: accepted requests that have not had a lane.
        requests_waiting_limit: the bound of that.
        requests_active: requests that have not ended (without those not yet enqueued).
        seconds_per_row: measured pace; None before the first step.
        cache_bytes: in the cache of finished images.
        totals: since the engine was made.
    """

    lanes_active: int
    lanes_capacity: int
    lanes_set_aside: int
    images_waiting: int
    images_waiting_limit: int
    requests_waiting: int
    requests_waiting_limit: int
    requests_active: int
    seconds_per_row: float | None
    cache_bytes: int
    totals: EngineTotals
