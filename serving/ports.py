"""The two ports of a server: gRPC with its services, and HTTP."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator

from serving import health, listening, reflection
from serving.call_metrics import counted
from serving.configuration import ServerConfig
from serving.grpc_methods import SERVICE_NAME, GrpcMethods
from serving.health import Health, Readiness
from serving.http.app import make_app
from serving.http.playground import ServerFacts
from serving.http.server import HttpServer
from serving.metrics import Metrics
from serving.ready_file import ReadyFile
from serving.reflection import Reflection
from serving.service import DiffusionService
from serving.tls import Certificates
from serving.tokens import Tokens

# How long answers that are on their way may take at the end. Those of requests that were given up
# get less: among them may be streams that nobody reads.
_FLUSH_SECONDS = 3.0
_HURRIED_FLUSH_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Ports:
    """Where clients, load balancers and supervisors reach this process.

    Attributes:
        grpc_port: the real port, once it is open.
        http_port: the real port, once it is open.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._flush_seconds = _FLUSH_SECONDS
        self._ready_file: ReadyFile | None = None
        self.grpc_port = config.port
        self.http_port = config.http_port

    @contextlib.asynccontextmanager
    async def open(
        self,
        service: DiffusionService,
        readiness: Readiness,
        metrics: Metrics,
        tokens: Tokens | None,
    ) -> AsyncIterator[None]:
        """Opens both ports, and closes them at the end when answers that are on their way are out.

        Args:
            service: what clients ask.
            readiness: for health checks, which are answered from now on.
            metrics: what /metrics says, and where every call is counted.
            tokens: whose tokens reflection asks for.

        Raises:
            PortError, TlsError, ReadyFileError: one line.
        """
        config = self._config
        files = config.tls_files
        credentials = None
        if files is not None:
            certificates = Certificates(files)
            credentials = certificates.credentials()
            metrics.watch_certificate(lambda: certificates.expiry_timestamp_seconds)
        server = listening.make_grpc_server(config.connection_limits)
        health_service = Health(readiness, [SERVICE_NAME])
        reflection_service = Reflection([SERVICE_NAME, health.SERVICE_NAME], tokens)
        server.add_generic_rpc_handlers(
            (
                counted(SERVICE_NAME, GrpcMethods(service).handler(), metrics),
                counted(health.SERVICE_NAME, health_service.handler(), metrics),
                counted(reflection.SERVICE_NAME, reflection_service.handler(), metrics),
            )
        )
        with contextlib.closing(
            listening.open_http_port(config.host, config.http_port)
        ) as listener:
            self.grpc_port = listening.open_grpc_port(server, config.host, config.port, credentials)
            self.http_port = int(listener.getsockname()[1])
            if config.ready_file is not None:
                self._ready_file = ReadyFile(config.ready_file)
            app = make_app(
                readiness,
                metrics.exposition,
                service if config.has_http_api else None,
                ServerFacts(self.grpc_port, files is not None, tokens is not None),
                hosts=config.http_hosts,
            )
            http = HttpServer(app, listener)
            await server.start()
            http_task = asyncio.create_task(http.run_until_stopped())
            tls = "" if credentials is None else " with TLS"
            _log.info("listening: gRPC%s %s, HTTP %s; loading", tls, *self._addresses())
            if not config.has_http_api:
                _log.info("no HTTP API: the HTTP port has /metrics, /livez and /readyz only")
            try:
                yield
            finally:
                readiness.close()
                await server.stop(self._flush_seconds)
                http.stop()
                await http_task

    def hurry(self) -> None:
        """Some requests were given up: their answers are not waited for as long as others."""
        self._flush_seconds = _HURRIED_FLUSH_SECONDS

    @contextlib.contextmanager
    def announced(self) -> Iterator[None]:
        """Says that the server is ready, in the log and in the ready file.

        Raises:
            ReadyFileError: one line.
        """
        _log.info("ready: gRPC %s, HTTP %s", *self._addresses())
        if self._ready_file is None:
            yield
            return
        content = {
            "host": self._config.host,
            "grpc_port": self.grpc_port,
            "http_port": self.http_port,
            "pid": os.getpid(),
        }
        with self._ready_file.written(content):
            yield

    def _addresses(self) -> tuple[str, str]:
        host = self._config.host
        return listening.address(host, self.grpc_port), listening.address(host, self.http_port)
