"""Each alert fires when what it is about happens to a real server, and clears afterwards.

The rules are those of deploy/prometheus, with shorter windows; their thresholds are as deployed.
"""

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from serving.client import Client, ClientError, Tls
from tests import faulty_server
from tests.fault_figures import Record
from tests.prometheus_process import PrometheusProcess, running_prometheus
from tests.prometheus_rules import ALERTS
from tests.server_process import MNIST, ServerProcess, free_port, sample, started_server

PROGRAM = (str(Path(faulty_server.__file__)),)
FLAGS = (
    "--provider", "cpu", "--max-lanes", "8", "--max-queued-images", "16",
    "--max-images-per-request", "16",
)  # fmt: skip
WINDOW_SECONDS = 6


@dataclass
class Scene:
    """A server that can be replaced by another one at the same address, and its Prometheus."""

    bundle: Path
    http_port: int
    servers: contextlib.ExitStack
    server: ServerProcess
    prometheus: PrometheusProcess

    def start(self, *flags: str, **variables: str) -> None:
        """Kills the server and starts another."""
        self.servers.close()
        server = server_at(self.http_port, self.bundle, *flags, **variables)
        self.server = self.servers.enter_context(server)
        self.server.wait_ready()

    def client(self) -> Client:
        return Client(self.server.target, retry=None, timeout_seconds=600)


def server_at(
    http_port: int, bundle: Path, *flags: str, **variables: str
) -> AbstractContextManager[ServerProcess]:
    return started_server(
        bundle, flags=FLAGS + flags, program=PROGRAM, variables=variables, http_port=http_port
    )


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    bundle, http_port = tmp_path / "mnist", free_port()
    shutil.copytree(MNIST, bundle)
    with (
        contextlib.ExitStack() as servers,
        running_prometheus([http_port], window_seconds=WINDOW_SECONDS) as prometheus,
    ):
        server = servers.enter_context(server_at(http_port, bundle))
        server.wait_ready()
        prometheus.until(lambda: prometheus.query("diffusion_ready == 1"), "a scrape")
        yield Scene(bundle, http_port, servers, server, prometheus)


@contextlib.contextmanager
def fault(scene: Scene, number: int) -> Iterator[None]:
    """A fault of tests.faulty_server."""
    scene.server.signal(number)
    yield
    scene.server.signal(number)


@contextlib.contextmanager
def request(scene: Scene, count: int, num_steps: int) -> Iterator[None]:
    """A request that runs meanwhile; given up at the end."""
    with scene.client() as client:
        events = client.stream(1, count, num_steps=num_steps, preview_every=1)

        def read() -> None:
            with contextlib.suppress(ClientError):
                list(events)

        reader = threading.Thread(target=read)
        reader.start()
        yield
        events.close()
        reader.join()


@contextlib.contextmanager
def running(scene: Scene) -> Iterator[None]:
    """A request that has every lane meanwhile."""
    lanes = sample("diffusion_lanes_in_use", model="mnist")
    with request(scene, 8, 1000):
        scene.server.until(lambda samples: samples[lanes] == 8)
        yield


@contextlib.contextmanager
def dead(scene: Scene) -> Iterator[None]:
    scene.server.signal(signal.SIGKILL)
    yield
    scene.start()


@contextlib.contextmanager
def hanging(scene: Scene) -> Iterator[None]:
    with running(scene), fault(scene, signal.SIGUSR2):
        yield


@contextlib.contextmanager
def failing(scene: Scene, number: int) -> Iterator[None]:
    """One request meets a fault."""
    with fault(scene, number), scene.client() as client, pytest.raises(ClientError):
        client.generate(1)
    yield


@contextlib.contextmanager
def slow(scene: Scene) -> Iterator[None]:
    with fault(scene, faulty_server.SLOW), scene.client() as client:
        client.generate(1, num_steps=40)
    yield


