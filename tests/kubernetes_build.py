"""What kustomize makes of deploy/kubernetes, and whether a cluster would take it."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Resource = dict[str, Any]

DIRECTORY = Path(__file__).resolve().parent.parent / "deploy" / "kubernetes"
BUILDS = ("base", "overlays/gpu", "overlays/scaled", "overlays/gpu-scaled")
OLDEST, NEWEST = "1.31", "1.37"  # of Kubernetes; before, a PodDisruptionBudget knew less


@functools.cache
def rendered(name: str) -> str:
    """What `kubectl apply -k` would apply."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", DIRECTORY / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "deprecated, probably"
    return done.stdout


def build(name: str) -> dict[str, Resource]:
    """The same, by kind."""
    resources = list(yaml.safe_load_all(rendered(name)))
    by_kind = {resource["kind"]: resource for resource in resources}
    assert len(by_kind) == len(resources)
    return by_kind


def pod(built: dict[str, Resource]) -> Resource:
    spec: Resource = built["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(built: dict[str, Resource]) -> Resource:
    [only] = pod(built)["containers"]
    return dict(only)


@functools.cache
def schema_of(kind: str) -> Resource:
    """The schema of a kind that an operator brings along, closed for fields that it does not
    have: the cluster would drop them in silence.
    """
    for path in (Path(__file__).parent / "data" / "kubernetes").glob("*.yaml"):
        definition = yaml.safe_load(path.read_text("utf-8"))
        if definition["spec"]["names"]["kind"] == kind:
            [version] = definition["spec"]["versions"]
            schema: Resource = version["schema"]["openAPIV3Schema"]
            schema["properties"]["metadata"]["x-kubernetes-preserve-unknown-fields"] = True
            close(schema)
            return schema
    raise AssertionError(f"no schema of {kind}")


def close(schema: object) -> None:
    if isinstance(schema, list):
        for each in schema:
            close(each)
    elif isinstance(schema, dict):
        if (
            isinstance(schema.get("properties"), dict)
            and schema.get("type") == "object"
            and not schema.get("x-kubernetes-preserve-unknown-fields")
        ):
            schema.setdefault("additionalProperties", False)
        if isinstance(pattern := schema.get("pattern"), str):
            schema["pattern"] = pattern.replace("^(?i)", "(?i)^")  # Go's order, and Python's
        for each in schema.values():
            close(each)


def validate(resource: Resource) -> None:
    """Raises if the cluster would not take it, or not all of it."""
    if "." in resource["apiVersion"].partition("/")[0].removesuffix(".k8s.io"):
        jsonschema.validate(resource, schema_of(resource["kind"]))
    else:
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(resource, version, strict=True)
