"""What one manifest says of others: names that must be there, quotas that must hold it, and what Kueue refuses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from ray.autoscaler._private.kuberay.utils import parse_quantity

from cluster.kuberay.manifests import PRIORITY_LABEL, QUEUE_LABEL, RAY_KINDS, Manifest
from cluster.kuberay.operator_rules import operator_problems
from cluster.kuberay.words import RAY_NODE_LABEL, word_problems

SECRETS = {
    "cinesynth-ray-token": "auth_token",
    "cinesynth-redis": "password",
    "cinesynth-serve-keys": "keys.json",
}
"""Secrets that are made by hand, as docs/kubernetes.md says, each with its key: no manifest carries one."""
SUBMITTER = {"cpu": Decimal("0.5"), "memory": parse_quantity("200Mi")}
"""Requests of the pod by which KubeRay submits a RayJob, where the manifest does not say otherwise."""

RAY_LABELS = {RAY_NODE_LABEL: "yes"}
"""Labels that KubeRay adds to each pod of a Ray cluster, as far as manifests refer to them."""

Requests = dict[str, Decimal]


def reference_problems(manifests: list[Manifest]) -> list[str]:
    """What does not hold between manifests of the right shape: a line each; empty where nothing is wrong."""
    incomplete = [
        f"{m.kind} {m.name}: {line}" for m in manifests for line in (*word_problems(m.document), *_missing(m))
    ]
    if incomplete:
        return incomplete
    known = {(m.kind, m.name): m for m in manifests}
    found = []
    for manifest in manifests:
        lines = list(_names(manifest, known))
        if manifest.kind in RAY_KINDS:
            lines += [*operator_problems(manifest), *_queue(manifest, known)]
        if manifest.kind == "ClusterQueue":
            lines += _flavors(manifest, known)
        if manifest.kind == "LocalQueue" and ("ClusterQueue", manifest.spec["clusterQueue"]) not in known:
            lines.append(f"spec.clusterQueue: there is no ClusterQueue {manifest.spec['clusterQueue']}")
        if manifest.kind == "NetworkPolicy":
            lines += _selects(manifest.spec["podSelector"].get("matchLabels", {}), "spec.podSelector", manifests)
        if manifest.kind == "Service":
            lines += _selects(manifest.spec.get("selector", {}), "spec.selector", manifests)
        found += [f"{manifest.kind} {manifest.name}: {line}" for line in lines]
    return found


def _missing(manifest: Manifest) -> Iterator[str]:
    """What Kubernetes lets out and these clusters need."""
    if manifest.kind == "RayJob" and "rayClusterSpec" not in manifest.spec:
        yield "spec.rayClusterSpec: Kueue admits a RayJob only with a cluster of its own"
        return
    if manifest.kind == "ClusterQueue" and "resourceGroups" not in manifest.spec:
        yield "spec.resourceGroups: a queue without quotas admits nothing"
    for spec in manifest.pod_specs():
        for container in spec["containers"]:
            for resource in ("cpu", "memory"):
                if resource not in container.get("resources", {}).get("requests", {}):
                    yield f"container {container['name']} requests no {resource}; quotas and Ray go by requests"


def _names(manifest: Manifest, known: dict[tuple[str, str], Manifest]) -> Iterator[str]:
    """Secrets and claims that nobody makes."""
    made = {
        template["metadata"]["name"] for template in manifest.document.get("spec", {}).get("volumeClaimTemplates", [])
    }
    for name, key in _secrets(manifest.document):
        if name not in SECRETS:
            yield f"there is no secret {name}; known are {', '.join(SECRETS)}"
        elif key not in (None, SECRETS[name]):
            yield f"secret {name} has the key {SECRETS[name]}, not {key}"
    for spec in manifest.pod_specs():
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | made
        for volume in spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and ("PersistentVolumeClaim", claim) not in known:
                yield f"there is no PersistentVolumeClaim {claim}"
        for container in spec["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"container {container['name']} mounts {mount['name']}, which is no volume of its pod"


def _secrets(value: Any) -> Iterator[tuple[str, str | None]]:
    """Each secret that is named anywhere in a manifest, with the key that is read, where one is."""
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        if isinstance(value.get("secretName"), str):
            yield value["secretName"], None
        for part in value.values():
            yield from _secrets(part)
    elif isinstance(value, list):
        for part in value:
            yield from _secrets(part)


def _selects(wanted: dict[str, str], where: str, manifests: list[Manifest]) -> Iterator[str]:
    """A policy or service whose selector matches no pod of these manifests does nothing."""
    given = [RAY_LABELS] if any(m.kind in RAY_KINDS for m in manifests) else []
    for manifest in manifests:
        templates = [group["template"] for _, _, group in manifest.groups()] if manifest.kind in RAY_KINDS else []
        if manifest.kind in ("StatefulSet", "Deployment"):
            templates = [manifest.spec["template"]]
        given += [template.get("metadata", {}).get("labels", {}) for template in templates]
    if not any(wanted.items() <= labels.items() for labels in given):
        yield f"{where}: no pod here has {wanted}"


def _queue(manifest: Manifest, known: dict[tuple[str, str], Manifest]) -> Iterator[str]:
    """What Kueue refuses, and what it would keep waiting for ever."""
    queue = manifest.labels.get(QUEUE_LABEL)
    if queue is None:
        if manifest.kind != "RayCluster":
            yield f"without the label {QUEUE_LABEL} it starts at once, beside all quotas"
        return
    if manifest.cluster_spec.get("enableInTreeAutoscaling"):
        yield "enableInTreeAutoscaling: Kueue admits no cluster that scales itself"
    if len(manifest.cluster_spec.get("workerGroupSpecs", [])) > 16:
        yield "workerGroupSpecs: Kueue takes 18 sets of pods, of which the head and the submitter are two"
    if manifest.kind == "RayJob" and not manifest.spec.get("shutdownAfterJobFinishes"):
        yield "Kueue admits a RayJob only with shutdownAfterJobFinishes: true"
    if manifest.kind == "RayJob" and "clusterSelector" in manifest.spec:
        yield "Kueue admits no RayJob with a clusterSelector"
    priority = manifest.labels.get(PRIORITY_LABEL)
    if ("WorkloadPriorityClass", priority) not in known:
        yield f"there is no WorkloadPriorityClass {priority}"
    local = known.get(("LocalQueue", queue))
    if local is None:
        yield f"there is no LocalQueue {queue}"
        return
    target = known.get(("ClusterQueue", local.spec["clusterQueue"]))
    if target is not None:
        yield from _room(manifest, target, known)


def _room(manifest: Manifest, queue: Manifest, known: dict[tuple[str, str], Manifest]) -> Iterator[str]:
    """Where the queue's own quota never holds the workload, Kueue never starts it."""
    quotas = {
        flavor["name"]: {r["name"]: parse_quantity(str(r["nominalQuota"])) for r in flavor["resources"]}
        for group in queue.spec["resourceGroups"]
        for flavor in group["flavors"]
    }
    needed: dict[str, Requests] = defaultdict(lambda: defaultdict(Decimal))
    for name, pods, group in manifest.groups():
        spec = group["template"]["spec"]
        flavor = _flavor_of(spec, [known[("ResourceFlavor", f)] for f in quotas if ("ResourceFlavor", f) in known])
        if flavor is None:
            yield f"{name}: no flavor of {queue.name} takes its nodeSelector and tolerations"
            continue
        for container in spec["containers"]:
            for resource, amount in container["resources"]["requests"].items():
                needed[flavor][resource] += pods * parse_quantity(str(amount))
    if manifest.kind == "RayJob" and quotas:
        for resource, amount in SUBMITTER.items():
            needed[next(iter(quotas))][resource] += amount
    for flavor, requests in needed.items():
        for resource, amount in requests.items():
            quota = quotas[flavor].get(resource)
            if quota is None:
                yield f"{queue.name} has no quota of {resource} in {flavor}"
            elif amount > quota:
                yield f"takes {amount:f} {resource} of {flavor}, of which {queue.name} has {quota:f}"


