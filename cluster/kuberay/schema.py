"""The schemas of the manifests' kinds, with unknown fields refused. schemas/README.md says where they come from."""

from __future__ import annotations

import difflib
import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from jsonschema.protocols import Validator

SCHEMAS = Path(__file__).parent / "schemas"
_KUBERNETES = {
    ("v1", "Namespace"): "io.k8s.api.core.v1.Namespace",
    ("v1", "Service"): "io.k8s.api.core.v1.Service",
    ("v1", "PersistentVolumeClaim"): "io.k8s.api.core.v1.PersistentVolumeClaim",
    ("v1", "Secret"): "io.k8s.api.core.v1.Secret",
    ("v1", "ConfigMap"): "io.k8s.api.core.v1.ConfigMap",
    ("v1", "ServiceAccount"): "io.k8s.api.core.v1.ServiceAccount",
    ("apps/v1", "Deployment"): "io.k8s.api.apps.v1.Deployment",
    ("apps/v1", "StatefulSet"): "io.k8s.api.apps.v1.StatefulSet",
    ("networking.k8s.io/v1", "NetworkPolicy"): "io.k8s.api.networking.v1.NetworkPolicy",
    ("networking.k8s.io/v1", "Ingress"): "io.k8s.api.networking.v1.Ingress",
    ("policy/v1", "PodDisruptionBudget"): "io.k8s.api.policy.v1.PodDisruptionBudget",
}
KINDS = _KUBERNETES | {
    ("ray.io/v1", "RayCluster"): "RayCluster",
    ("ray.io/v1", "RayJob"): "RayJob",
    ("ray.io/v1", "RayService"): "RayService",
    ("kueue.x-k8s.io/v1beta1", "ResourceFlavor"): "ResourceFlavor",
    ("kueue.x-k8s.io/v1beta1", "ClusterQueue"): "ClusterQueue",
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): "LocalQueue",
    ("kueue.x-k8s.io/v1beta1", "WorkloadPriorityClass"): "WorkloadPriorityClass",
}
"""(apiVersion, kind) to the name of its definition."""


def schema_problems(document: dict[str, Any]) -> list[str]:
    """What is wrong with the shape of one manifest: a line each, which begins with where; empty where nothing is."""
    kind = (document.get("apiVersion"), document.get("kind"))
    if kind not in KINDS:
        known = ", ".join(f"{name} ({version})" for version, name in KINDS)
        return [f"kind: {kind[1]!r} of apiVersion {kind[0]!r} is not known here; known are {known}"]
    return sorted(_told(error) for error in _validator(KINDS[kind]).iter_errors(document))


@cache
def _validator(name: str) -> Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions()})


@cache
def definitions() -> dict[str, Any]:
    """All definitions by name. Every object with `properties` refuses other fields."""
    found: dict[str, Any] = json.loads(gzip.decompress((SCHEMAS / "kubernetes-1.34.json.gz").read_bytes()))["$defs"]
    for file in ("kuberay-v1.yaml", "kueue-v1beta1.yaml"):
        found |= yaml.safe_load((SCHEMAS / file).read_text())["$defs"]
    for definition in found.values():
        _close(definition)
    # Kubernetes' schema takes any text here: `nvidia.com/gpu: eight` would pass.
    found["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {
        "anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"}]
    }
    return found


def _close(schema: Any) -> None:
    """Refuse unknown fields at each place of a schema that names the known ones."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            _close(part)
    elif isinstance(schema, list):
        for part in schema:
            _close(part)


def _told(error: jsonschema.ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "the manifest"
    if error.validator != "additionalProperties" or not isinstance(error.schema, dict):
        return f"{where}: {error.message}"
    known = list(error.schema.get("properties", {}))
    lines = []
    for name in sorted(set(error.instance) - set(known)):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
        lines.append(f"{where}: unknown field {name}; {hint}")
    return "; ".join(lines)
