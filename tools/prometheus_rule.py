"""The rules of deploy/prometheus as the Prometheus operator takes them, for deploy/kubernetes.

    python tools/prometheus_rule.py

Writes deploy/kubernetes/components/monitoring/prometheusrule.yaml. The texts stay as they are,
comments go.
"""

from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
WRITTEN = DEPLOY / "kubernetes" / "components" / "monitoring" / "prometheusrule.yaml"

_HEAD = """\
# Written by tools/prometheus_rule.py from deploy/prometheus/rules. Do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: simple-diffusion
  labels: {app.kubernetes.io/name: simple-diffusion}
spec:
  groups:
"""


def prometheus_rule() -> str:
    """Returns what the file has to say."""
    groups = []
    for path in sorted(RULES.glob("*.yml")):
        _, found, below = path.read_text("utf-8").partition("\ngroups:\n")
        if not found:
            raise ValueError(f"{path.name} has no line `groups:`")
        groups += [
            f"  {line}" if line else ""
            for line in below.splitlines()
            if not line.lstrip().startswith("#")
        ]
    return _HEAD + "\n".join(groups).rstrip() + "\n"


if __name__ == "__main__":
    WRITTEN.write_text(prometheus_rule(), "utf-8")
