"""evaluation.protocol: what is asked for can be measured, or is refused."""

from collections.abc import Callable

import numpy as np
import pytest

from diffusion.samplers import SAMPLERS
from evaluation.protocol import (
    CURVE_NUM_STEPS,
    CurvePlan,
    Protocol,
    full_protocol,
    plan_curve,
    quick_protocol,
)
from evaluation.setting import Setting
from training.datasets import Dataset, Split


def dataset(num_train: int, num_test: int) -> Dataset:
    splits = [
        Split(np.zeros((n, 28, 28), np.uint8), np.arange(n, dtype=np.int64).astype(np.uint8) % 10)
        for n in (num_train, num_test)
    ]
    return Dataset(splits[0], splits[1], tuple("0123456789"), {})


MNIST = dataset(60_000, 10_000)


def curve(**changes: object) -> CurvePlan:
    arguments = {
        "samplers": list(SAMPLERS), "num_steps": CURVE_NUM_STEPS, "guidance_scales": (1.0, 1.5),
        "num_images": 2000, "num_images_long": 500, "seed": 3, "dataset": MNIST,
        "num_train_timesteps": 1000,
    }  # fmt: skip
    return plan_curve(**(arguments | changes))


def test_the_protocol_is_ten_thousand_images_and_three_seeds_that_share_no_noise() -> None:
    protocol = full_protocol(MNIST, 1000)
    assert protocol.num_images == 10_000
    assert not protocol.quick
    assert protocol.classification_images == 60_000
    used = [seed + label for seed in protocol.seeds for label in range(10)]
    assert len(set(used)) == 30


def test_a_quick_look_says_so_and_is_less() -> None:
    full, quick = full_protocol(MNIST, 1000), quick_protocol(MNIST, 1000)
    assert quick.quick
    assert quick.num_images < full.num_images
    assert len(quick.seeds) == 1
    assert quick.classification_images == 0


def test_the_curve_has_every_combination_and_begins_with_the_cheapest() -> None:
    plan = curve()
    assert len(plan.settings) == len(set(plan.settings)) == len(SAMPLERS) * (9 * 2 + 3)
    rows = [setting.rows_per_image for setting in plan.settings]
    assert rows == sorted(rows)
    assert plan.num_images_at(Setting("ddpm", 50)) == 2000
    assert plan.num_images_at(Setting("ddpm", 100)) == 500


def test_the_costly_end_of_the_curve_is_of_the_first_guidance_scale_only() -> None:
    scales: dict[int, set[float]] = {}
    for setting in curve(guidance_scales=(1.5, 1.0)).settings:
        scales.setdefault(setting.num_steps, set()).add(setting.guidance_scale)
    assert scales[50] == {1.0, 1.5}
    assert scales[100] == scales[1000] == {1.5}


def test_the_curve_leaves_out_steps_that_the_bundle_has_not() -> None:
    assert max(setting.num_steps for setting in curve(num_train_timesteps=20).settings) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 99}, r"curve_num_images is 99; legal: 100 \.\. 10000"),
        ({"num_images": 10_001}, r"curve_num_images is 10001; legal: 100 \.\. 10000"),
        ({"num_images_long": 0}, r"curve_num_images_long is 0; legal: 100 \.\. 10000"),
        ({"num_steps": (2000,)}, r"curve_num_steps is \[2000\]; legal: 1 \.\. 1000"),
        ({"num_steps": (0, 5)}, "num_steps is 0; legal: at least 1"),
        ({"guidance_scales": (21.0,)}, r"guidance_scale is 21.0; legal: 0 \.\. 20"),
        ({"samplers": ["euler"]}, "sampler is 'euler'; legal: ddpm"),
        ({"seed": -1}, r"seed is -1; legal: 0 \.\."),
    ],
)
def test_a_bad_curve_is_refused_with_field_value_and_range(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        curve(**changes)


@pytest.mark.parametrize("make", [full_protocol, quick_protocol])
def test_an_n_without_a_floor_is_refused(make: Callable[..., Protocol]) -> None:
    for n in (99, 201):
        with pytest.raises(ValueError, match=rf"num_images is {n}; legal: 100 \.\. 200"):
            make(dataset(500, 200), 0, n)
    with pytest.raises(ValueError, match=r"num_images is 200; legal: 100 \.\. 150"):
        make(dataset(300, 200), 0, None)  # the training set's floor takes it twice
    assert make(dataset(500, 200), 0, 150).num_images == 150
