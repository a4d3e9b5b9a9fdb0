"""A picture of a run: latency of every request over time, and how latencies are distributed."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.load.open_loop import Record
from benchmarks.load.summary import by_kind


def plot(records: Sequence[Record], title: str, path: Path) -> None:
    """Writes a picture, in the format of the file's suffix.

    Args:
        records: of one run.
        title: of the picture.
        path: where to.
    """
    figure, (over_time, distribution) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for kind, of_kind in sorted(by_kind(records).items()):
        done = [record for record in of_kind if record.status in ("ok", "unfinished")]
        if not done:
            continue
        latencies = np.array([record.latency_seconds for record in done])
        scheduled = [record.scheduled_seconds for record in done]
        label = f"{kind} (images x steps), {len(done)} requests"
        over_time.plot(scheduled, latencies, ".", markersize=4, label=label)
        share = np.arange(1, len(done) + 1) / len(done)
        distribution.step(np.sort(latencies), 100 * share, where="post", label=label)
    refused = [r.scheduled_seconds for r in records if r.status == "refused"]
    if refused:
        over_time.plot(refused, np.zeros(len(refused)), "kx", label=f"refused: {len(refused)}")
    over_time.set(xlabel="scheduled at (s)", ylabel="latency from then on (s)")
    over_time.set_yscale("symlog", linthresh=0.01)
    distribution.set(xlabel="latency (s)", ylabel="requests answered by then (%)", xscale="log")
    for axes in (over_time, distribution):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
