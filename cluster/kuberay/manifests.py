"""The manifests of this folder, read strictly, and the parts of them that refer to others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cinesynth.errors import ConfigError

FOLDER = Path(__file__).parent
RAY_KINDS = ("RayCluster", "RayJob", "RayService")
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, as it is for `kubectl`."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@dataclass(frozen=True)
class Manifest:
    """One document of a file."""

    path: Path
    document: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.document.get("kind"))

    @property
    def name(self) -> str:
        return str(self.document.get("metadata", {}).get("name"))

    @property
    def labels(self) -> dict[str, str]:
        found: dict[str, str] = self.document["metadata"].get("labels", {})
        return found

    @property
    def spec(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document["spec"]
        return found

    @property
    def cluster_spec(self) -> dict[str, Any]:
        """The Ray cluster of a RayCluster, RayJob or RayService."""
        field = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(self.kind)
        found: dict[str, Any] = self.spec[field] if field else self.spec
        return found

    def groups(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Each group of pods of its Ray cluster: name, pods at most, and its specification; the head first."""
        yield "head", 1, self.cluster_spec["headGroupSpec"]
        for group in self.cluster_spec.get("workerGroupSpecs", []):
            yield group["groupName"], group["maxReplicas"], group

    def pod_specs(self) -> Iterator[dict[str, Any]]:
        """The specification of each kind of pod that it makes."""
        if self.kind in RAY_KINDS:
            yield from (group["template"]["spec"] for _, _, group in self.groups())
        elif self.kind in ("StatefulSet", "Deployment"):
            yield self.spec["template"]["spec"]


def read_manifests(paths: list[Path] | None = None) -> list[Manifest]:
    """The documents of some files; default: those of this folder.

    Raises ConfigError for a file that cannot be read, that is no YAML, or in which a key is given twice.
    """
    found = []
    for path in paths or [*sorted(FOLDER.glob("platform/*.yaml")), *sorted(FOLDER.glob("workloads/*.yaml"))]:
        try:
            documents = list(yaml.load_all(path.read_text(), Loader=_StrictLoader))
        except (OSError, yaml.YAMLError) as e:
            raise ConfigError(f"{path}: {' '.join(str(e).split())}") from None
        for place, document in enumerate(documents):
            if not isinstance(document, dict):
                raise ConfigError(f"{path}: document {place} is no manifest: {document!r}")
            found.append(Manifest(path, document))
    return found
