"""The self-test: silent about a network that keeps rows apart, loud about one that does not."""

import numpy as np
import pytest

from serving.self_test import run_self_test
from tests.fakes import FakeNetwork, Floats, fake_eps, fake_model

MODEL = fake_model(num_train_timesteps=30)


def test_a_network_that_keeps_rows_apart_passes_at_every_size() -> None:
    network = FakeNetwork()
    report = run_self_test(MODEL, network, max_lanes=16)
    assert report.bit_equal
    assert report.trajectory_equal
    assert report.finite
    assert [batch.rows for batch in report.batches] == [1, 2, 3, 8, 16, 17, 32]
    assert {1, 2, 3, 8, 16, 17, 32} <= {len(labels) for labels in network.batches}
    assert "equal to the bit" in report.summary()


def test_sizes_that_the_engine_cannot_make_are_not_tried() -> None:
    report = run_self_test(MODEL, FakeNetwork(), max_lanes=2)
    assert [batch.rows for batch in report.batches] == [1, 2, 3, 4]


def test_the_last_bit_of_one_row_in_one_size_is_found() -> None:
    def network(x_t: Floats, emb: Floats, /) -> Floats:
        eps = fake_eps(x_t, emb)
        if len(x_t) == 8:
            eps[7, 0, 0, 0] = np.nextafter(eps[7, 0, 0, 0], np.float32(9))
        return eps

    report = run_self_test(MODEL, network, max_lanes=16)
    assert not report.bit_equal
    assert [batch.rows for batch in report.batches if not batch.bit_equal] == [8]
    assert 0 < max(batch.max_abs_difference for batch in report.batches) < 1e-5
    assert "in batches of 8" in report.summary()


def test_a_network_whose_rows_see_each_other_draws_other_pixels_in_a_crowd() -> None:
    def network(x_t: Floats, emb: Floats, /) -> Floats:
        return fake_eps(x_t - x_t.mean(axis=0), emb)

    report = run_self_test(MODEL, network, max_lanes=16)
    assert not report.trajectory_equal
    assert not report.bit_equal
    assert "pixels of a whole trajectory are different" in report.summary()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_gives_nan_or_inf_is_reported(value: float) -> None:
    report = run_self_test(MODEL, FakeNetwork(nan_labels={0}, nan=value), max_lanes=4)
    assert not report.finite
    assert "NaN or Inf" in report.summary()


def test_a_network_that_reuses_its_result_is_judged_by_its_values() -> None:
    buffer = np.zeros((64, *MODEL.image_shape), dtype=np.float32)

    def network(x_t: Floats, emb: Floats, /) -> Floats:
        buffer[: len(x_t)] = fake_eps(x_t, emb)
        return buffer[: len(x_t)]

    assert run_self_test(MODEL, network, max_lanes=16).bit_equal
