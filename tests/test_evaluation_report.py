"""evaluation.report and evaluation.page: the page, the JSON and the manifest say the same."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation.evaluate import evaluate, measure_settings
from evaluation.markdown import count, number, share
from evaluation.page import QUICK, quality_page, settings_page
from evaluation.pictures import Pictures
from evaluation.report import draw_pictures, to_json, update_manifest, write_report
from evaluation.results import Classification, Quality
from evaluation.setting import Setting
from serving.bundle import BundleError, load_bundle
from tests.tiny_evaluation import tiny_evaluator, tiny_protocol, write_bundle


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def quality(place: Path) -> Quality:
    evaluator = tiny_evaluator(place)
    score = Classification(
        generated=0.8765, real=0.9876, num_images=60_000, num_test_images=10_000, epochs=10,
        seed=3, image_seed=1007,
    )  # fmt: skip
    measured = evaluate(evaluator, tiny_protocol(evaluator), lambda _: None)
    return measured.model_copy(update={"classification": score})


@pytest.fixture(scope="module")
def pictures(place: Path, quality: Quality) -> Pictures:
    return draw_pictures(tiny_evaluator(place), quality)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(where, what) of all that a JSON value holds."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{path}.{name}")
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, path)
    else:
        yield path, value


def test_the_page_holds_every_number_of_the_json(quality: Quality) -> None:
    page = quality_page(quality, "tiny")
    words = set(re.findall(r"[^\s|`*():;=]+", page))
    words |= {word.rstrip(".,") for word in words}
    checked = 0
    for where, value in leaves(json.loads(to_json(quality))):
        if value is None or isinstance(value, bool):
            continue
        if isinstance(value, str):
            shown = value[:12] if ".judges" in where and "sha256" in where else value
            assert shown in page, where
        else:
            forms = {share(value), number(value), f"{value:g}"}
            forms |= {str(value), count(value)} if isinstance(value, int) else set()
            assert forms & words, (where, value)
            checked += 1
    assert checked > 300


def test_a_page_of_other_numbers_is_another_page(quality: Quality) -> None:
    page = quality_page(quality, "tiny")
    memorisation = quality.memorisation.model_copy(update={"median_ratio": 0.12345})
    assert "0.1235" not in page
    changed = quality.model_copy(update={"memorisation": memorisation})
    assert "0.1235" in quality_page(changed, "tiny")


def test_a_quick_look_is_marked_in_page_and_json(quality: Quality) -> None:
    quick = quality.model_copy(update={"quick": True})
    assert QUICK in quality_page(quick, "tiny")
    assert QUICK not in quality_page(quality, "tiny")
    assert json.loads(to_json(quick))["quick"] is True
    assert quick.for_manifest()["quick"] is True
    assert quality.for_manifest()["quick"] is False


def test_what_was_not_measured_has_no_section(quality: Quality) -> None:
    without = quality.model_copy(update={"curve": None, "classification": None})
    page = quality_page(without, "tiny")
    assert "num_steps\n" not in page
    assert "Classification" not in page
    assert "None" not in page
    assert "None" not in quality_page(quality, "tiny")


def test_tables_are_whole(quality: Quality) -> None:
    for block in quality_page(quality, "tiny").split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_a_report_is_a_page_its_pictures_and_a_json(
    tmp_path: Path, quality: Quality, pictures: Pictures
) -> None:
    page = write_report(quality, pictures, tmp_path / "report")
    assert page == tmp_path / "report" / "tiny.md"
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert len(links) == 4
    for link in links:
        assert (page.parent / link).read_bytes().startswith(b"\x89PNG")
    stored = json.loads((tmp_path / "report" / "tiny.json").read_text())
    assert Quality.model_validate(stored) == quality
    assert len(stored["judges"]["labels-2"]["sha256"]) == 64


def test_pictures_are_small(pictures: Pictures) -> None:
    assert len(pictures) == 4
    for name, content in pictures.items():
        assert len(content) < 200_000, name


def test_the_json_goes_into_the_manifest_without_what_the_clock_says(
    tmp_path: Path, quality: Quality
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    before = load_bundle(bundle).manifest
    assert update_manifest(quality, bundle) == bundle / "manifest.json"
    after = load_bundle(bundle).manifest
    assert after.model_copy(update={"quality": {}}) == before
    expected = json.loads(to_json(quality))
    assert after.quality["generated"][0]["frechet"] == expected["generated"][0]["frechet"]
    assert after.quality["curve"]["floors"] == [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in expected["curve"]["floors"]
    ]
    names = {where.rpartition(".")[2] for where, _ in leaves(after.quality)}
    assert not names & {"images_per_second", "drawn_on"}
    assert names >= {"sha256", "seeds", "frechet_ratio", "num_steps", "guidance_scale"}


def test_the_manifest_of_another_bundle_stays_as_it_is(tmp_path: Path, quality: Quality) -> None:
    other = write_bundle(tmp_path / "other", gain=2.0)
    before = (other / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="changed while it was measured"):
        update_manifest(quality, other)
    assert (other / "manifest.json").read_bytes() == before
    with pytest.raises(BundleError, match="no such directory"):
        update_manifest(quality, tmp_path / "none")


def test_a_table_of_settings_has_the_floor_and_every_setting(place: Path) -> None:
    settings = [Setting("ddpm", 2), Setting("ddim", 3, 1.5)]
    result = measure_settings(tiny_evaluator(place), settings, 7, 100, lambda _: None)
    lines = settings_page(result).splitlines()
    assert lines[2].startswith("| test images |  |  |  |  | 100 | 0 |")
    assert lines[3].startswith("| generated | ddpm | 2 | 1 | 2 | 100 | 7 |")
    assert lines[4].startswith("| generated | ddim | 3 | 1.5 | 6 | 100 | 7 |")
