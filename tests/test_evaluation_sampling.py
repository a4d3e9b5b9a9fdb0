"""evaluation.sampling: the images that are judged are those that users get."""

from pathlib import Path

import numpy as np
import pytest

from diffusion.reference import sample, to_uint8
from diffusion.samplers import make_plan
from evaluation.sampling import ImageSource
from evaluation.setting import Setting
from serving.bundle import load_bundle
from serving.network import OnnxNetwork, embedding_table
from tests.tiny_evaluation import write_bundle


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return ImageSource(write_bundle(tmp_path / "bundle"), "cpu")


def test_drawn_images_are_those_of_the_reference_loop(tmp_path: Path, source: ImageSource) -> None:
    counts = np.array([0, 0, 3, 2, 0, 0, 0, 0, 0, 0])
    images, labels = source.draw(counts, 7, "ddpm", 4, 1.5)
    assert labels.tolist() == [2, 2, 2, 3, 3]

    bundle = load_bundle(tmp_path / "bundle")
    unet, table = OnnxNetwork(bundle), embedding_table(bundle)
    plan = make_plan("ddpm", bundle.manifest.schedule.to_schedule(), 4)
    for label, count in ((2, 3), (3, 2)):
        x_0 = sample(
            lambda x_t, t, label: unet(x_t, np.ascontiguousarray(table[t, label])),
            plan,
            [label] * count,
            7 + label,
            bundle.manifest.image_shape,
            bundle.manifest.null_label,
            guidance_scale=1.5,
        )
        assert np.array_equal(images[labels == label], to_uint8(x_0))


def test_an_image_depends_on_its_index_and_not_on_where_a_draw_begins(source: ImageSource) -> None:
    counts = np.array([5, 4])
    images, labels = source.draw(counts, 3, "ddim", 3, 1.0)
    parts, _ = source.draw(np.array([2, 3]), 3, "ddim", 3, 1.0, first_indexes=np.array([3, 1]))
    assert np.array_equal(parts[:2], images[labels == 0][3:])
    assert np.array_equal(parts[2:], images[labels == 1][1:])


def test_every_network_row_is_reported(source: ImageSource) -> None:
    rows: list[int] = []
    source.draw(np.array([70, 9]), 3, "ddim", 3, 2.0, on_rows=rows.append)
    assert sum(rows) == 79 * 3 * 2


def test_the_identity_of_images_tells_apart_all_that_draws_others(
    tmp_path: Path, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting("ddpm", 4)
    known = source.identity(setting)
    assert source.identity(Setting("ddpm", 4)) == known
    others = [source.identity(), source.identity(Setting("ddpm", 4, 1.5))]
    others += [source.identity(Setting(*how)) for how in (("ddpm", 5), ("ddim", 4))]
    for name, change in (("weights", {"gain": 1.1}), ("schedule", {"num_train_timesteps": 30})):
        other = ImageSource(write_bundle(tmp_path / name, **change), "cpu")
        others.append(other.identity(setting))
    # A sampler that is changed under its old name.
    monkeypatch.setattr(
        "evaluation.sampling.make_plan",
        lambda sampler, schedule, num_steps: make_plan("ddim", schedule, num_steps),
    )
    others.append(source.identity(setting))
    assert known not in others


def test_more_steps_than_the_bundle_has_are_refused(source: ImageSource) -> None:
    with pytest.raises(ValueError, match=r"num_steps must be in 1\.\.20, got 21"):
        source.identity(Setting("ddpm", 21))
