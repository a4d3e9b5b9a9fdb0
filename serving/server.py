"""The life of a server process: open ports, load, prove, serve, drain, exit."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from serving import listening, tracing
from serving.background import first, on_daemon_thread, unless
from serving.configuration import ServerConfig
from serving.engine_threads import EngineThreads
from serving.grpc_methods import SERVICE_NAME
from serving.health import Phase, Readiness
from serving.loading import EngineSettings, LoadedModel, load_model, load_models
from serving.metrics import Metrics
from serving.onnx_session import RUNTIME_VERSION
from serving.ports import Ports
from serving.reloading import Reloader, watch_bundles
from serving.service import DiffusionService
from serving.tokens import Tokens
from serving.tracing import Tracing
from serving.watchdog import Watchdog

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ENGINE_STOP_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Server:
    """One server process. Make it inside an event loop, and `run` it once.

    Raises:
        TokensError, TracingError: one line; the server cannot start.

    Attributes:
        ports: where it is reached.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._readiness = Readiness()
        self._metrics = Metrics()
        self._tokens = _tokens(config)
        self._tracing = _tracing(config)
        self._service = DiffusionService(
            self._readiness,
            self._metrics,
            max_images_per_request=config.max_images_per_request,
            request_timeout_seconds=config.request_timeout_seconds,
            tokens=self._tokens,
            on_finished=None if self._tracing is None else self._tracing.record,
        )
        self._stop = asyncio.Event()
        self._stop_signal: signal.Signals | None = None
        self._reloader: Reloader | None = None
        self._reload_at_once = False
        self._bundle_files = watch_bundles(config.models)
        self._failed = asyncio.Event()
        self._unfinished = False
        self.ports = Ports(config)

    async def run(self) -> int:
        """Serves until a signal comes or the engine dies; returns the exit code.

        Raises:
            PortError, TlsError, ReadyFileError, BundleError, ProviderError: one line; the server
                cannot start.
        """
        self._metrics.watch_readiness(
            lambda: self._readiness.ready,
            lambda: self._readiness.phase in (Phase.LAME_DUCK, Phase.DRAINING),
        )
        with _signals(self._on_signal):
            async with self._open():
                loaded = await unless(self._stop, self._load)
                if loaded is None:
                    _log.info("stopped while loading")
                    return 0
                engine_threads = self._start_engines(loaded)
                watcher = asyncio.create_task(self._watch(engine_threads))
                reloading = self._start_reloading(loaded, engine_threads)
                # What is here stays. To look through all of it for garbage, again and again, would
                # hold up everybody for as long as an engine step or two takes.
                gc.freeze()
                try:
                    await self._serve()
                    if not engine_threads.alive:  # it may have died while draining
                        self._failed.set()
                finally:
                    watcher.cancel()
                    reloading.cancel()
                    await asyncio.to_thread(engine_threads.stop, _ENGINE_STOP_SECONDS)
        return 1 if self._failed.is_set() or self._unfinished else 0

    def _on_signal(self, received: signal.Signals) -> None:
        if received is signal.SIGHUP:
            if self._reloader is None:  # they are being loaded, perhaps as they were before
                self._reload_at_once = True
            else:
                self._reloader.reload_all()
            return
        if self._stop.is_set():
            # The person or supervisor means it: nothing is flushed, nothing is waited for.
            os._exit(128 + received)
        self._stop_signal = received
        self._stop.set()

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        try:
            async with self.ports.open(self._service, self._readiness, self._metrics, self._tokens):
                yield
        finally:
            self._service.close()
            if self._tracing is not None:
                await asyncio.to_thread(self._tracing.close)

    def _load(self) -> list[LoadedModel]:
        config = self._config
        return load_models(
            config.models,
            provider=config.provider,
            num_threads=config.num_threads,
            spin=config.spin,
            settings=_engine_settings(config),
        )

    def _start_engines(self, loaded: list[LoadedModel]) -> EngineThreads:
        for model in loaded:
            self._publish(model)
        engine_threads = EngineThreads(
            {model.served.name: model.engine for model in loaded},
            on_step=self._metrics.engine_stepped,
            on_restart=self._metrics.engine_restarted,
        )
        self._metrics.watch_engine_threads(engine_threads.last_step_age_seconds)
        engine_threads.start()
        self._service.attach([model.served for model in loaded], engine_threads)
        return engine_threads

    def _publish(self, model: LoadedModel) -> None:
        served = model.served
        self._metrics.model_loaded(
            served.name,
            version=served.version,
            provider=model.provider,
            runtime_version=RUNTIME_VERSION,
            label_names=served.label_names,
            bit_equal=model.report.bit_equal,
        )
        self._metrics.watch_engine(served.name, model.engine.statistics)

    def _start_reloading(
        self, loaded: list[LoadedModel], engine_threads: EngineThreads
    ) -> "asyncio.Task[None]":
        config = self._config

        async def load(path: Path, before: LoadedModel) -> LoadedModel:
            # What the engine before has measured is worth more than a measurement beside it.
            settings = dataclasses.replace(
                _engine_settings(config),
                max_lanes=before.engine.max_lanes,
                usual_lanes=before.engine.usual_lanes,
            )
            return await on_daemon_thread(
                lambda: load_model(
                    path, before.provider, config.num_threads, settings, spin=config.spin
                )
            )

        def install(model: LoadedModel) -> None:
            # In one go on the event loop: no request sees the one without the other.
            engine_threads.replace(model.served.name, model.engine)
            self._service.replace(model.served)
            self._publish(model)

        models = dict(zip(config.models, loaded, strict=True))
        self._reloader = Reloader(models, self._bundle_files, load, install, self._metrics)
        if self._reload_at_once:
            self._reloader.reload_all()
        return asyncio.create_task(self._reloader.run(watch=config.watch_models))

    async def _watch(self, engine_threads: EngineThreads) -> None:
        reason = await Watchdog(engine_threads, self._readiness).watch()
        _log.critical("%s; this process exits", reason)
        if engine_threads.alive:  # it hangs: nobody else will end its requests
            self._service.exchanges.abandon()
        self._failed.set()

    async def _serve(self) -> None:
        self._readiness.set(Phase.SERVING)
        with self.ports.announced():
            await first(self._stop, self._failed)
            if not self._failed.is_set():
                await self._drain()

    async def _drain(self) -> None:
        assert self._stop_signal is not None
        config = self._config
        # Nobody who presses Ctrl-C waits for load balancers to notice.
        grace_seconds = config.drain_grace_seconds
        if self._stop_signal is signal.SIGINT:
            grace_seconds = 0.0
        _log.info(
            "%s: not ready any more; %d requests active, grace %g s, up to %g s to finish",
            self._stop_signal.name,
            self._service.exchanges.active,
            grace_seconds,
            config.drain_timeout_seconds,
        )
        if grace_seconds:
            self._readiness.set(Phase.LAME_DUCK)
            await asyncio.sleep(grace_seconds)
        self._readiness.set(Phase.DRAINING)
        try:
            await asyncio.wait_for(
                self._service.exchanges.wait_idle(), config.drain_timeout_seconds
            )
        except TimeoutError:
            _log.warning("%d requests are not finished in time", self._service.exchanges.active)
            self._unfinished = True
            self.ports.hurry()
        self._service.exchanges.abandon()


