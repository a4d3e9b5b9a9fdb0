"""Hot reload: a changed bundle is loaded beside the old one and takes its place if it is good."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from serving.bundle import EMBEDDING_NAME, MANIFEST_NAME, UNET_NAME, BundleError
from serving.loading import LoadedModel
from serving.metrics import Metrics
from serving.network import ProviderError
from serving.watched_files import WatchedFiles

_LOOK_SECONDS = 1.0

_log = logging.getLogger(__name__)

Load = Callable[[Path, LoadedModel], Awaitable[LoadedModel]]
"""Loads, warms and tests a bundle off the event loop; the model is the one it would replace."""


def watch_bundles(paths: Iterable[Path]) -> dict[Path, WatchedFiles]:
    """Returns the files of each bundle as they are now: to be called before anybody reads them."""
    return {path: WatchedFiles(*_files(path)) for path in paths}


class Reloader:
    """Reloads bundles when it is told to. Belongs to the event loop.

    Whatever is wrong with a new bundle, the old one goes on serving.

    Args:
        models: the models that are served, by the directories of their bundles.
        files: of the same bundles, from watch_bundles.
        load: see Load.
        install: puts a loaded model in the place of the one with its name.
        metrics: where reloads are counted.
    """

    def __init__(
        self,
        models: dict[Path, LoadedModel],
        files: dict[Path, WatchedFiles],
        load: Load,
        install: Callable[[LoadedModel], None],
        metrics: Metrics,
    ) -> None:
        self._models = models
        self._files = files
        self._load = load
        self._install = install
        self._metrics = metrics
        self._wanted: set[Path] = set()
        self._told = asyncio.Event()

    def reload_all(self) -> None:
        """Has every bundle loaded again, soon."""
        self._wanted |= self._models.keys()
        self._told.set()

    def look(self) -> None:
        """Has those bundles loaded again, soon, whose files have changed."""
        changed = {path for path, files in self._files.items() if files.changed()}
        if changed:
            self._wanted |= changed
            self._told.set()

    async def run(self, *, watch: bool) -> None:
        """Reloads what is wanted, one bundle after another, until it is cancelled.

        Args:
            watch: whether it looks for changes by itself, every second.
        """
        watcher = asyncio.create_task(self._watch()) if watch else None
        try:
            while True:
                await self._told.wait()
                self._told.clear()
                while self._wanted:
                    await self._reload(self._wanted.pop())
        finally:
            if watcher is not None:
                watcher.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look()

    async def _reload(self, path: Path) -> None:
        before = self._models[path]
        name = before.served.name
        try:
            loaded = _same_name(await self._load(path, before), name)
        except Exception as error:  # noqa: BLE001  (nothing about a new bundle may end the server)
            self._metrics.model_reloaded(name, "failed")
            # What a bundle can be expected to do wrong is one line.
            foreseen = isinstance(error, BundleError | ProviderError)
            _log.error(
                "not reloaded, %s %s goes on: %s",
                name,
                before.served.version,
                error,
                exc_info=None if foreseen else error,
            )
            return
        self._models[path] = loaded
        self._install(loaded)
        self._metrics.model_reloaded(name, "ok")
        _log.info(
            "reloaded: %s %s in place of %s", name, loaded.served.version, before.served.version
        )


def _same_name(loaded: LoadedModel, name: str) -> LoadedModel:
    if loaded.served.name != name:
        raise BundleError(f"the new bundle's model is called {loaded.served.name!r}")
    return loaded


def _files(path: Path) -> list[Path]:
    return [path / name for name in (MANIFEST_NAME, EMBEDDING_NAME, UNET_NAME)]