@contextlib.contextmanager
def full(scene: Scene) -> Iterator[None]:
    waiting = sample("diffusion_images_waiting", model="mnist")
    with fault(scene, faulty_server.SLOW), running(scene), request(scene, 16, 1000):
        scene.server.until(lambda samples: samples[waiting] == 16)
        yield


@contextlib.contextmanager
def refusing(scene: Scene) -> Iterator[None]:
    over = threading.Event()

    def ask() -> None:
        with scene.client() as client:
            while not over.wait(0.05):
                with contextlib.suppress(ClientError):
                    client.generate(1)

    asking = threading.Thread(target=ask)
    with full(scene):
        asking.start()
        yield
        over.set()
        asking.join()


@contextlib.contextmanager
def unequal(scene: Scene) -> Iterator[None]:
    scene.start(**{faulty_server.UNEQUAL: "1"})
    yield
    scene.start()


@contextlib.contextmanager
def expiring(scene: Scene) -> Iterator[None]:
    ca, cert, key = trustme.CA(), scene.bundle / "cert.pem", scene.bundle / "key.pem"

    def renew(days: int) -> None:
        ends = datetime.now(UTC) + timedelta(days=days)
        leaf = ca.issue_cert("localhost", not_after=ends)
        cert.write_bytes(leaf.cert_chain_pems[0].bytes())
        key.write_bytes(leaf.private_key_pem.bytes())

    renew(days=13)
    scene.start("--tls-cert", str(cert), "--tls-key", str(key))
    yield
    renew(days=90)
    roots = scene.bundle / "ca.pem"
    ca.cert_pem.write_to_path(str(roots))
    time.sleep(1.1)  # the files are looked at once a second, at a handshake
    with Client(f"localhost:{scene.server.port}", tls=Tls(ca_file=roots)) as client:
        client.wait_ready(30)


@contextlib.contextmanager
def damaged(scene: Scene) -> Iterator[None]:
    network = scene.bundle / "unet.onnx"
    whole = network.read_bytes()
    network.write_bytes(whole[:1000])
    scene.server.signal(signal.SIGHUP)
    yield
    network.write_bytes(whole)
    scene.server.signal(signal.SIGHUP)


TROUBLES: dict[str, Callable[[Scene], AbstractContextManager[None]]] = {
    "SimpleDiffusionDown": dead,
    "SimpleDiffusionNotReady": hanging,
    "SimpleDiffusionEngineStalled": hanging,
    "SimpleDiffusionEngineRestarted": lambda scene: failing(scene, signal.SIGUSR1),
    "SimpleDiffusionCertificateExpires": expiring,
    "SimpleDiffusionSlow": slow,
    "SimpleDiffusionQueueNearFull": full,
    "SimpleDiffusionRefusing": refusing,
    "SimpleDiffusionInternalErrors": lambda scene: failing(scene, faulty_server.RAISE),
    "SimpleDiffusionNonFinite": lambda scene: failing(scene, faulty_server.NAN),
    "SimpleDiffusionSelfTestFailed": unequal,
    "SimpleDiffusionReloadFailed": damaged,
}


@pytest.mark.fault
@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_when_it_happens_and_clears_when_it_is_over(
    alert: str, scene: Scene, figure: Record
) -> None:
    prometheus = scene.prometheus
    prometheus.until(lambda: not prometheus.firing(alert), f"{alert} is silent at first")
    begin = time.monotonic()
    with TROUBLES[alert](scene):
        prometheus.until(lambda: prometheus.firing(alert), f"{alert} fires")
        fired = time.monotonic()
    prometheus.until(lambda: not prometheus.firing(alert), f"{alert} clears")
    figure("seconds until it fires", fired - begin, "-")
    figure("seconds from then until it was undone and has cleared", time.monotonic() - fired, "-")


def test_every_alert_has_something_that_makes_it_fire() -> None:
    assert set(TROUBLES) == set(ALERTS)