def _flavor_of(spec: dict[str, Any], flavors: Iterable[Manifest]) -> str | None:
    """The first flavor whose nodes a pod goes to: its labels are selected, and its taints tolerated."""
    for flavor in flavors:
        labels, wanted = flavor.spec.get("nodeLabels", {}), spec.get("nodeSelector", {})
        if all(labels.get(name, value) == value for name, value in wanted.items()) and all(
            any(_tolerates(toleration, taint) for toleration in spec.get("tolerations", []))
            for taint in flavor.spec.get("nodeTaints", [])
        ):
            return flavor.name
    return None


def _tolerates(toleration: dict[str, str], taint: dict[str, str]) -> bool:
    if toleration.get("key") not in (None, taint["key"]) or toleration.get("effect") not in (None, taint["effect"]):
        return False
    return toleration.get("operator") == "Exists" or toleration.get("value") == taint.get("value")


def _flavors(queue: Manifest, known: dict[tuple[str, str], Manifest]) -> Iterator[str]:
    for group in queue.spec["resourceGroups"]:
        for flavor in group["flavors"]:
            if ("ResourceFlavor", flavor["name"]) not in known:
                yield f"there is no ResourceFlavor {flavor['name']}"
            if [r["name"] for r in flavor["resources"]] != group["coveredResources"]:
                yield f"flavor {flavor['name']}: its resources are not coveredResources, in their order"
