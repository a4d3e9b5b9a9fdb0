"""evaluation.store: what was measured is found again, and nothing else is."""

import logging
from pathlib import Path

import numpy as np
import pytest

from evaluation.rows import Spread
from evaluation.store import Arrays, Store, digest

KEY = {"weights": "abc", "seed": 3}
VALUE = Spread(mean=0.1 + 0.2, std=None)


def never() -> Spread:
    raise AssertionError("was stored")


def never_arrays() -> Arrays:
    raise AssertionError("was stored")


def test_a_result_is_computed_once_and_found_again_to_the_bit(tmp_path: Path) -> None:
    assert Store(tmp_path).result("rows", KEY, Spread, lambda: VALUE) == VALUE
    assert Store(tmp_path).result("rows", KEY, Spread, never) == VALUE
    reordered = dict(reversed(KEY.items()))
    assert Store(tmp_path).result("rows", reordered, Spread, never) == VALUE


def test_arrays_are_computed_once_and_found_again(tmp_path: Path) -> None:
    arrays = {"images": np.arange(6, dtype=np.uint8).reshape(2, 3), "seconds": np.array(1.5)}
    Store(tmp_path).arrays("images", KEY, lambda: arrays)
    found = Store(tmp_path).arrays("images", KEY, never_arrays)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    "other", [{"weights": "abd", "seed": 3}, {"weights": "abc", "seed": 4}, KEY | {"n": 1}]
)
def test_another_key_is_another_entry(tmp_path: Path, other: dict) -> None:
    store = Store(tmp_path)
    store.result("rows", KEY, Spread, lambda: VALUE)
    changed = Spread(mean=1.0, std=1.0)
    assert store.result("rows", other, Spread, lambda: changed) == changed
    assert store.result("rows", KEY, Spread, never) == VALUE


def test_an_entry_under_a_wrong_name_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.result("rows", KEY, Spread, lambda: VALUE)
    other = {"seed": 9}
    (tmp_path / "rows" / f"{digest(KEY)[:32]}.json").rename(
        tmp_path / "rows" / f"{digest(other)[:32]}.json"
    )
    changed = Spread(mean=1.0, std=1.0)
    with caplog.at_level(logging.WARNING):
        assert store.result("rows", other, Spread, lambda: changed) == changed
    assert "belongs to another measurement" in caplog.text


@pytest.mark.parametrize("kind", ["rows", "images"])
@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_damaged_file_is_measured_anew(
    tmp_path: Path, kind: str, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)

    def measure() -> object:
        if kind == "rows":
            return store.result(kind, KEY, Spread, lambda: VALUE)
        return store.arrays(kind, KEY, lambda: {"images": np.arange(3)})["images"].tolist()

    first = measure()
    [path] = (tmp_path / kind).iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    with caplog.at_level(logging.WARNING):
        assert measure() == first
    assert "measuring anew" in caplog.text
    caplog.clear()
    assert measure() == first
    assert not caplog.text


def test_what_is_interrupted_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path).result("rows", KEY, Spread, lambda: VALUE)
    assert not list((tmp_path / "rows").iterdir())


def test_what_fails_is_not_stored(tmp_path: Path) -> None:
    def fails() -> Spread:
        raise RuntimeError("the network failed")

    with pytest.raises(RuntimeError, match="the network failed"):
        Store(tmp_path).result("rows", KEY, Spread, fails)
    assert Store(tmp_path).result("rows", KEY, Spread, lambda: VALUE) == VALUE
