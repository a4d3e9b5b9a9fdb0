"""Every setting of the server, declared once: here."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import click

from serving import logs
from serving.device import PROVIDER_CHOICES
from serving.flags import AutoOrInteger, Choice, ConfigurationError, Numbers, flag
from serving.listening import LOOPBACK_NAMES, ConnectionLimits, is_loopback
from serving.scheduling import SchedulingPolicy
from serving.tls import TlsFiles

_ENDPOINT = re.compile(r"https?://[\w.:\[\]-]+/?", re.ASCII)
_PORT = click.IntRange(0, 65535)
_FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How a server is run. Each field is a flag and an environment variable.

    Raises:
        ConfigurationError: if two settings contradict each other.
    """

    models: tuple[Path, ...] = flag(
        (Path("models/mnist"),),
        "Directory of a model bundle. Several times for several models (in the environment:"
        " separated by colons); the first is the default one.",
        kind=click.Path(path_type=Path),
        name="model",
        multiple=True,
    )
    watch_models: bool = flag(
        False,
        "Load a bundle again when its files change, as SIGHUP does for all of them. Requests in"
        " flight finish on the old one; a bad bundle leaves it serving.",
    )
    host: str = flag(
        "127.0.0.1",
        "Address to listen on; 0.0.0.0 for every interface. Without --auth-tokens-file or"
        " --tls-client-ca, whoever reaches it can use it.",
    )
    port: int = flag(50051, "gRPC port; 0 takes a free one.", kind=_PORT)
    http_port: int = flag(
        8080,
        "Port of the playground, the JSON API, /metrics, /livez and /readyz; 0 takes a free one.",
        kind=_PORT,
    )
    http_api: str = flag(
        "auto",
        "Whether the HTTP port has the JSON API and the playground. auto: yes, unless"
        " --tls-client-ca says who may ask and there are no tokens, since that port asks for no"
        " certificates.",
        kind=Choice(["auto", "on", "off"]),
    )
    http_host_names: tuple[str, ...] = flag(
        (),
        "A host name under which browsers may ask the HTTP port, beside those of this machine."
        " Several times for several. By default any name may, unless --host is this machine only.",
        name="http-host-name",
        multiple=True,
    )
    tls_cert: Path | None = flag(
        None,
        "PEM file with the certificate of the gRPC port and those that lead to its root. Read again"
        " when it changes. Without it there is no TLS.",
        kind=_FILE,
    )
    tls_key: Path | None = flag(
        None, "PEM file with the private key of --tls-cert, not encrypted.", kind=_FILE
    )
    tls_client_ca: Path | None = flag(
        None,
        "PEM file with root certificates; clients must then show a certificate that leads to one.",
        kind=_FILE,
    )
    auth_tokens_file: Path | None = flag(
        None,
        "File with bearer tokens, one a line: requests need one of them, in the metadata"
        " `authorization: Bearer TOKEN`. Read again when it changes. Without it there are none.",
        kind=_FILE,
    )
    provider: str = flag(
        "auto",
        "What runs the network: ONNX Runtime on the CPU or on CUDA, or OpenVINO, on the CPU too."
        " auto: cuda if it works, else cpu. Only auto falls back.",
        kind=Choice(PROVIDER_CHOICES),
    )
    num_threads: int | None = flag(
        None,
        "CPU threads of one network call; by default the CPUs that this process may use.",
        kind=click.IntRange(1, 1024),
    )
    spin: bool = flag(
        False,
        "Let the CPU threads that share rows, which they do in calls of very few, wait for each"
        " other awake: faster where only this server uses its CPUs, much slower where others use"
        " them too.",
    )
    max_lanes: int | Literal["auto"] = flag(
        "auto",
        "Images denoised at once, per model. auto: the smallest number that gives 98 % of the best"
        " throughput in steps of at most 30 ms, measured at the start in a second; and more, in"
        " steps of at most 60 ms, while there are two requests and more for each of them.",
        kind=AutoOrInteger(1, 4096),
    )
    max_queued_images: int = flag(
        4096,
        "Accepted images that may wait for a lane, per model; beyond: RESOURCE_EXHAUSTED.",
        kind=click.IntRange(1, 10_000_000),
    )
    max_queued_requests: int = flag(
        1024,
        "Accepted requests that may wait for their first lane, per model; beyond:"
        " RESOURCE_EXHAUSTED.",
        kind=click.IntRange(1, 1_000_000),
    )
    scheduling_policy: SchedulingPolicy = flag(
        "srpt",
        "Who is served first. srpt: the request with the shortest remaining work, with ageing;"
        " others are set aside for it. fifo: the one that came first.",
        kind=Choice(get_args(SchedulingPolicy)),
    )
    cache_bytes: int = flag(
        0,
        "Bytes for finished images, per model, so that equal ones are not computed twice; equal"
        " images in flight are computed once too. 0: neither.",
        kind=click.IntRange(0, 2**40),
    )
    max_images_per_request: int = flag(
        1024, "Largest count of one request.", kind=click.IntRange(1, 1_000_000)
    )
    request_timeout_seconds: float = flag(
        1800.0,
        "How long a request may take whose client sets no deadline.",
        kind=Numbers(0.1, 86_400),
    )
    drain_grace_seconds: float = flag(
        1.0,
        "After SIGTERM: how long to go on accepting while load balancers notice that this"
        " server is not ready. SIGINT (Ctrl-C) skips it.",
        kind=Numbers(0, 3600),
    )
    drain_timeout_seconds: float = flag(
        60.0,
        "How long accepted requests may take to finish after that. A second signal exits at once.",
        kind=Numbers(0, 86_400),
    )
    max_connection_age_seconds: float = flag(
        1800.0,
        "How old a connection gets; then its client is asked to connect anew, which gRPC does"
        " unnoticed, maybe to another server.",
        kind=Numbers(1, 86_400),
    )
    max_connection_age_grace_seconds: float = flag(
        3600.0,
        "How long requests on a connection that is too old may take to finish. Longer than the"
        " longest request.",
        kind=Numbers(1, 86_400),
    )
    ready_file: Path | None = flag(
        None,
        "Written once the server is ready, and taken away at its end: JSON with host, grpc_port,"
        " http_port and pid.",
        kind=_FILE,
    )
    log_level: str = flag(
        "info",
        "The least important messages that are logged.",
        kind=Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    )
    log_format: str = flag(
        "text", "How log lines look; json is one object per line.", kind=Choice(logs.FORMATS)
    )

    tracing_endpoint: str | None = flag(
        None,
        "OTLP collector that gets OpenTelemetry traces, http://HOST:PORT or https://HOST:PORT."
        " Needs the extra `tracing`. Without it nothing is sent.",
    )
    tracing_sample_ratio: float = flag(
        1.0,
        "Share of the traces that begin here; a caller's own decision goes first.",
        kind=Numbers(0, 1),
    )

    def __post_init__(self) -> None:
        if self.tracing_endpoint is not None and not _ENDPOINT.fullmatch(self.tracing_endpoint):
            # Its text may hold a password, and is not shown.
            raise ConfigurationError(
                "--tracing-endpoint must be http://HOST:PORT or https://HOST:PORT; credentials"
                " go into OTEL_EXPORTER_OTLP_HEADERS"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("--tls-cert and --tls-key are given together or not at all")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigurationError("--tls-client-ca needs --tls-cert and --tls-key")
        if self.max_images_per_request > self.max_queued_images:
            raise ConfigurationError(
                f"--max-images-per-request {self.max_images_per_request} is more than"
                f" --max-queued-images {self.max_queued_images}:"
                " such a request could never be accepted"
            )
        if self.request_timeout_seconds >= self.max_connection_age_grace_seconds:
            raise ConfigurationError(
                f"--request-timeout-seconds {self.request_timeout_seconds:g} must be less than"
                f" --max-connection-age-grace-seconds {self.max_connection_age_grace_seconds:g}:"
                " a connection would be closed under such a request"
            )

    @property
    def has_http_api(self) -> bool:
        """Whether requests are answered over HTTP too."""
        if self.http_api == "auto":
            return self.tls_client_ca is None or self.auth_tokens_file is not None
        return self.http_api == "on"

    @property
    def http_hosts(self) -> frozenset[str] | None:
        """The host names under which browsers may ask; None for any."""
        if not self.http_host_names and not is_loopback(self.host):
            return None
        return LOOPBACK_NAMES | {self.host.lower(), *map(str.lower, self.http_host_names)}

    @property
    def connection_limits(self) -> ConnectionLimits:
        """How long connections live."""
        return ConnectionLimits(
            max_age_seconds=self.max_connection_age_seconds,
            max_age_grace_seconds=self.max_connection_age_grace_seconds,
        )

    @property
    def tls_files(self) -> TlsFiles | None:
        """The files for TLS, if there is to be any."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)
