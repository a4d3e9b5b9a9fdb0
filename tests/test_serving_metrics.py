"""What is published is what happened, under the promised names, without any global state."""

import dataclasses
from typing import Any

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from serving.engine_statistics import EngineStatistics, EngineTotals, StepStats
from serving.metrics import Metrics
from serving.request import Outcome


def statistics(**changes: int) -> EngineStatistics:
    """Of an engine without work."""
    names = {field.name for field in dataclasses.fields(EngineStatistics)}
    counts = dict.fromkeys(names - {"seconds_per_row", "totals"}, 0) | changes
    return EngineStatistics(**counts, seconds_per_row=None, totals=EngineTotals())


def load(metrics: Metrics, model: str, version: str = "1.0.0", **changes: Any) -> None:
    """Publishes a model with two labels."""
    facts = {
        "provider": "cpu",
        "runtime_version": "1.31.0",
        "label_names": ("zero", "one"),
        "bit_equal": True,
    }
    metrics.model_loaded(model, version=version, **{**facts, **changes})


def published(metrics: Metrics) -> dict[str, float]:
    """Every sample of the text format, as name{sorted labels} -> value."""
    body, content_type = metrics.exposition()
    assert content_type.startswith("text/plain; version=0.0.4")
    samples = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    return samples


def test_requests_are_counted_by_method_code_and_reason() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.request_started("Generate")
    metrics.request_finished("Generate", "OK", 0.2)
    metrics.request_finished("Generate", "INVALID_ARGUMENT", 0.001)
    metrics.request_refused("invalid_argument")
    metrics.request_cancelled("queued")
    samples = published(metrics)
    assert samples["diffusion_requests_started_total{method=Generate}"] == 3
    assert samples["diffusion_requests_finished_total{code=OK,method=Generate}"] == 1
    assert samples["diffusion_requests_finished_total{code=INVALID_ARGUMENT,method=Generate}"] == 1
    assert samples["diffusion_requests_refused_total{reason=invalid_argument}"] == 1
    assert samples["diffusion_requests_cancelled_total{phase=queued}"] == 1
    assert samples["diffusion_request_seconds_count{method=Generate}"] == 2
    assert samples["diffusion_request_seconds_bucket{le=0.001,method=Generate}"] == 1


def test_images_previews_and_times_are_counted_by_model() -> None:
    metrics = Metrics()
    metrics.images_delivered("mnist", "seven", 16)
    metrics.images_delivered("mnist", "seven", 4)
    metrics.previews_dropped("mnist", 5)
    metrics.request_computed("mnist", 0.3, 2.0)
    metrics.first_image_sent("GenerateStream", "mnist", 0.7)
    step = StepStats(
        rows=48,
        rows_useful=40,
        rows_finished=30,
        rows_given_up=5,
        total_seconds=0.02,
        lanes_set_aside=3,
        network_failures=1,
        nonfinite_lanes=2,
        cache_hits=4,
        images_shared=5,
    )
    metrics.engine_stepped("mnist", step)
    metrics.engine_restarted("mnist")
    metrics.engine_stepped("mnist", StepStats(requests_done={Outcome.CANCELLED: 1}))
    samples = published(metrics)
    assert samples["diffusion_images_total{label=seven,model=mnist}"] == 20
    assert samples["diffusion_previews_dropped_total{model=mnist}"] == 5
    assert samples["diffusion_queue_seconds_sum{model=mnist}"] == 0.3
    assert samples["diffusion_compute_seconds_sum{model=mnist}"] == 2.0
    first = "diffusion_time_to_first_image_seconds_sum{method=GenerateStream,model=mnist}"
    assert samples[first] == 0.7
    assert samples["diffusion_rows_total{kind=useful,model=mnist}"] == 30
    assert samples["diffusion_rows_total{kind=wasted,model=mnist}"] == 5
    assert samples["diffusion_rows_total{kind=padded,model=mnist}"] == 8
    assert samples["diffusion_engine_step_rows_sum{model=mnist}"] == 48
    assert samples["diffusion_engine_step_rows_count{model=mnist}"] == 1
    assert samples["diffusion_engine_restarts_total{model=mnist}"] == 1
    assert samples["diffusion_cache_hits_total{model=mnist}"] == 4
    assert samples["diffusion_images_shared_total{model=mnist}"] == 5
    assert samples["diffusion_lane_preemptions_total{model=mnist}"] == 3
    assert samples["diffusion_network_failures_total{model=mnist}"] == 1
    assert samples["diffusion_nonfinite_lanes_total{model=mnist}"] == 2
    assert samples["diffusion_engine_step_seconds_sum{model=mnist}"] == 0.02


