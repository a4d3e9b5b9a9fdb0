"""The reference loop: what it calls, what an image depends on, and bytes."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from diffusion.noise import INITIAL_STEP, standard_normal
from diffusion.reference import Network, sample, to_uint8
from diffusion.samplers import SAMPLERS, ddim, ddpm, dpmpp_2m, make_plan
from diffusion.schedule import linear_schedule

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
SCHEDULE = linear_schedule(100)
SHAPE, NULL = (1, 4, 4), 10


class FakeNetwork:
    """Row-wise and nonlinear in x_t, t and label; keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Floats, Ints, Ints]] = []

    def __call__(self, x_t: Floats, t: Ints, label: Ints) -> Floats:
        assert x_t.dtype == np.float32
        assert t.dtype == label.dtype == np.int64
        assert t.shape == label.shape == x_t.shape[:1]
        self.calls.append((x_t.copy(), t.copy(), label.copy()))
        shift = (0.1 * label - 0.01 * t).astype(np.float32).reshape(-1, 1, 1, 1)
        return np.asarray(x_t / (1.0 + np.abs(x_t)) + shift, dtype=np.float32)


def draw(network: Network | None = None, **changes: Any) -> Floats:
    arguments: dict[str, Any] = {
        "plan": ddpm(SCHEDULE, 6),
        "labels": [0, 3, 3, 7],
        "seed": 42,
        "image_shape": SHAPE,
        "null_label": NULL,
    }
    return sample(network or FakeNetwork(), **(arguments | changes))


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_is_deterministic(name: str) -> None:
    plan = make_plan(name, SCHEDULE, 6)
    first = draw(plan=plan)
    assert first.shape == (4, *SHAPE)
    assert first.dtype == np.float32
    assert first.tobytes() == draw(plan=plan).tobytes()
    assert first.tobytes() != draw(plan=plan, seed=43).tobytes()


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_image_i_does_not_depend_on_count(name: str, guidance_scale: float) -> None:
    plan = make_plan(name, SCHEDULE, 6)
    given: dict[str, Any] = {"plan": plan, "guidance_scale": guidance_scale}
    labels = [0, 3, 3, 7]
    together = draw(**given, labels=labels, first_index=5)
    for i, label in enumerate(labels):
        alone = draw(**given, labels=[label], first_index=5 + i)
        assert alone.tobytes() == together[i].tobytes()
    assert together[1].tobytes() != together[2].tobytes()  # same label, another image


def test_plain_conditional_sampling_calls_the_network_once_per_step_with_the_labels() -> None:
    network = FakeNetwork()
    plan = dpmpp_2m(SCHEDULE, 6)
    draw(network, plan=plan)
    assert [call[1].tolist() for call in network.calls] == [[t] * 4 for t in plan.timesteps]
    assert all(call[2].tolist() == [0, 3, 3, 7] for call in network.calls)


def test_first_call_sees_the_noise_of_the_initial_step() -> None:
    network = FakeNetwork()
    draw(network, first_index=9)
    expected = standard_normal(
        np.full(4, 42, dtype=np.uint64), np.arange(9, 13), np.full(4, INITIAL_STEP), 16
    )
    assert network.calls[0][0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("guidance_scale", [0.0, 2.5])
def test_guided_sampling_is_the_formula(guidance_scale: float) -> None:
    class Blended:
        """The formula applied inside the network, sampled without guidance."""

        def __call__(self, x_t: Floats, t: Ints, label: Ints) -> Floats:
            eps_null = FakeNetwork()(x_t, t, np.full_like(label, NULL))
            eps_label = FakeNetwork()(x_t, t, label)
            return eps_null + np.float32(guidance_scale) * (eps_label - eps_null)

    network = FakeNetwork()
    guided = draw(network, guidance_scale=guidance_scale)
    np.testing.assert_allclose(guided, draw(Blended()), atol=1e-6)
    assert len(network.calls) == 12
    assert {tuple(call[2].tolist()) for call in network.calls} == {(0, 3, 3, 7), (NULL,) * 4}
    assert guided.tobytes() != draw().tobytes()


def test_loop_is_the_update_written_out() -> None:
    plan = ddim(SCHEDULE, 3, eta=0.5)
    network = FakeNetwork()
    seeds, index = np.full(1, 42, dtype=np.uint64), np.array([0])
    noise = [standard_normal(seeds, index, np.array([k]), 16).reshape(1, *SHAPE) for k in range(3)]
    x = standard_normal(seeds, index, np.array([INITIAL_STEP]), 16).reshape(1, *SHAPE)
    for k, t in enumerate(plan.timesteps):
        eps = network(x, np.array([t]), np.array([7]))
        x_0 = np.clip((x - plan.sigma[k] * eps) / plan.alpha[k], -1.0, 1.0)
        a, b, _, s = plan.coefficients[k]
        x = a * x + b * x_0 + s * noise[k]
    np.testing.assert_allclose(draw(plan=plan, labels=[7]), x, atol=1e-6)


def test_the_step_before_reaches_the_second_order_term() -> None:
    second, first = (draw(plan=dpmpp_2m(SCHEDULE, 6, order=order)) for order in (2, 1))
    assert np.abs(second - first).max() > 1e-4


def test_clipping_bounds_the_images() -> None:
    assert np.abs(draw()).max() <= 1.0
    assert np.abs(draw(clip=0.5)).max() <= 0.5
    assert np.abs(draw(clip=None)).max() > 1.0


def test_no_labels_give_no_images() -> None:
    assert draw(labels=[]).shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, r"seed must be in 0\.\.18446744073709551615, got -1"),
        ({"seed": 2**64}, "seed must be in"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be finite, got nan"),
        ({"labels": 3}, r"labels must have shape \[N\], got \(\)"),
        ({"first_index": -1}, r"index must be in 0\.\.4294967295, got -1"),
        ({"first_index": 2**32 - 2}, "index must be in"),
    ],
)
def test_arguments_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**change)


def test_largest_seed_and_index_are_taken() -> None:
    assert np.isfinite(draw(seed=2**64 - 1, first_index=2**32 - 4)).all()


def test_bytes_are_rounded_and_clipped() -> None:
    x = np.array([-1.0, 1.0, 0.0, -2.0, 7.0, -np.inf, np.inf], dtype=np.float32)
    assert to_uint8(x).tolist() == [0, 255, 128, 0, 255, 0, 255]
    assert to_uint8(x).dtype == np.uint8
    # Around each half step: below it goes down, above it goes up.
    steps = np.arange(255)
    half = (steps + 0.5) / 127.5 - 1.0
    assert to_uint8((half - 1e-4).astype(np.float32)).tolist() == steps.tolist()
    assert to_uint8((half + 1e-4).astype(np.float32)).tolist() == (steps + 1).tolist()


def test_every_byte_survives_the_way_through_floats() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    x = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    np.testing.assert_array_equal(to_uint8(x), pixels)
