"""The schemas of the manifests' kinds, with unknown fields refused. schemas/README.md says where they come from."""

from __future__ import annotations

import difflib
import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
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
_CRDS = {
    "kuberay-1.7.0.json.gz": ("ray.io/v1", ("RayCluster", "RayJob", "RayService")),
    "kueue-0.19.2.json.gz": (
        "kueue.x-k8s.io/v1beta2",
        ("ResourceFlavor", "ClusterQueue", "LocalQueue", "WorkloadPriorityClass"),
    ),
}
KINDS = _KUBERNETES | {(version, kind): kind for version, kinds in _CRDS.values() for kind in kinds}
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
    found = _read("kubernetes-1.34.json.gz")
    for file in _CRDS:
        for kind, schema in _read(file).items():
            # The API server adds these to each CRD by itself.
            schema["properties"]["metadata"] = {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
            needed = {"apiVersion", "kind", "metadata", "spec"} & set(schema["properties"])
            schema["required"] = sorted(needed | set(schema.get("required", [])))
            found[kind] = schema
    for definition in found.values():
        _close(definition)
    # Kubernetes' schema takes any text here: `nvidia.com/gpu: eight` would pass.
    found["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {
        "anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"}]
    }
    return found


def _read(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((SCHEMAS / file).read_bytes()))["$defs"]
    return found


def _close(schema: Any) -> None:
    """Refuse unknown fields at each place of a schema that names the known ones. Maps stay open."""
    if not isinstance(schema, dict):
        return
    if "properties" in schema:
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema["additionalProperties"] = False
        for part in schema["properties"].values():
            _close(part)
    for name in ("items", "additionalProperties"):
        _close(schema.get(name))


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