def test_gauges_are_read_when_they_are_asked_for() -> None:
    metrics = Metrics()
    now = statistics(lanes_active=3, lanes_capacity=64, lanes_set_aside=2, images_waiting=7)
    age, state = 0.5, {"ready": False, "draining": False}
    metrics.watch_engine("mnist", lambda: now)
    metrics.watch_engine_threads(lambda: age)
    metrics.watch_readiness(lambda: state["ready"], lambda: state["draining"])
    assert published(metrics)["diffusion_lanes_in_use{model=mnist}"] == 3
    assert published(metrics)["diffusion_lanes_set_aside{model=mnist}"] == 2
    assert published(metrics)["diffusion_ready{}"] == 0
    now = statistics(
        lanes_capacity=64, images_waiting_limit=9, requests_waiting=4, requests_waiting_limit=5
    )
    age = 1.5
    state.update(ready=True, draining=True)
    samples = published(metrics)
    assert samples["diffusion_lanes_in_use{model=mnist}"] == 0
    assert samples["diffusion_lanes_capacity{model=mnist}"] == 64
    assert samples["diffusion_images_waiting{model=mnist}"] == 0
    assert samples["diffusion_images_waiting_limit{model=mnist}"] == 9
    assert samples["diffusion_requests_waiting{model=mnist}"] == 4
    assert samples["diffusion_requests_waiting_limit{model=mnist}"] == 5
    assert samples["diffusion_ready{}"] == 1
    assert samples["diffusion_draining{}"] == 1
    assert samples["diffusion_last_engine_step_age_seconds{}"] == 1.5


def test_models_are_published_with_what_their_self_test_found() -> None:
    metrics = Metrics()
    load(metrics, "mnist")
    load(metrics, "other", "2.0.0", provider="cuda", bit_equal=False)
    info = "diffusion_model_info{model=mnist,onnxruntime_version=1.31.0,provider=cpu,version=%s}"
    samples = published(metrics)
    assert samples[info % "1.0.0"] == 1
    assert samples["diffusion_self_test_bit_equal{model=mnist}"] == 1
    assert samples["diffusion_self_test_bit_equal{model=other}"] == 0
    load(metrics, "mnist", "1.1.0")
    samples = published(metrics)
    assert samples[info % "1.1.0"] == 1
    assert info % "1.0.0" not in samples


def test_a_failed_reload_shows_until_one_succeeds() -> None:
    metrics = Metrics()
    load(metrics, "mnist")
    good = "diffusion_model_last_reload_successful{model=mnist}"
    assert published(metrics)[good] == 1
    metrics.model_reloaded("mnist", "failed")
    assert published(metrics)[good] == 0
    metrics.model_reloaded("mnist", "ok")
    samples = published(metrics)
    assert samples[good] == 1
    assert samples["diffusion_model_reloads_total{model=mnist,outcome=ok}"] == 1
    assert samples["diffusion_model_reloads_total{model=mnist,outcome=failed}"] == 1


def test_a_series_is_there_before_its_first_event() -> None:
    """Prometheus sees no rise where a counter begins with 1."""
    metrics = Metrics()
    samples = published(metrics)
    assert samples["diffusion_requests_finished_total{code=INTERNAL,method=Generate}"] == 0
    assert samples["diffusion_requests_refused_total{reason=queue_full}"] == 0
    assert not [name for name in samples if "model=" in name]
    load(metrics, "mnist")
    samples = published(metrics)
    assert samples["diffusion_engine_restarts_total{model=mnist}"] == 0
    assert samples["diffusion_images_total{label=one,model=mnist}"] == 0
    assert samples["diffusion_rows_total{kind=wasted,model=mnist}"] == 0
    assert samples["diffusion_engine_step_seconds_count{model=mnist}"] == 0


def test_two_servers_in_one_process_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.request_started("Generate")
    assert one.value("diffusion_requests_started_total", method="Generate") == 1
    assert other.value("diffusion_requests_started_total", method="Generate") == 0


def test_nothing_is_registered_globally() -> None:
    Metrics()
    names = {family.name for family in prometheus_client.REGISTRY.collect()}
    assert not {name for name in names if name.startswith("diffusion")}


def test_every_name_has_the_prefix_and_no_series_is_bookkeeping_of_the_library() -> None:
    metrics = Metrics()
    metrics.request_started("Generate")
    metrics.request_finished("Generate", "OK", 0.1)
    metrics.calls("unary", "s", "m").started()
    names = {name.partition("{")[0] for name in published(metrics)}
    assert names
    assert all(name.startswith(("diffusion_", "grpc_server_", "process_")) for name in names)
    assert not {name for name in names if name.endswith("_created")}
