"""deploy/kubernetes: what kustomize makes of it is valid, hangs together, and adds up."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from serving import server, tracing
from serving.configuration import ServerConfig
from serving.flags import ConfiguredCommand, flags_of
from serving.grpc_methods import SERVICE_NAME
from serving.health import PROCESS
from serving.metrics import Metrics
from tests.kubernetes_build import BUILDS, Resource, build, container, pod, validate
from tools.prometheus_rule import RULES, WRITTEN, prometheus_rule

# From the moment in which a replica says that it is not ready: kubelet's status, EndpointSlices,
# DNS (CoreDNS keeps an answer for 5 s).
ENDPOINTS_SECONDS = 6.0


@pytest.fixture(params=BUILDS)
def built(request: pytest.FixtureRequest) -> dict[str, Resource]:
    return build(request.param)


@pytest.fixture
def config(built: dict[str, Resource]) -> ServerConfig:
    """What the server in the pod makes of its variables."""
    configs: list[ServerConfig] = []

    def serve(config: ServerConfig) -> None:
        configs.append(config)

    command = ConfiguredCommand("serving", configuration=ServerConfig, callback=serve)
    variables = {each["name"]: each["value"] for each in container(built)["env"]}
    ended = CliRunner().invoke(command, [], env=variables)
    assert ended.exit_code == 0, ended.output
    [made] = configs
    return made


# Is it valid?


def test_every_resource_fits_its_schema(built: dict[str, Resource]) -> None:
    for resource in built.values():
        validate(resource)


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("Deployment", ("spec", "template", "spec"), {"terminationGracePeriod": 5}),
        ("Deployment", ("spec",), {"replicas": "two"}),
        ("PodDisruptionBudget", ("spec",), {"maxUnavailables": 1}),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0), {"expression": "up"}),
        ("ServiceMonitor", ("spec",), {"endpoint": []}),
        ("ServiceMonitor", ("spec", "endpoints", 0), {"scrapeTimeout": "ten"}),
        ("ScaledObject", ("spec",), {"maxReplicas": 5}),
        ("ScaledObject", ("spec", "triggers", 0), {"metricType": 7}),
    ],
)
def test_a_mistake_would_be_found(
    kind: str, path: tuple[str | int, ...], wrong: dict[str, object]
) -> None:
    resource = build("overlays/scaled")[kind]
    validate(resource)
    where: Any = resource
    for step in path:
        where = where[step]
    where.update(wrong)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(resource)


# Does it hang together?


def selectors(built: dict[str, Resource]) -> Iterator[dict[str, str]]:
    """Everything that has to find the pods."""
    yield built["Deployment"]["spec"]["selector"]["matchLabels"]
    yield built["Service"]["spec"]["selector"]
    yield built["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    yield built["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    for constraint in pod(built)["topologySpreadConstraints"]:
        yield constraint["labelSelector"]["matchLabels"]


def test_everything_finds_the_pods(built: dict[str, Resource]) -> None:
    labels = built["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for selector in selectors(built):
        assert selector
        assert selector.items() <= labels


def test_every_port_that_is_named_is_one_of_the_server(
    built: dict[str, Resource], config: ServerConfig
) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(built)["ports"]}
    assert ports == {"grpc": config.port, "http": config.http_port}
    assert {port["targetPort"] for port in built["Service"]["spec"]["ports"]} <= ports.keys()
    for rule in built["NetworkPolicy"]["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= ports.keys()


def test_clients_get_the_address_of_every_ready_replica(built: dict[str, Resource]) -> None:
    service = built["Service"]["spec"]
    assert service["clusterIP"] == "None"
    assert not service.get("publishNotReadyAddresses", False)


def test_probes_ask_for_what_the_server_answers(
    built: dict[str, Resource], config: ServerConfig
) -> None:
    probes = {name: container(built)[f"{name}Probe"] for name in ("startup", "readiness")}
    for probe in probes.values():
        assert probe["grpc"] == {"port": config.port, "service": SERVICE_NAME}
    assert container(built)["livenessProbe"]["grpc"] == {"port": config.port, "service": PROCESS}


def test_the_rules_are_those_of_prometheus() -> None:
    assert WRITTEN.read_text("utf-8") == prometheus_rule(), "python tools/prometheus_rule.py"
    groups = build("overlays/scaled")["PrometheusRule"]["spec"]["groups"]
    read = [yaml.safe_load(path.read_text("utf-8")) for path in sorted(RULES.glob("*.yml"))]
    assert groups == [group for each in read for group in each["groups"]]
    # The operator calls the job as the Service is called.
    jobs = set(re.findall(r'job="([^"]*)"', str(groups)))
    assert jobs == {build("overlays/scaled")["Service"]["metadata"]["name"]}


def test_prometheus_finds_the_service() -> None:
    built = build("overlays/scaled")
    monitor, service = built["ServiceMonitor"]["spec"], built["Service"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize("name", ["overlays/scaled", "overlays/gpu-scaled"])
def test_keda_scales_the_deployment_by_metrics_that_there_are(name: str) -> None:
    built = build(name)
    scaled = built["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == built["Deployment"]["metadata"]["name"]
    assert "replicas" not in built["Deployment"]["spec"], "two would say how many there are"
    queries = " ".join(trigger["metadata"]["query"] for trigger in scaled["triggers"])
    asked = set(re.findall(r"\bdiffusion_\w+", queries))
    assert "diffusion_images_waiting" in asked
    exposition, _ = Metrics().exposition()
    published = set(re.findall(r"^# TYPE (\w+) gauge$", exposition.decode(), re.MULTILINE))
    assert asked <= published
    services = set(re.findall(r'service="([^"]*)"', queries))
    assert services == {built["Service"]["metadata"]["name"]}


# Does it add up?


def test_a_replica_that_goes_is_noticed_within_its_grace(
    built: dict[str, Resource], config: ServerConfig
) -> None:
    probe = container(built)["readinessProbe"]
    noticed_seconds = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert noticed_seconds + ENDPOINTS_SECONDS <= config.drain_grace_seconds


def test_what_was_accepted_is_finished_before_the_pod_is_killed(
    built: dict[str, Resource], config: ServerConfig
) -> None:
    assert config.drain_timeout_seconds >= config.request_timeout_seconds, "the longest request"
    exit_seconds = server._ENGINE_STOP_SECONDS + tracing._EXPORT_SECONDS
    needed_seconds = config.drain_grace_seconds + config.drain_timeout_seconds + exit_seconds
    assert needed_seconds < pod(built)["terminationGracePeriodSeconds"]


def test_the_page_gives_the_times_as_they_are(
    repository: Path, built: dict[str, Resource], config: ServerConfig
) -> None:
    page = (repository / "docs" / "replicas.md").read_text("utf-8")
    given = dict(re.findall(r"^\| `([\w-]+)` \| (\d+) \|", page, re.MULTILINE))
    times = {flag.name: getattr(config, flag.field_name) for flag in flags_of(ServerConfig)}
    times["terminationGracePeriodSeconds"] = pod(built)["terminationGracePeriodSeconds"]
    assert {name: times[name] for name in given} == {
        name: float(seconds) for name, seconds in given.items()
    }
    assert len(given) == 5


def test_the_default_times_add_up_as_well() -> None:
    default = ServerConfig()
    assert default.request_timeout_seconds < default.max_connection_age_grace_seconds
    # Without the variables of the pod, its time would do too.
    needed_seconds = default.drain_grace_seconds + default.drain_timeout_seconds
    assert needed_seconds < pod(build("base"))["terminationGracePeriodSeconds"]


def test_clients_find_new_replicas_before_the_autoscaler_takes_them_away(
    config: ServerConfig,
) -> None:
    behavior = build("overlays/scaled")["ScaledObject"]["spec"]["advanced"][
        "horizontalPodAutoscalerConfig"
    ]["behavior"]
    window_seconds = behavior["scaleDown"]["stabilizationWindowSeconds"]
    assert config.max_connection_age_seconds <= window_seconds


def test_an_update_and_the_budget_leave_a_replica_at_work(built: dict[str, Resource]) -> None:
    replicas = built["Deployment"]["spec"].get(
        "replicas", built.get("ScaledObject", {}).get("spec", {}).get("minReplicaCount")
    )
    rolling = built["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxSurge"] + rolling["maxUnavailable"] > 0
    assert replicas > rolling["maxUnavailable"]
    assert replicas > built["PodDisruptionBudget"]["spec"]["maxUnavailable"]


# Is it safe?


def test_the_pod_has_no_rights(built: dict[str, Resource]) -> None:
    context, of_pod = container(built)["securityContext"], pod(built)["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert of_pod["runAsNonRoot"]
    assert of_pod["runAsUser"] > 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(built)["automountServiceAccountToken"] is False


def test_the_server_has_the_cpus_that_it_sees(built: dict[str, Resource]) -> None:
    resources = container(built)["resources"]
    assert resources["requests"] == resources["limits"]


def test_the_services_variables_do_not_reach_the_server(built: dict[str, Resource]) -> None:
    assert pod(built)["enableServiceLinks"] is False


def test_a_gpu_that_is_asked_for_is_used() -> None:
    for name in ("overlays/gpu", "overlays/gpu-scaled"):
        built = build(name)
        variables = {each["name"]: each["value"] for each in container(built)["env"]}
        assert variables["SIMPLE_DIFFUSION_PROVIDER"] == "cuda"
        assert container(built)["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert container(built)["image"].endswith(":serving-gpu")
