"""What KubeRay's operator refuses at run time though its CRD takes it, and what it would run otherwise than meant.

After `ray-operator/controllers/ray/utils/validation.go` of KubeRay 1.7.0, as far as these manifests come near it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ray.autoscaler._private.kuberay.utils import parse_quantity

from cluster.kuberay.manifests import Manifest
from cluster.pools import ACCELERATOR_LABEL, POOL_LABEL

SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
GATED = ("tlsOptions", "networkPolicy", "historyServerOptions")
"""Fields behind feature gates of the operator that are off by default."""
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""Kubernetes' DNS-1035 label."""
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


def operator_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with a RayCluster, RayJob or RayService of the right shape: a line each."""
    longest = 53 if manifest.kind == "RayCluster" else 47
    if len(manifest.name) > longest or not _NAME.fullmatch(manifest.name):
        yield f"metadata.name: not a-z, 0-9 and `-` from a letter on, at most {longest} characters"
    if manifest.kind == "RayJob":
        yield from _job(manifest.spec)
    if manifest.kind == "RayService":
        upgrade = manifest.spec.get("upgradeStrategy", {}).get("type", "NewCluster")
        if upgrade not in UPGRADES:
            yield f"upgradeStrategy.type: {upgrade!r} is not one of {', '.join(UPGRADES)}"
    if manifest.kind != "RayCluster" and "upgradeStrategy" in manifest.cluster_spec:
        yield f"upgradeStrategy of its cluster: KubeRay refuses one that a {manifest.kind} makes"
    yield from _cluster(manifest.cluster_spec)
    for name, _, group in manifest.groups():
        yield from (f"{name}: {line}" for line in (*_group(group, manifest.cluster_spec), *_told_to_ray(name, group)))


def _job(spec: dict[str, Any]) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode: {mode!r} is not one of {', '.join(SUBMISSION_MODES)}"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit: negative"
    if spec.get("activeDeadlineSeconds", 1) < 1:
        yield "activeDeadlineSeconds: not positive"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished: negative"
    if spec.get("shutdownAfterJobFinishes") and spec.get("deletionStrategy", {}).get("deletionRules"):
        yield "deletionStrategy.deletionRules: not beside shutdownAfterJobFinishes"


def _cluster(cluster: dict[str, Any]) -> Iterator[str]:
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode: without `token`, whoever reaches a port runs code"
    if "rayVersion" not in cluster:
        yield "rayVersion: KubeRay asks for it where authOptions.mode is `token`"
    if cluster.get("enableInTreeAutoscaling") and cluster.get("autoscalerOptions", {}).get("version") != "v2":
        yield "autoscalerOptions.version: v1 knows no labels; say v2"
    for name in GATED:
        if name in cluster:
            yield f"{name}: the operator refuses it unless a feature gate is on, which is off by default"
    tolerance = cluster.get("gcsFaultToleranceOptions")
    if tolerance is not None:
        if tolerance.get("backend", "redis") == "redis" and "redisAddress" not in tolerance:
            yield "gcsFaultToleranceOptions.redisAddress: missing"
        if tolerance.get("backend") == "rocksdb":
            yield "gcsFaultToleranceOptions.backend: rocksdb needs a feature gate that is off by default"


def _group(group: dict[str, Any], cluster: dict[str, Any]) -> Iterator[str]:
    params = group.get("rayStartParams", {})
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(params):
        yield "resources stand in both `resources` and `rayStartParams`; KubeRay takes one of them"
    if "labels" in params:
        yield "rayStartParams.labels is refused by KubeRay; use the group's `labels`"
    for key, value in group.get("labels", {}).items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            yield f"labels: {key}: {value!r} does not match Kubernetes' syntax of labels"
    if not 0 <= group.get("minReplicas", 0) <= group.get("maxReplicas", 0):
        yield f"minReplicas {group['minReplicas']} is not from 0 to maxReplicas {group['maxReplicas']}"
    if cluster.get("enableInTreeAutoscaling"):
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "restartPolicy: the autoscaler v2 wants Never"
    elif "idleTimeoutSeconds" in group:
        yield "idleTimeoutSeconds: only with enableInTreeAutoscaling"


def _told_to_ray(name: str, group: dict[str, Any]) -> Iterator[str]:
    """Where a group of pods tells Ray another thing than it tells Kubernetes."""
    spec, labels, resources = group["template"]["spec"], group.get("labels", {}), group.get("resources", {})
    if spec.get("nodeSelector", {}).get(POOL_LABEL) != labels.get(POOL_LABEL):
        yield f"its nodeSelector and its labels are of two pools by {POOL_LABEL}"
    requests = spec["containers"][0]["resources"]["requests"]
    told = {"CPU": requests["cpu"], "GPU": requests.get("nvidia.com/gpu", "0")}
    if name == "head":
        if group.get("rayStartParams", {}).get("num-cpus") != "0":
            yield 'rayStartParams.num-cpus is not "0": work would be put on the head'
        return
    for resource, requested in told.items():
        given = resources.get(resource, "0")
        if parse_quantity(given) != parse_quantity(str(requested)):
            yield f"resources.{resource} is {given}, but its pod requests {requested}"
    for resource in resources:
        if resource not in (*told, "memory") and resource != f"accelerator_type:{labels.get(ACCELERATOR_LABEL)}":
            yield f"resources.{resource} is no resource that a job of ours asks for"
    if parse_quantity(told["GPU"]) and f"accelerator_type:{labels.get(ACCELERATOR_LABEL)}" not in resources:
        yield f"its label {ACCELERATOR_LABEL} and a resource accelerator_type:... do not name the same GPU"
