"""Every hyperparameter: its range, its way to JSON and back, and the presets."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from training.config import (
    FREE_ON_RESUME,
    PRESETS,
    ModelConfig,
    TrainConfig,
    from_dict,
    to_dict,
)

MODEL_OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("image_channels", 0, "at least 1"),
    ("image_size", 0, "multiples of 4"),
    ("patch_size", 0, "at least 1"),
    ("prediction", "x_0", "eps, v, residual_eps"),
    ("image_size", 30, "multiples of 4"),
    ("num_labels", 0, "at least 1"),
    ("widths", (), "at least two multiples of 16"),
    ("widths", (32,), "at least two multiples of 16"),
    ("widths", (32, 40), "at least two multiples of 16"),
    ("widths", (0, 32), "at least two multiples of 16"),
    ("widths", (-16, 32), "at least two multiples of 16"),
    ("blocks_per_resolution", 0, "at least 1"),
    ("middle_blocks", 0, "at least 1"),
    ("attention_head_width", 0, "at least 1"),
    ("attention_head_width", 48, "divisors of the last width, 128"),
    ("groups", 0, "at least 1"),
    ("groups", 7, "divisors of 32"),
    ("sinusoidal_width", 2, "even, at least 4"),
    ("sinusoidal_width", 65, "even, at least 4"),
    ("embedding_width", 0, "at least 1"),
    ("dropout", -0.1, "0 <= dropout < 1"),
    ("dropout", 1.0, "0 <= dropout < 1"),
    ("dropout", math.nan, "0 <= dropout < 1"),
]

TRAIN_OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("preset", "huge", "tiny, small, base"),
    ("dataset", "cifar", "mnist, fashion_mnist"),
    ("epochs", 0.0, "above 0, finite"),
    ("epochs", math.inf, "above 0, finite"),
    ("epochs", math.nan, "above 0, finite"),
    ("batch_size", 0, "at least 1"),
    ("seed", -1, "0 .. 2**31-1"),
    ("seed", 2**31, "0 .. 2**31-1"),
    ("num_train_timesteps", 1, "2 .. 100000"),
    ("num_train_timesteps", 100_001, "2 .. 100000"),
    ("schedule", "sigmoid", "cosine, linear"),
    ("t_sampling", "sobol", "uniform, stratified"),
    ("loss_weighting", "p2", "eps, min_snr, soft_v, v"),
    ("label_dropout", -0.01, "0 .. 1"),
    ("label_dropout", 1.01, "0 .. 1"),
    ("learning_rate", 0.0, "above 0, finite"),
    ("learning_rate", math.inf, "above 0, finite"),
    ("optimizer", "sgd", "muon, adamw"),
    ("muon_learning_rate", 0.0, "above 0, finite"),
    ("warmup_fraction", -0.1, "0 <= warmup_fraction < 1"),
    ("warmup_fraction", 1.0, "0 <= warmup_fraction < 1"),
    ("adam_beta1", 1.0, "0 <= adam_beta1 < 1"),
    ("adam_beta2", -0.1, "0 <= adam_beta2 < 1"),
    ("weight_decay", -0.1, "at least 0, finite"),
    ("gradient_clip", 0.0, "above 0, finite"),
    ("ema_relative_width", 0.0, "0 < ema_relative_width < 0.28"),
    ("ema_relative_width", 0.28, "0 < ema_relative_width < 0.28"),
    ("device", "tpu", "auto, cpu, cuda"),
    ("precision", "fp16", "auto, fp32, bf16"),
    ("memory_format", "nhwc", "auto, contiguous, channels_last"),
    ("num_threads", -1, "at least 0"),
    ("gradient_accumulation", 0, "at least 1"),
    ("gradient_accumulation", 3, "divisors of batch_size, 64"),
    ("overfit_one_batch", -1, "0, or at least 2"),
    ("overfit_one_batch", 1, "0, or at least 2"),
    ("log_every", 0, "at least 1"),
    ("checkpoint_every", 0, "at least 1"),
    ("sample_every", -1, "at least 0"),
    ("sample_num_steps", 0, "1 .. num_train_timesteps, 1000"),
    ("sample_num_steps", 1001, "1 .. num_train_timesteps, 1000"),
    ("validate_every", -1, "at least 0"),
    ("validate_num_images", 9, "0, 10 .. 60000"),
    ("validate_num_images", 60_001, "0, 10 .. 60000"),
    ("select_by", "loss", "eps_mse, frechet"),
    ("stop_after", -1, "at least 0"),
]


@pytest.mark.parametrize(
    ("made", "name", "value", "legal"),
    [(ModelConfig, *case) for case in MODEL_OUT_OF_RANGE]
    + [(TrainConfig, *case) for case in TRAIN_OUT_OF_RANGE],
)
def test_a_field_out_of_range_is_refused_by_name_value_and_range(
    made: Any, name: str, value: object, legal: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name} is {value}; legal: {legal}')}$"):
        made(**{name: value})


@pytest.mark.parametrize("weighting", ["v", "soft_v"])
@pytest.mark.parametrize("prediction", ["eps", "residual_eps"])
def test_errors_on_v_need_a_network_that_gives_v(prediction: Any, weighting: Any) -> None:
    message = f"loss_weighting is {weighting}; legal: eps or min_snr, unless prediction is v"
    with pytest.raises(ValueError, match=f"^{message}$"):
        TrainConfig(model=ModelConfig(prediction=prediction), loss_weighting=weighting)


def test_a_run_from_before_there_were_choices_reads_as_what_it_was() -> None:
    plain = to_dict(TrainConfig())
    del plain["optimizer"], plain["loss_weighting"], plain["model"]["prediction"]
    config = from_dict(plain)
    assert (config.optimizer, config.loss_weighting) == ("adamw", "eps")
    assert config.model.prediction == "eps"


def test_what_is_not_measured_selects_nothing() -> None:
    message = "select_by is frechet; legal: eps_mse, when validate_num_images is 0"
    with pytest.raises(ValueError, match=f"^{message}$"):
        TrainConfig(select_by="frechet", validate_num_images=0)


def test_every_field_that_is_not_a_switch_or_a_path_is_tried_out_of_range() -> None:
    tried = {case[0] for case in MODEL_OUT_OF_RANGE + TRAIN_OUT_OF_RANGE}
    fields = dataclasses.fields(ModelConfig) + dataclasses.fields(TrainConfig)
    limited = {
        field.name for field in fields if field.type not in (bool, Path, Path | None, ModelConfig)
    }
    assert tried == limited


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_survives_json(preset: str) -> None:
    config = dataclasses.replace(PRESETS[preset], data_dir=Path("somewhere"), seed=7)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(json.loads(json.dumps(to_dict(PRESETS[preset])))) == PRESETS[preset]


def test_an_unknown_field_is_not_ignored() -> None:
    with pytest.raises(TypeError, match="colour"):
        from_dict(to_dict(TrainConfig()) | {"colour": "red"})


def test_a_value_out_of_range_is_refused_when_read_back() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        from_dict(to_dict(TrainConfig()) | {"batch_size": 0})


def test_presets_carry_their_own_names_and_base_is_the_default() -> None:
    assert {name: preset.preset for name, preset in PRESETS.items()} == {
        "tiny": "tiny",
        "small": "small",
        "base": "base",
    }
    assert PRESETS["base"] == TrainConfig()
    assert PRESETS["tiny"].model.widths == (16, 32, 64)


def test_presets_differ_in_the_network_and_in_how_long_it_is_trained_only() -> None:
    for preset in PRESETS.values():
        as_base = dataclasses.replace(preset, preset="base", epochs=30.0, model=ModelConfig())
        assert as_base == PRESETS["base"]


def test_what_is_free_on_resume_exists_and_nothing_of_the_network_is() -> None:
    assert {field.name for field in dataclasses.fields(TrainConfig)} >= FREE_ON_RESUME
    assert "model" not in FREE_ON_RESUME
