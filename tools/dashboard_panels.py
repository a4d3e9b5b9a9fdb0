"""What the Grafana dashboard shows: one table of panels for each question.

In queries {<server>} and {<model>} choose what is chosen at the top of the page.
"""

from dataclasses import dataclass, field
from typing import Any

_BAD_ABOVE_0 = ((None, "green"), (0.5, "red"))
_GOOD_FROM_1 = ((None, "red"), (1, "green"))
_YES_NO = {"1": {"text": "yes"}, "0": {"text": "no"}}


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: a few words.
        queries: PromQL by legend; "" for none, {{label}} for the value of a label.
        text: what it tells, for whoever holds the mouse on it.
        kind: of Grafana's panels.
        width: of 24.
        height: in Grafana's units.
        unit: of Grafana's units.
        stacked: whether the series add up to something.
        colours: (value, colour) from which it is that colour.
        words: what to show for a value.
    """

    title: str
    queries: dict[str, str]
    text: str
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    unit: str = "short"
    stacked: bool = False
    colours: tuple[tuple[float | None, str], ...] = ((None, "green"),)
    words: dict[str, dict[str, str]] = field(default_factory=dict)


def number(title: str, query: str, text: str, **rest: Any) -> Panel:
    """A panel with one large number."""
    return Panel(title, {"": query}, text, kind="stat", **{"width": 4, "height": 4, **rest})


def quantiles(metric: str, chosen: str, *shares: float, by: str = "") -> dict[str, str]:
    """Queries for quantiles of a histogram, for each value of the label `by`."""
    grouping, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    buckets = f"sum by ({grouping}) (rate({metric}_bucket{{{chosen}}}[$__rate_interval]))"
    return {
        f"p{100 * share:g}{legend}": f"histogram_quantile({share:g}, {buckets})" for share in shares
    }


def per_second(metric: str, by: str) -> dict[str, str]:
    """A query for events per second, for each value of the label `by`."""
    return {f"{{{{{by}}}}}": f"sum by ({by}) (rate({metric}[$__rate_interval]))"}


def in_all(metric: str) -> str:
    """A query for events in the time shown."""
    return f"sum(increase({metric}[$__range]))"


UP = [
    number(
        "Replicas ready", "sum(diffusion_ready{<server>})",
        "Servers that new clients are sent to.", colours=_GOOD_FROM_1, width=3,
    ),
    number(
        "Replicas not ready",
        "count(up{<server>}) - (sum(diffusion_ready{<server>}) or vector(0))",
        "Servers that cannot be scraped, load, drain, hang or have failed.",
        colours=_BAD_ABOVE_0, width=3,
    ),
    number(
        "Draining", "sum(diffusion_draining{<server>})",
        "Servers that finish what they have accepted, and take nothing new.", width=3,
    ),
    number(
        "Alerts", 'count(ALERTS{alertstate="firing"}) or vector(0)',
        "Alerts that fire. Prometheus' page Alerts has them, docs/operations.md what to do.",
        colours=_BAD_ABOVE_0, width=3,
    ),
    number(
        "Silence of the engine", "max(diffusion_last_engine_step_age_seconds{<server>})",
        "The longest time since an engine's last sign of life while it has work.",
        unit="s", colours=((None, "green"), (1, "orange"), (5, "red")), width=3,
    ),
    number(
        "Engine restarts", in_all("diffusion_engine_restarts_total{<model>}"),
        "Engines that broke and were made anew, in the time shown.", colours=_BAD_ABOVE_0, width=3,
    ),
    number(
        "Reloads failed", "sum(diffusion_model_last_reload_successful{<model>} == bool 0)",
        "Bundles on disk that could not be loaded; the version from before serves.",
        colours=_BAD_ABOVE_0, width=3,
    ),
    number(
        "Youngest process", "time() - max(process_start_time_seconds{<server>})",
        "Time since the last start of a server.", unit="s", width=3,
    ),
    Panel(
        "Ready", {"{{instance}}": "diffusion_ready{<server>}"},
        "Each server over time.", kind="state-timeline", width=12, height=6,
        colours=_GOOD_FROM_1, words=_YES_NO,
    ),
    Panel(
        "Models", {"": "diffusion_model_info{<model>}"},
        "What is loaded where, and what it runs on.", kind="table", width=12, height=6,
    ),
]  # fmt: skip

FAST = [
    Panel(
        "Images per second", per_second("diffusion_images_total{<model>}", "model"),
        "Images handed to clients.", unit="none", stacked=True,
    ),
    Panel(
        "Time to the first image",
        quantiles("diffusion_time_to_first_image_seconds", "<model>", 0.5, 0.99, by="method"),
        "From the arrival of a request to its first image being sent; of Generate, which sends all"
        " at once, to all of them.", unit="s",
    ),
    Panel(
        "Time to the status",
        quantiles("diffusion_request_seconds", "<server>", 0.5, 0.99, by="method"),
        "From the arrival of a request to its end; refusals count too.", unit="s",
    ),
    Panel(
        "Waiting", quantiles("diffusion_queue_seconds", "<model>", 0.5, 0.9, 0.99),
        "From acceptance to the first image in a batch, of requests that were finished.", unit="s",
    ),
    Panel(
        "Computing", quantiles("diffusion_compute_seconds", "<model>", 0.5, 0.9, 0.99),
        "From the first image in a batch to the last one finished.", unit="s",
    ),
    Panel(
        "Engine step", quantiles("diffusion_engine_step_seconds", "<model>", 0.5, 0.99),
        "One network call with all there is around it.", unit="s",
    ),
]  # fmt: skip

FULL = [
    Panel(
        "Lanes",
        {
            "in use {{instance}}": "diffusion_lanes_in_use{<model>}",
            "there are {{instance}}": "diffusion_lanes_capacity{<model>}",
        },
        "Images being denoised. Always all of them: saturated.",
    ),
    Panel(
        "Images waiting", {"{{instance}}": "diffusion_images_waiting{<model>}"},
        "Accepted images without a lane, those set aside included.", stacked=True,
    ),
    Panel(
        "Queue", {"{{instance}} {{model}}": "instance_model:diffusion_queue:utilisation{<model>}"},
        "How full the fuller one of its two bounds is. At 100 % requests are refused.",
        unit="percentunit",
    ),
    Panel(
        "Refusals per second", per_second("diffusion_requests_refused_total{<server>}", "reason"),
        "queue_full and deadline: more capacity is needed. The others are the clients' or the phase"
        " of the server.", unit="reqps", stacked=True,
    ),
    Panel(
        "Rows per engine step",
        {
            "mean": "sum(rate(diffusion_engine_step_rows_sum{<model>}[$__rate_interval]))"
            " / sum(rate(diffusion_engine_step_rows_count{<model>}[$__rate_interval]))",
            **quantiles("diffusion_engine_step_rows", "<model>", 0.9),
        },
        "How large the batches are. A guided image takes two rows.",
    ),
    Panel(
        "Where the rows go", per_second("diffusion_rows_total{<model>}", "kind"),
        "Network rows per second that became images, that were computed for images given up, and"
        " that filled a batch up to a fixed size.", unit="cps", stacked=True,
    ),
    Panel(
        "Set aside",
        {
            "waiting half done": "sum(diffusion_lanes_set_aside{<model>})",
            "per second": "sum(rate(diffusion_lane_preemptions_total{<model>}[$__rate_interval]))",
        },
        "Images that make room for smaller requests.",
    ),
    Panel(
        "Processor",
        {"{{instance}}": "rate(process_cpu_seconds_total{<server>}[$__rate_interval])"},
        "Cores in use.",
    ),
    Panel(
        "Memory",
        {
            "{{instance}}": "process_resident_memory_bytes{<server>}",
            "cache {{instance}}": "sum by (instance) (diffusion_cache_bytes{<model>})",
        },
        "Of the process, and of it the cache of finished images.", unit="bytes",
    ),
]  # fmt: skip

_BAD_CODES = "INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"

RIGHT = [
    number(
        "INTERNAL", in_all('diffusion_requests_finished_total{<server>, code="INTERNAL"}'),
        "Accepted requests at which the server failed, in the time shown.", colours=_BAD_ABOVE_0,
    ),
    number(
        "NaN or Inf", in_all("diffusion_nonfinite_lanes_total{<model>}"),
        "Images that the network spoiled, in the time shown.", colours=_BAD_ABOVE_0,
    ),
    number(
        "Network failures", in_all("diffusion_network_failures_total{<model>}"),
        "Network calls that raised, in the time shown.", colours=_BAD_ABOVE_0,
    ),
    number(
        "Same request, same pixels", "min(diffusion_self_test_bit_equal{<model>})",
        "Whether rows alone and in a crowd were equal to the bit, everywhere, at the start.",
        colours=_GOOD_FROM_1, words=_YES_NO,
    ),
    number(
        "Answered",
        "1 - " + in_all(f'diffusion_requests_finished_total{{<server>, code=~"{_BAD_CODES}"}}')
        + " / " + in_all("diffusion_requests_finished_total{<server>}"),
        "Share of the requests that did not end badly for want of the server, in the time shown.",
        unit="percentunit", colours=((None, "red"), (0.95, "orange"), (0.99, "green")),
    ),
    number(
        "Previews dropped", in_all("diffusion_previews_dropped_total{<model>}"),
        "Previews that slow readers missed, in the time shown. They lose no images.",
    ),
    Panel(
        "Statuses per second", per_second("diffusion_requests_finished_total{<server>}", "code"),
        "How requests for images end.", unit="reqps", stacked=True,
    ),
    Panel(
        "Clients that left, per second",
        per_second("diffusion_requests_cancelled_total{<server>}", "phase"),
        "By how far their requests were.", unit="reqps", stacked=True,
    ),
    Panel(
        "gRPC calls per second that did not end as OK",
        {
            "{{grpc_method}} {{grpc_code}}": "sum by (grpc_method, grpc_code)"
            ' (rate(grpc_server_handled_total{<server>, grpc_code!="OK"}[$__rate_interval])) > 0'
        },
        "Of every service on the port: health and reflection too.", unit="reqps",
    ),
]  # fmt: skip

DRAWING = [
    Panel(
        "Images per second, by label", per_second("diffusion_images_total{<model>}", "label"),
        "What is asked for.", unit="none", stacked=True, width=12,
    ),
    Panel(
        "Images in the time shown, by label",
        {"{{label}}": "sum by (label) (increase(diffusion_images_total{<model>}[$__range]))"},
        "What was asked for.", kind="bargauge", width=6,
    ),
    Panel(
        "Images that cost nothing, per second",
        {
            "from the cache": "sum(rate(diffusion_cache_hits_total{<model>}[$__rate_interval]))",
            "shared": "sum(rate(diffusion_images_shared_total{<model>}[$__rate_interval]))",
        },
        "With --cache-bytes: found finished, or drawn for somebody else at the same time.",
        unit="none", stacked=True, width=6,
    ),
    Panel(
        "Requests per second, by method",
        per_second("diffusion_requests_started_total{<server>}", "method"),
        "How it is asked for.", unit="reqps", stacked=True, width=12,
    ),
    Panel(
        "Images per request",
        {
            "mean": "sum(rate(diffusion_images_total{<model>}[$__rate_interval]))"
            " / sum(rate(diffusion_compute_seconds_count{<model>}[$__rate_interval]))",
        },
        "Of the requests that were finished.", width=12,
    ),
]  # fmt: skip

ROWS = {
    "Is it up?": UP,
    "Is it fast?": FAST,
    "Is it full?": FULL,
    "Is it right?": RIGHT,
    "What is it drawing?": DRAWING,
}