def _tracing(config: ServerConfig) -> Tracing | None:
    if config.tracing_endpoint is None:
        return None
    return tracing.start(config.tracing_endpoint, config.tracing_sample_ratio, SERVICE_NAME)


def _engine_settings(config: ServerConfig) -> EngineSettings:
    return EngineSettings(
        max_lanes=config.max_lanes,
        max_queued_images=config.max_queued_images,
        max_queued_requests=config.max_queued_requests,
        policy=config.scheduling_policy,
        cache_bytes=config.cache_bytes,
    )


def _tokens(config: ServerConfig) -> Tokens | None:
    if config.auth_tokens_file is None:
        return None
    ports = {"gRPC": config.tls_files is None, "HTTP": config.has_http_api}
    in_clear = " and ".join(port for port, clear in ports.items() if clear)
    if in_clear and not listening.is_loopback(config.host):
        _log.warning(
            "tokens without TLS on %s over %s: whoever sees the traffic can use them;"
            " see --tls-cert and --http-api",
            config.host,
            in_clear,
        )
    return Tokens(config.auth_tokens_file)


@contextlib.contextmanager
def _signals(handle: Callable[[signal.Signals], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    before = {handled: signal.getsignal(handled) for handled in _SIGNALS}
    for handled in _SIGNALS:
        loop.add_signal_handler(handled, handle, handled)
    try:
        yield
    finally:
        for handled in _SIGNALS:
            loop.remove_signal_handler(handled)
            signal.signal(handled, before[handled])
