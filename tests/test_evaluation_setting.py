"""evaluation.setting: settings are read or refused."""

import pytest

from evaluation.setting import Setting, parse_setting


def test_a_setting_is_read_as_it_is_written() -> None:
    assert parse_setting("ddpm:10") == Setting("ddpm", 10, 1.0)
    assert parse_setting("ddim:20:1.5") == Setting("ddim", 20, 1.5)
    assert parse_setting("dpmpp_2m:5:0") == Setting("dpmpp_2m", 5, 0.0)
    for setting in (Setting("ddpm", 10), Setting("ddim", 3, 1.25)):
        assert parse_setting(str(setting)) == setting


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddpm", "setting is 'ddpm'; legal: SAMPLER:NUM_STEPS"),
        ("ddpm:ten", "setting is 'ddpm:ten'; legal: SAMPLER:NUM_STEPS"),
        ("ddpm:10:1:2", "setting is 'ddpm:10:1:2'; legal: SAMPLER:NUM_STEPS"),
        ("ddpm:10:nan", "setting is 'ddpm:10:nan'; legal: SAMPLER:NUM_STEPS"),
        ("euler:10", "sampler is 'euler'; legal: ddpm, ddim, dpmpp_2m, ddim_stochastic"),
        ("ddpm:0", "num_steps is 0; legal: at least 1"),
        ("ddpm:10:20.5", r"guidance_scale is 20.5; legal: 0 \.\. 20"),
    ],
)
def test_a_bad_setting_is_refused_with_field_value_and_range(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_setting(text)


def test_guided_steps_cost_two_rows() -> None:
    assert Setting("ddpm", 10, 1.0).rows_per_image == 10
    assert Setting("ddpm", 10, 1.5).rows_per_image == 20
    assert Setting("ddim_stochastic", 9, 4.0).rows_per_image == 10
