"""docs/how-it-works.md: its code is the code, and its pictures are what the model draws today."""

import re
import textwrap
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.docs_pictures.gallery import PICTURES
from tools.docs_pictures.model import Model
from tools.docs_pictures.picture import FOLDER, Data, Picture, load

PAGE = Path("docs", "how-it-works.md")
MAX_BYTES = 150_000
BRIGHTNESS_TOLERANCE = 1.0
"""Mean difference between pixels of one model on two kinds of CPU."""
NAMES = [picture.name for picture in PICTURES]


@pytest.fixture(scope="module")
def model(repository: Path) -> Model:
    return Model(repository / "models" / "mnist")


def text(repository: Path) -> str:
    return (repository / PAGE).read_text()


def test_every_piece_of_code_is_quoted_from_its_file(repository: Path) -> None:
    quotes = re.findall(r"<!-- (\S+) -->\n```python\n(.*?)```", text(repository), re.DOTALL)
    assert len(quotes) == text(repository).count("```python"), "each piece names its file"
    assert len(quotes) > 8
    for path, quote in quotes:
        lines = (repository / path).read_text().splitlines()
        wanted = quote.splitlines()
        there = (
            textwrap.dedent("\n".join(lines[i : i + len(wanted)])).splitlines()
            for i in range(len(lines))
        )
        assert wanted in there, f"{path} has no longer:\n{quote}"


def test_training_is_told_in_six_steps(repository: Path) -> None:
    section = text(repository).split("## Training in six steps")[1].split("\n## ", maxsplit=1)[0]
    assert re.findall(r"^\*\*(\d)\.\*\*", section, re.MULTILINE) == list("123456")


def test_the_page_shows_every_picture_with_words_for_those_who_do_not_see_it(
    repository: Path,
) -> None:
    shown = re.findall(r"!\[(.*?)\]\(images/how-it-works/(.*?)\.png\)", text(repository))
    assert sorted(name for _, name in shown) == sorted(NAMES)
    assert all(len(words.split()) >= 8 for words, _ in shown)
    files = {path.name for path in (repository / FOLDER).iterdir()}
    assert files == {f"{name}.{kind}" for name in NAMES for kind in ("png", "npz")}


@pytest.mark.parametrize("picture", PICTURES, ids=NAMES)
def test_a_picture_is_small_solid_and_drawn_from_its_numbers_by_this_code(
    repository: Path, picture: Picture
) -> None:
    content = (repository / FOLDER / f"{picture.name}.png").read_bytes()
    assert len(content) <= MAX_BYTES
    numbers = load(picture, repository / FOLDER)
    with (
        Image.open(BytesIO(content)) as committed,
        Image.open(BytesIO(picture.png(numbers))) as drawn,
    ):
        notes = {key: committed.info.get(key) for key in ("Numbers", "Code")}
        assert notes == picture.made_from(numbers), "make docs-pictures"
        assert "transparency" not in committed.info, "readable on a dark page"
        assert committed.size == drawn.size
        both = (np.asarray(each.convert("L"), np.int16) for each in (committed, drawn))
        difference = np.abs(np.subtract(*both))
        assert difference.mean() < BRIGHTNESS_TOLERANCE, "other fonts move a few pixels only"


@pytest.mark.parametrize("picture", PICTURES, ids=NAMES)
def test_a_picture_shows_what_the_model_does_today(
    repository: Path, model: Model, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    assert_alike(picture.measure(model), load(picture, repository / FOLDER))


def assert_alike(measured: Data, committed: Data) -> None:
    """Equal, but for what rounding on another kind of CPU does to pixels."""
    assert measured.keys() == committed.keys()
    for name, array in measured.items():
        stored = committed[name]
        assert (array.dtype, array.shape) == (stored.dtype, stored.shape), name
        if array.dtype == np.uint8:
            difference = np.abs(array.astype(np.int16) - stored)
            assert difference.mean() < BRIGHTNESS_TOLERANCE, f"{name}: make docs-pictures"
        else:
            hint = f"{name}: make docs-pictures"
            np.testing.assert_allclose(array, stored, rtol=1e-3, atol=1e-3, err_msg=hint)


def test_other_numbers_and_other_pixels_are_found() -> None:
    pixels = np.zeros((2, 4, 4), np.uint8)
    numbers = np.arange(3.0)
    assert_alike({"a": pixels, "b": numbers}, {"a": pixels, "b": numbers + 1e-4})
    for changed in (
        {"a": pixels + 9, "b": numbers},
        {"a": pixels, "b": numbers + 1},
        {"a": pixels},
    ):
        with pytest.raises(AssertionError):
            assert_alike({"a": pixels, "b": numbers}, changed)
