"""Hot reload: what is good takes the old one's place, what is not leaves it serving."""

import asyncio
import logging
import os
from pathlib import Path

import pytest

from serving.bundle import BundleError
from serving.loading import EngineSettings, LoadedModel, load_model
from serving.metrics import Metrics
from serving.reloading import Reloader, watch_bundles
from tests.fakes import write_tiny_bundle

SETTINGS = EngineSettings(max_lanes=2)


class Reload:
    """A reloader around one bundle, without a server."""

    def __init__(self, path: Path) -> None:
        self.path, self.metrics = path, Metrics()
        self.installed: list[LoadedModel] = []
        self.loads = 0
        first = load_model(path, "cpu", 1, SETTINGS)
        files = watch_bundles([path])
        self.reloader = Reloader(
            {path: first}, files, self.load, self.installed.append, self.metrics
        )

    async def load(self, path: Path, before: LoadedModel) -> LoadedModel:
        assert path == self.path
        self.loads += 1
        return load_model(path, "cpu", 1, SETTINGS)

    def counted(self, outcome: str) -> float:
        return self.metrics.value("diffusion_model_reloads_total", model="tiny", outcome=outcome)

    async def run_until(self, outcome: str, count: int) -> None:
        task = asyncio.create_task(self.reloader.run(watch=False))
        async with asyncio.timeout(20):
            while self.counted(outcome) < count:
                await asyncio.sleep(0.01)
        task.cancel()


@pytest.fixture
def reload(tmp_path: Path) -> Reload:
    return Reload(write_tiny_bundle(tmp_path / "tiny"))


async def test_a_good_bundle_takes_the_place_of_the_old_one(reload: Reload) -> None:
    write_tiny_bundle(reload.path, version="2.0.0")
    reload.reloader.reload_all()
    await reload.run_until("ok", 1)
    assert [model.served.version for model in reload.installed] == ["2.0.0"]
    assert reload.installed[0].report.bit_equal


@pytest.mark.parametrize("damage", ["truncated", "renamed", "gone"])
async def test_a_bad_bundle_leaves_the_old_one_with_one_line_and_a_count(
    reload: Reload, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    if damage == "truncated":
        os.truncate(reload.path / "unet.onnx", 100)
    elif damage == "renamed":
        write_tiny_bundle(reload.path, name="other")
    else:
        (reload.path / "manifest.json").unlink()
    with caplog.at_level(logging.ERROR):
        reload.reloader.reload_all()
        await reload.run_until("failed", 1)
    [record] = [each for each in caplog.records if each.name == "serving.reloading"]
    assert record.getMessage().startswith("not reloaded, tiny 1.0.0 goes on: ")
    assert record.exc_info is None
    assert not reload.installed
    write_tiny_bundle(reload.path, version="3.0.0")
    reload.reloader.reload_all()
    await reload.run_until("ok", 1)
    assert [model.served.version for model in reload.installed] == ["3.0.0"]


async def test_what_nobody_foresaw_leaves_the_old_one_too(
    reload: Reload, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> LoadedModel:
        raise MemoryError

    monkeypatch.setattr(reload.reloader, "_load", fail)
    reload.reloader.reload_all()
    await reload.run_until("failed", 1)
    assert not reload.installed


async def test_only_a_bundle_whose_files_have_changed_is_loaded_again(
    reload: Reload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.watched_files._LOOK_EVERY_SECONDS", 0.0)
    reload.reloader.look()
    assert not reload.reloader._wanted
    write_tiny_bundle(reload.path, version="2.0.0")
    reload.reloader.look()
    await reload.run_until("ok", 1)
    reload.reloader.look()
    assert not reload.reloader._wanted
    assert reload.loads == 1


def test_a_bundle_error_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        load_model(tmp_path, "cpu", 1, SETTINGS)
