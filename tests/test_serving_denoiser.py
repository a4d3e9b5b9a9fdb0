"""The arithmetic of an engine step: equal to the reference loop to the bit, in any mixture."""

import numpy as np
import pytest

from diffusion.samplers import make_plan
from serving.denoiser import Denoiser
from serving.engine_model import EngineModel
from tests.fakes import FakeNetwork, Floats, fake_model, reference_x_0, spec

REQUESTS = [
    spec(label=0, seed=2**64 - 1, sampler="ddpm", num_steps=7, count=3),
    spec(label=1, seed=1, sampler="ddim", num_steps=5, guidance_scale=2.5, first_index=4),
    spec(label=2, seed=1, sampler="dpmpp_2m", num_steps=9, guidance_scale=0.0, count=2),
    spec(label=3, seed=0, sampler="ddpm", num_steps=1),
    spec(label=10, seed=5, sampler="dpmpp_2m", num_steps=6),
    spec(label=4, seed=6, sampler="ddpm", num_steps=50, guidance_scale=7.5),
    spec(label=1, seed=8, sampler="ddim_stochastic", num_steps=8, guidance_scale=1.7, count=2),
]


def join(denoiser: Denoiser, number: int) -> None:
    request = REQUESTS[number]
    denoiser.join(
        request,
        request=number,
        plan=denoiser.plans.acquire(request.sampler, request.num_steps),
        first_index=request.first_index,
        images=request.count,
    )
    denoiser.draw_initial()


def run(denoiser: Denoiser, joins_at: dict[int, list[int]]) -> dict[tuple[int, int], Floats]:
    """x of every finished lane by (request, index); requests join before the step named."""
    images = {}
    step = 0
    while denoiser.lanes.count or step <= max(joins_at):
        for number in joins_at.get(step, []):
            join(denoiser, number)
        denoised = denoiser.step()
        for lane in np.flatnonzero(denoised.finished):
            key = int(denoiser.lanes.request[lane]), int(denoiser.lanes.index[lane])
            images[key] = denoiser.lanes.x[lane].copy()
        denoiser.lanes.leave(denoised.finished)
        step += 1
    return images


@pytest.mark.parametrize(
    "joins_at",
    [{0: [0, 1, 2, 3, 4, 5, 6]}, {0: [5], 1: [4, 6], 2: [3, 2], 3: [1], 9: [0]}],
    ids=["together", "staggered"],
)
def test_every_lane_of_a_mixture_equals_the_reference_loop_to_the_bit(
    joins_at: dict[int, list[int]],
) -> None:
    model = fake_model(image_shape=(3, 4, 2))
    images = run(Denoiser(model, FakeNetwork(), max_lanes=16), joins_at)
    assert len(images) == sum(request.count for request in REQUESTS)
    for number, request in enumerate(REQUESTS):
        expected = reference_x_0(model, request)
        for offset in range(request.count):
            drawn = images[number, request.first_index + offset]
            np.testing.assert_array_equal(drawn, expected[offset], strict=True)


def test_a_guided_lane_costs_two_rows_and_an_unguided_one_costs_one() -> None:
    network = FakeNetwork()
    denoiser = Denoiser(fake_model(), network, max_lanes=8)
    for number in (0, 1, 2):
        join(denoiser, number)
    assert denoiser.lane_rows().sum() == 3 + 2 + 4
    denoiser.step()
    assert network.batches == [[0, 0, 0, 1, 2, 2, 10, 10, 10]]


def test_a_lane_costs_a_second_row_only_where_its_plan_is_guided() -> None:
    network = FakeNetwork()
    denoiser = Denoiser(fake_model(), network, max_lanes=4)
    join(denoiser, 6)
    plan = make_plan("ddim_stochastic", fake_model().schedule, 8)
    assert set(plan.guided.tolist()) == {False, True}
    for guided in plan.guided:
        assert denoiser.lane_rows().sum() == (4 if guided else 2)
        denoiser.step()
    assert [len(batch) for batch in network.batches] == [4 if g else 2 for g in plan.guided]
    assert sum(map(len, network.batches)) == REQUESTS[6].count * REQUESTS[6].work_per_image


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bad_label", [1, 10], ids=["label row", "null row"])
def test_a_nonfinite_row_marks_its_lane_and_no_other(bad_label: int, value: float) -> None:
    model = fake_model()
    network = FakeNetwork(nan_labels={bad_label}, nan=value)
    denoiser = Denoiser(model, network, max_lanes=8)
    for number in (0, 1, 3):  # only request 1 has a row with label 1, or a null row
        join(denoiser, number)
    denoised = denoiser.step()
    assert denoised.nonfinite.tolist() == [False, False, False, True, False]
    assert np.isfinite(denoiser.lanes.x[[0, 1, 2, 4]]).all()
    np.testing.assert_array_equal(denoiser.lanes.x[4], reference_x_0(model, REQUESTS[3])[0])


def test_finite_numbers_whose_sum_overflows_are_not_taken_for_a_failure() -> None:
    def network(x_t: Floats, emb: Floats, /) -> Floats:
        return np.full_like(x_t, 3e38)

    denoiser = Denoiser(fake_model(), network, max_lanes=4)
    join(denoiser, 3)
    assert not denoiser.step().nonfinite.any()


def test_a_lane_does_not_inherit_what_was_in_its_place_before() -> None:
    model = fake_model()
    network = FakeNetwork(nan_labels={3})
    denoiser = Denoiser(model, network, max_lanes=1)
    join(denoiser, 3)
    denoised = denoiser.step()
    assert denoised.nonfinite.all()
    denoiser.lanes.leave(np.ones(1, dtype=np.bool_))
    images = run(denoiser, {0: [4]})  # DPM-Solver++ multiplies x_0_previous
    np.testing.assert_array_equal(images[4, 0], reference_x_0(model, REQUESTS[4])[0])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.zeros((1, 1, 3, 4), dtype=np.float32), r"float32 \[1, 1, 3, 4\]"),
        (np.zeros((1, 1, 3, 5), dtype=np.float64), "float64"),
    ],
)
def test_a_network_that_returns_something_else_raises_and_leaves_the_images_as_they_were(
    result: Floats, message: str
) -> None:
    denoiser = Denoiser(fake_model(), lambda _x, _emb: result, max_lanes=2)
    join(denoiser, 3)
    before = denoiser.lanes.x.copy()
    with pytest.raises(ValueError, match=message):
        denoiser.step()
    np.testing.assert_array_equal(denoiser.lanes.x, before)


def test_a_table_that_does_not_fit_the_labels_is_refused() -> None:
    model = fake_model()
    with pytest.raises(ValueError, match=r"float32 \[50, 12, E\]"):
        EngineModel(model.image_shape, 11, model.schedule, model.embedding_table)
