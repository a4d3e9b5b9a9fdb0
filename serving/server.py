"""The life of a server process: open ports, load, prove, serve, drain, exit."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

from serving import health, listening, tracing
from serving.configuration import ServerConfig
from serving.engine_thread import EngineThread
from serving.health import Health, Phase, Readiness
from serving.http import HttpServer, make_app
from serving.loading import EngineSettings, LoadedModel, load_model, load_models
from serving.metrics import Metrics
from serving.reflection import Reflection
from serving.reloading import Reloader
from serving.service import SERVICE_NAME, DiffusionService
from serving.tls import Certificates
from serving.tokens import Tokens
from serving.tracing import Tracing
from serving.watchdog import Watchdog

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# How long answers that are on their way may take at the end. Those of requests that were given up
# get less: among them may be streams that nobody reads.
_FLUSH_SECONDS = 3.0
_ABANDONED_FLUSH_SECONDS = 0.5
_ENGINE_STOP_SECONDS = 5.0

_log = logging.getLogger(__name__)

_ResultT = TypeVar("_ResultT")


class Server:
    """One server process. Make it inside an event loop, and `run` it once.

    Raises:
        TokensError, TracingError: one line; the server cannot start.

    Attributes:
        grpc_port: the real port, once it is open.
        http_port: the real port, once it is open.
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
        self._failed = asyncio.Event()
        self._unfinished = False
        self.grpc_port = config.port
        self.http_port = config.http_port

    async def run(self) -> int:
        """Serves until a signal comes or the engine dies; returns the exit code.

        Raises:
            PortError, TlsError, BundleError, ProviderError: one line; the server cannot start.
        """
        self._metrics.watch_readiness(
            lambda: self._readiness.ready,
            lambda: self._readiness.phase in (Phase.LAME_DUCK, Phase.DRAINING),
        )
        with _signals(self._on_signal):
            async with self._ports():
                loaded = await self._unless_stopped(self._load)
                if loaded is None:
                    _log.info("stopped while loading")
                    return 0
                engine_thread = self._start_engines(loaded)
                watcher = asyncio.create_task(self._watch(engine_thread))
                reloading = self._start_reloading(loaded, engine_thread)
                try:
                    await self._serve()
                    if not engine_thread.alive:  # it may have died while draining
                        self._failed.set()
                finally:
                    watcher.cancel()
                    reloading.cancel()
                    await asyncio.to_thread(engine_thread.stop, _ENGINE_STOP_SECONDS)
        return 1 if self._failed.is_set() or self._unfinished else 0

    def _on_signal(self, received: signal.Signals) -> None:
        if received is signal.SIGHUP:
            if self._reloader is not None:  # else they are being loaded
                self._reloader.reload_all()
            return
        if self._stop.is_set():
            # The person or supervisor means it: nothing is flushed, nothing is waited for.
            os._exit(128 + received)
        self._stop_signal = received
        self._stop.set()

    @contextlib.asynccontextmanager
    async def _ports(self) -> AsyncIterator[None]:
        """Opens both ports, answers health and metrics on them, and closes them at the end."""
        config = self._config
        files = config.tls_files
        credentials = None if files is None else Certificates(files).credentials()
        server = listening.make_grpc_server(config.connection_limits)
        names = [SERVICE_NAME, health.SERVICE_NAME]
        server.add_generic_rpc_handlers(
            (
                self._service.handler(),
                Health(self._readiness, [SERVICE_NAME]).handler(),
                Reflection(names, self._tokens).handler(),
            )
        )
        with contextlib.closing(
            listening.open_http_port(config.host, config.http_port)
        ) as listener:
            self.grpc_port = listening.open_grpc_port(server, config.host, config.port, credentials)
            self.http_port = int(listener.getsockname()[1])
            http = HttpServer(make_app(self._readiness, self._metrics.exposition), listener)
            await server.start()
            http_task = asyncio.create_task(http.run_until_stopped())
            _log.info(
                "listening: gRPC%s %s, HTTP %s; loading",
                "" if credentials is None else " with TLS",
                listening.address(config.host, self.grpc_port),
                listening.address(config.host, self.http_port),
            )
            try:
                yield
            finally:
                self._readiness.close()
                await server.stop(_ABANDONED_FLUSH_SECONDS if self._unfinished else _FLUSH_SECONDS)
                http.stop()
                await http_task
                self._service.close()
                if self._tracing is not None:
                    await asyncio.to_thread(self._tracing.close)

    def _load(self) -> list[LoadedModel]:
        config = self._config
        return load_models(
            config.models,
            provider=config.provider,
            num_threads=config.num_threads,
            settings=_engine_settings(config),
        )

    async def _unless_stopped(self, work: Callable[[], _ResultT]) -> _ResultT | None:
        """Runs `work` on a thread of its own; None if a signal comes first."""
        result = _on_daemon_thread(work)
        finished = asyncio.Event()
        result.add_done_callback(lambda _: finished.set())
        await _first(finished, self._stop)
        if result.done():
            return result.result()
        result.cancel()
        return None

    def _start_engines(self, loaded: list[LoadedModel]) -> EngineThread:
        for model in loaded:
            self._publish(model)
        engine_thread = EngineThread(
            {model.served.name: model.engine for model in loaded},
            on_step=self._metrics.engine_stepped,
            on_restart=self._metrics.engine_restarted,
        )
        self._metrics.watch_engine_thread(engine_thread.last_step_age_seconds)
        engine_thread.start()
        self._service.attach([model.served for model in loaded], engine_thread)
        return engine_thread

    def _publish(self, model: LoadedModel) -> None:
        name, bit_equal = model.served.name, model.report.bit_equal
        self._metrics.model_loaded(name, model.served.version, model.provider, bit_equal)
        self._metrics.watch_engine(name, model.engine.statistics)

    def _start_reloading(
        self, loaded: list[LoadedModel], engine_thread: EngineThread
    ) -> "asyncio.Task[None]":
        config = self._config

        async def load(path: Path, before: LoadedModel) -> LoadedModel:
            # What the engine before has measured is worth more than a measurement beside it.
            lanes = before.engine.statistics().lanes_capacity
            settings = dataclasses.replace(_engine_settings(config), max_lanes=lanes)
            return await _on_daemon_thread(
                lambda: load_model(path, before.provider, config.num_threads, settings)
            )

        def install(model: LoadedModel) -> None:
            # In one go on the event loop: no request sees the one without the other.
            engine_thread.replace(model.served.name, model.engine)
            self._service.replace(model.served)
            self._publish(model)

        models = dict(zip(config.models, loaded, strict=True))
        self._reloader = Reloader(models, load, install, self._metrics)
        return asyncio.create_task(self._reloader.run(watch=config.watch_models))

    async def _watch(self, engine_thread: EngineThread) -> None:
        reason = await Watchdog(engine_thread, self._readiness).watch()
        _log.critical("%s; this process exits", reason)
        if engine_thread.alive:  # it hangs: nobody else will end its requests
            self._service.abandon()
        self._failed.set()

    async def _serve(self) -> None:
        self._readiness.set(Phase.SERVING)
        self._announce()
        try:
            await _first(self._stop, self._failed)
            if not self._failed.is_set():
                await self._drain()
        finally:
            self._withdraw()

    def _announce(self) -> None:
        host = self._config.host
        _log.info(
            "ready: gRPC %s, HTTP %s",
            listening.address(host, self.grpc_port),
            listening.address(host, self.http_port),
        )
        if self._config.ready_file is not None:
            content = {
                "host": host,
                "grpc_port": self.grpc_port,
                "http_port": self.http_port,
                "pid": os.getpid(),
            }
            _write_atomically(self._config.ready_file, json.dumps(content) + "\n")

    def _withdraw(self) -> None:
        if self._config.ready_file is not None:
            self._config.ready_file.unlink(missing_ok=True)

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
            self._service.active,
            grace_seconds,
            config.drain_timeout_seconds,
        )
        if grace_seconds:
            self._readiness.set(Phase.LAME_DUCK)
            await asyncio.sleep(grace_seconds)
        self._readiness.set(Phase.DRAINING)
        try:
            await asyncio.wait_for(self._service.wait_idle(), config.drain_timeout_seconds)
        except TimeoutError:
            _log.warning("%d requests are not finished in time", self._service.active)
            self._unfinished = True
        self._service.abandon()


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
    )


def _tokens(config: ServerConfig) -> Tokens | None:
    if config.auth_tokens_file is None:
        return None
    if config.tls_files is None and not listening.is_loopback(config.host):
        _log.warning(
            "tokens without TLS on %s: whoever sees the traffic can use them; see --tls-cert",
            config.host,
        )
    return Tokens(config.auth_tokens_file)


async def _first(*events: asyncio.Event) -> None:
    """Waits until one of the events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


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


def _on_daemon_thread(work: Callable[[], _ResultT]) -> "asyncio.Future[_ResultT]":
    """Runs `work` on a thread that does not keep the process from exiting."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_ResultT] = loop.create_future()

    def settle(result: _ResultT | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("_ResultT", result))

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  (raised again where the future is awaited)
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="loader", daemon=True).start()
    return future


def _write_atomically(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
