"""The Kubernetes manifests are right in themselves, and a slip in any of them is refused."""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cinesynth.errors import ConfigError
from cluster.kuberay import crds
from cluster.kuberay.check import main, problems
from cluster.kuberay.manifests import Manifest, read_manifests
from cluster.kuberay.references import SECRETS, reference_problems
from cluster.kuberay.schema import definitions, schema_problems
from cluster.kuberay.service import service_problems
from tests.conftest import REPOSITORY

MANIFESTS = read_manifests()
SERVICE = next(m for m in MANIFESTS if m.kind == "RayService")
Path_ = tuple[str | int, ...]


def keys(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The place of each key of a document."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        if isinstance(value, dict):
            yield (*path, key)
        yield from keys(part, (*path, key))


def at(document: Any, path: Path_) -> Any:
    for key in path:
        document = document[key]
    return document


def misspelt(document: dict[str, Any], path: Path_) -> dict[str, Any]:
    """The document with the key at a place less one letter."""
    found = copy.deepcopy(document)
    parent = at(found, path[:-1])
    key = str(path[-1])
    parent[key[: len(key) // 2] + key[len(key) // 2 + 1 :] if len(key) > 2 else f"{key}x"] = parent.pop(path[-1])
    return found


def test_the_shipped_manifests_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(MANIFESTS) == []
    main([])
    assert "workloads/train.yaml: RayJob train-wan14b-style\n" in capsys.readouterr().out


def places() -> dict[Path_, tuple[Manifest, Path_]]:
    """Each place of a key, without the numbers of list items, with an example; of pods those of one kind."""
    found: dict[Path_, tuple[Manifest, Path_]] = {}
    for manifest in MANIFESTS:
        for path in keys(manifest.document):
            shape = (manifest.kind, *(part for part in path if isinstance(part, str)))
            found[shape[shape.index("template") :] if "template" in shape[:-1] else shape] = (manifest, path)
    return found


PLACES = places()


@pytest.mark.parametrize("kind", sorted({manifest.kind for manifest, _ in PLACES.values()}))
def test_a_misspelt_key_anywhere_is_refused(kind: str) -> None:
    taken: list[Path_] = []
    for place, (manifest, path) in PLACES.items():
        document = misspelt(manifest.document, path) if manifest.kind == kind else {}
        if document and not schema_problems(document):  # a map that the schema leaves open
            those = [Manifest(m.path, document) if m is manifest else m for m in MANIFESTS]
            if not reference_problems(those):
                taken.append(place)
    assert taken == []


def test_the_page_says_how_each_secret_is_made() -> None:
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    made = re.findall(r"create secret generic (\S+) --from-(?:literal|file)=([\w.]+)", page)
    assert dict(made) == SECRETS


def test_every_object_of_the_schemas_refuses_unknown_fields() -> None:
    def objects(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            if isinstance(value.get("properties"), dict) and value.get("type") == "object":
                yield value
            for part in value.values():
                yield from objects(part)
        elif isinstance(value, list):
            for part in value:
                yield from objects(part)

    found = [one for definition in definitions().values() for one in objects(definition)]
    assert len(found) > 2000
    assert all(one["additionalProperties"] is False for one in found)


def test_the_schemas_are_those_of_whole_crds() -> None:
    """A field that no manifest uses is known, a map takes any key, and a port is a number or a name."""
    pod = definitions()["RayCluster"]["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
    spec = pod["properties"]["spec"]["properties"]
    assert {"affinity", "ephemeralContainers", "topologySpreadConstraints"} <= set(spec)
    assert spec["nodeSelector"]["additionalProperties"] == {"type": "string"}
    port = spec["containers"]["items"]["properties"]["readinessProbe"]["properties"]["httpGet"]["properties"]["port"]
    assert port["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    assert {"deletionStrategy", "submitterConfig"} <= set(definitions()["RayJob"]["properties"]["spec"]["properties"])


def test_a_schema_is_taken_out_of_a_crd(tmp_path: Path) -> None:
    fields = {
        "description": {"description": "of the field", "type": "string"},
        "items": {"type": "array", "items": {"description": "one", "type": "string"}},
        "map": {"type": "object", "additionalProperties": {"description": "a value", "type": "string"}},
    }
    schema = {"type": "object", "description": "A thing.", "properties": {**fields, "status": {"type": "object"}}}
    versions = [
        {"name": "v1alpha1", "served": False, "schema": {"openAPIV3Schema": {}}},
        {"name": "v1", "served": True, "schema": {"openAPIV3Schema": schema}},
    ]
    crd = {"metadata": {"name": "things"}, "spec": {"names": {"kind": "Thing"}, "versions": versions}}
    source, target = tmp_path / "crd.yaml", tmp_path / "things.json.gz"
    source.write_text(yaml.safe_dump(crd))
    crds.main(["v1", str(target), str(source)])
    assert json.loads(gzip.decompress(target.read_bytes()))["$defs"]["Thing"] == {
        "type": "object",
        "properties": {
            "description": {"type": "string"},
            "items": {"type": "array", "items": {"type": "string"}},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    }
    with pytest.raises(ValueError, match="does not serve v1alpha1"):
        crds.crd_schema(crd, "v1alpha1")


def test_a_misspelt_key_anywhere_in_the_service_is_refused() -> None:
    config = yaml.safe_load(SERVICE.spec["serveConfigV2"])
    (worker,) = SERVICE.cluster_spec["workerGroupSpecs"]
    nodes = [(worker["labels"], float(worker["resources"]["GPU"]))]
    assert service_problems(yaml.safe_dump(config), nodes) == []
    assert [path for path in keys(config) if not service_problems(yaml.safe_dump(misspelt(config, path)), nodes)] == []
    spot = [({**worker["labels"], "cinesynth.io/pool": "a100-spot"}, 8.0)]
    assert "no worker group has the labels" in service_problems(yaml.safe_dump(config), spot)[0]
    assert "no worker group has the labels" in service_problems(yaml.safe_dump(config), [(worker["labels"], 2.0)])[0]
    assert (
        "prxy_location: unknown field" in service_problems(yaml.safe_dump({**config, "prxy_location": "x"}), nodes)[0]
    )


@pytest.mark.parametrize(
    ("name", "place", "value", "told"),
    [
        ("cinesynth", "spec headGroupSpec rayStartParams num-cpus", 0, "0 is not of type 'string'"),
        ("cinesynth", "spec autoscalerOptions version", "v3", "'v3' is not one of"),
        ("cinesynth", "spec autoscalerOptions version", "v1", "v1 knows no labels"),
        ("cinesynth", "spec autoscalerOptions idleTimeoutSeconds", "300", "is not of type 'integer'"),
        ("cinesynth", "spec authOptions mode", "disabled", "whoever reaches a port runs code"),
        ("cinesynth", "spec authOptions secretName", "token", "there is no secret token"),
        ("cinesynth", "spec gcsFaultToleranceOptions redisPassword valueFrom secretKeyRef key", "pass", "not pass"),
        ("cinesynth", "spec headGroupSpec rayStartParams", {"num-cpu": "0"}, "no option --num-cpu"),
        ("cinesynth", "spec headGroupSpec rayStartParams", {"num-cpus": "4"}, "work would be put on the head"),
        ("cinesynth", "spec workerGroupSpecs 1 rayStartParams", {"num-gpus": "8"}, "KubeRay takes one of them"),
        ("cinesynth", "spec workerGroupSpecs 1 rayStartParams", {"labels": "a=b"}, "refused by KubeRay"),
        ("cinesynth", "spec workerGroupSpecs 1 resources GPU", "4", "its pod requests 8"),
        ("cinesynth", "spec workerGroupSpecs 1 labels cinesynth.io/pool", "data", "of two pools"),
        ("cinesynth", "spec workerGroupSpecs 1 labels ray.io/accelerator-type", "A100", "name the same GPU"),
        ("cinesynth", "spec workerGroupSpecs 1 labels cinesynth.io/pool", "a100 spot", "does not match"),
        ("cinesynth", "spec workerGroupSpecs 0 template spec volumes 0 name", "store", "mounts storage"),
        (
            "cinesynth",
            "spec workerGroupSpecs 0 template spec volumes 0 persistentVolumeClaim claimName",
            "shared",
            "there is no PersistentVolumeClaim shared",
        ),
        ("cinesynth", "spec workerGroupSpecs 0 template spec containers 0 resources limits memory", "110GB", "110GB"),
        ("train-wan14b-style", "metadata labels", {"kueue.x-k8s.io/queue-name": "trainig"}, "no LocalQueue trainig"),
        ("train-wan14b-style", "metadata labels", {}, "it starts at once, beside all quotas"),
        (
            "train-wan14b-style",
            "metadata labels kueue.x-k8s.io/priority-class",
            "high",
            "no WorkloadPriorityClass high",
        ),
        ("train-wan14b-style", "spec rayClusterSpec enableInTreeAutoscaling", True, "cluster that scales itself"),
        ("train-wan14b-style", "spec shutdownAfterJobFinishes", False, "shutdownAfterJobFinishes: true"),
        ("train-wan14b-style", "spec submissionMode", "K8sJob", "is not one of"),
        ("train-wan14b-style", "spec rayClusterSpec workerGroupSpecs 0 maxReplicas", 5, "nvidia.com/gpu of"),
        (
            "train-wan14b-style",
            "spec rayClusterSpec workerGroupSpecs 0 template spec tolerations",
            [],
            "no flavor of cinesynth-training takes",
        ),
        ("serving", "spec clusterQueue", "cinesynth-serve", "there is no ClusterQueue cinesynth-serve"),
        ("cinesynth-training", "spec resourceGroups 0 flavors 2 name", "spot", "there is no ResourceFlavor spot"),
        ("cinesynth-training", "spec resourceGroups 0 coveredResources", ["cpu"], "are not coveredResources"),
        ("serve-from-ingress", "spec podSelector matchLabels app.kubernetes.io/component", "server", "no pod here has"),
        ("cinesynth-serve", "spec upgradeStrategy type", None, "is not of type 'string'"),
        ("cinesynth-serve", "spec upgradeStrategy type", "Recreate", "is not one of NewCluster"),
        ("cinesynth-serve", "spec rayClusterConfig upgradeStrategy", {"type": "None"}, "that a RayService makes"),
        ("cinesynth-serve", "metadata name", "cinesynth." * 3, "not a-z, 0-9"),
        ("cinesynth", "spec tlsOptions", {}, "unless a feature gate is on"),
        ("cinesynth", "spec gcsFaultToleranceOptions redisAddress", None, "is not of type 'string'"),
        ("cinesynth", "spec workerGroupSpecs 0 minReplicas", 3, "is not from 0 to maxReplicas 2"),
        ("cinesynth", "spec workerGroupSpecs 0 template spec restartPolicy", "Always", "wants Never"),
        ("cinesynth", "spec workerGroupSpecs 0 template spec containers 0 ports 0 containerPort", "x", "'integer'"),
        ("train-wan14b-style", "spec backoffLimit", -1, "backoffLimit: negative"),
        ("train-wan14b-style", "spec rayClusterSpec workerGroupSpecs 0 idleTimeoutSeconds", 9, "only with"),
        ("cinesynth-training", "spec cohortName", "Cinesynth", "does not match"),
        ("cinesynth-training", "spec preemption reclaimWithinCohort", "Always", "is not one of"),
    ],
)
def test_a_wrong_value_is_told(name: str, place: str, value: Any, told: str) -> None:
    kinds = ("RayCluster", "ClusterQueue", "LocalQueue", "NetworkPolicy", "RayJob", "RayService")
    manifest = next(m for m in MANIFESTS if m.name == name and m.kind in kinds)
    document = copy.deepcopy(manifest.document)
    *parents, last = [int(part) if part.isdecimal() else part for part in place.split(" ")]
    at(document, tuple(parents))[last] = value
    found = problems([Manifest(m.path, document) if m is manifest else m for m in MANIFESTS])
    assert any(told in line for line in found), found


def test_a_file_that_is_no_set_of_manifests_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    for text, told in (("a: 1\na: 2", "'a' is given twice"), ("- a", "is no manifest"), ("a: [", "expected")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=told):
            read_manifests([file])
    file.write_text("apiVersion: ray.io/v1alpha1\nkind: RayCluster\nmetadata: {name: a}\n")
    with pytest.raises(SystemExit) as ended:
        main([str(file)])
    assert ended.value.code == 2
    assert "'RayCluster' of apiVersion 'ray.io/v1alpha1' is not known here" in capsys.readouterr().err


def test_a_pool_has_the_same_pods_wherever_it_is_used() -> None:
    pods: dict[str, list[Any]] = {}
    for manifest in (m for m in MANIFESTS if m.kind in ("RayCluster", "RayJob")):
        for name, _, group in manifest.groups():
            template = copy.deepcopy(group["template"])
            if name == "head":  # the autoscaler beside the shared cluster's head speaks to Kubernetes
                assert template["spec"].pop("automountServiceAccountToken", True) is (manifest.kind == "RayCluster")
            pods.setdefault(name, []).append([template, group.get("resources"), group["labels"]])
    assert sorted(pods) == ["a100", "a100-spot", "data", "head"]
    for name, those in pods.items():
        assert len(those) > 1
        assert all(one == those[0] for one in those), name
    spot = yaml.safe_load(yaml.safe_dump(pods["a100-spot"][0][0]).replace("a100-spot", "a100"))
    assert spot == pods["a100"][0][0]
