"""What a run of requests amounts to: percentiles, throughput, goodput, refusals."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.load.open_loop import Record

PERCENTILES = (50, 90, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank).

    No interpolation: with few values, the 99th percentile is the largest that was seen.

    Raises:
        ValueError: if there are no values, or percent is not in 0 < percent <= 100.
    """
    if not values:
        raise ValueError("a percentile of no values")
    if not 0 < percent <= 100:
        raise ValueError(f"percent is {percent:g}; legal: above 0, at most 100")
    rank = math.ceil(percent / 100 * len(values) - 1e-9)
    return sorted(values)[max(rank, 1) - 1]


@dataclass(frozen=True, slots=True)
class Summary:
    """Of all requests of a run, or of one kind.

    Attributes:
        requests: that were sent.
        ok, refused, failed, unfinished: how they ended.
        seconds: from the start of the schedule to the last answer.
        images_per_second: of requests that ended well.
        rows_per_second: network rows of them.
        p50_seconds, p90_seconds, p99_seconds, max_seconds: latency from the scheduled time, of
            requests that ended well or not in time (these count as what they had waited); None
            where there are none.
        goodput: share of all requests that ended well within the bound.
        behind_seconds: how late the generator was at most.
    """

    requests: int
    ok: int
    refused: int
    failed: int
    unfinished: int
    seconds: float
    images_per_second: float
    rows_per_second: float
    p50_seconds: float | None
    p90_seconds: float | None
    p99_seconds: float | None
    max_seconds: float | None
    goodput: float
    behind_seconds: float

    def lines(self) -> str:
        """For a person."""
        latency = ", ".join(
            f"{name} {'-' if value is None else f'{1000 * value:.1f} ms'}"
            for name, value in (
                ("p50", self.p50_seconds),
                ("p90", self.p90_seconds),
                ("p99", self.p99_seconds),
                ("max", self.max_seconds),
            )
        )
        return (
            f"{self.requests} requests: {self.ok} ok, {self.refused} refused, {self.failed} failed,"
            f" {self.unfinished} unfinished\n"
            f"latency    {latency}\n"
            f"throughput {self.images_per_second:.1f} images/s, {self.rows_per_second:.0f} rows/s"
            f" in {self.seconds:.1f} s\n"
            f"goodput    {100 * self.goodput:.1f} % within the bound\n"
            f"generator  at most {1000 * self.behind_seconds:.1f} ms late"
        )


def summarise(records: Sequence[Record], latency_bound_seconds: float) -> Summary:
    """Sums up a run.

    Args:
        records: at least one.
        latency_bound_seconds: within which an answer counts as good.
    """
    ok = [record for record in records if record.status == "ok"]
    waited = [r.latency_seconds for r in records if r.status in ("ok", "unfinished")]
    seconds = max(record.done_seconds for record in records)
    p50, p90, p99 = (percentile(waited, p) if waited else None for p in PERCENTILES)
    return Summary(
        requests=len(records),
        ok=len(ok),
        refused=sum(record.status == "refused" for record in records),
        failed=sum(record.status == "failed" for record in records),
        unfinished=sum(record.status == "unfinished" for record in records),
        seconds=seconds,
        images_per_second=sum(record.kind.count for record in ok) / seconds,
        rows_per_second=sum(record.kind.rows for record in ok) / seconds,
        p50_seconds=p50,
        p90_seconds=p90,
        p99_seconds=p99,
        max_seconds=max(waited, default=None),
        goodput=sum(r.latency_seconds <= latency_bound_seconds for r in ok) / len(records),
        behind_seconds=max(r.sent_seconds - r.scheduled_seconds for r in records),
    )


def by_kind(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each kind of request, by its name."""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(str(record.kind), []).append(record)
    return kinds


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Writes one line per request; times in seconds from the start of the schedule."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "count",
                "num_steps",
                "scheduled_seconds",
                "sent_seconds",
                "done_seconds",
                "latency_seconds",
                "status",
            ]
        )
        for each in records:
            times = (
                each.scheduled_seconds,
                each.sent_seconds,
                each.done_seconds,
                each.latency_seconds,
            )
            writer.writerow(
                [each.kind.count, each.kind.num_steps, *(f"{t:.6f}" for t in times), each.status]
            )


def as_dict(summary: Summary) -> dict[str, float | int | None]:
    """For a result's JSON."""
    return asdict(summary)
