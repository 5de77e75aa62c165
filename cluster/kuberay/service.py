"""`serveConfigV2` of a RayService: a text to Kubernetes, and Serve itself takes unknown keys. Here both are strict."""

from __future__ import annotations

from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from cinesynth.errors import ConfigError
from cinesynth.settings import parse_config
from serve.config import ServeConfig

IMPORT_PATH = "serve.app:build"


def service_problems(text: str, nodes: list[tuple[dict[str, str], float]]) -> list[str]:
    """What is wrong with a `serveConfigV2`: a line each; empty where nothing is.

    Args:
        text: the configuration, YAML.
        nodes: labels and GPUs of a node of each worker group.
    """
    try:
        config = yaml.safe_load(text)
        ServeDeploySchema.model_validate(config)
    except yaml.YAMLError as e:
        return [f"serveConfigV2: {' '.join(str(e).split())}"]
    except ValidationError as e:
        return [f"serveConfigV2.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in e.errors()]
    problems = [f"serveConfigV2.{line}" for line in _unknown(ServeDeploySchema, config, "")]
    for place, application in enumerate(config["applications"]):
        where = f"serveConfigV2.applications.{place}"
        if application["import_path"] != IMPORT_PATH:
            problems.append(f"{where}.import_path: {application['import_path']!r}; the service's is {IMPORT_PATH}")
            continue
        try:
            group = parse_config(ServeConfig, application.get("args", {}), f"{where}.args").engine.group
        except ConfigError as e:
            problems.append(str(e))
            continue
        if not any(group.pool.takes(labels) and gpus >= group.ranks * group.gpus_per_rank for labels, gpus in nodes):
            problems.append(
                f"{where}.args.engine.group: no worker group has the labels {group.pool.labels} and "
                f"{group.ranks * group.gpus_per_rank} GPUs a node"
            )
    return problems


def _unknown(model: type[BaseModel], value: Any, prefix: str) -> list[str]:
    """The keys of a mapping that its model does not have, at any depth."""
    if not isinstance(value, dict):
        return []
    found = []
    for name, part in value.items():
        field = model.model_fields.get(name)
        if field is None:
            found.append(f"{prefix}{name}: unknown field; known are {', '.join(sorted(model.model_fields))}")
            continue
        for inner in _models(field.annotation):
            parts = part if isinstance(part, list) else [part]
            places = [f"{prefix}{name}.{place}." for place in range(len(parts))] if isinstance(part, list) else None
            for place, item in enumerate(parts):
                found += _unknown(inner, item, places[place] if places else f"{prefix}{name}.")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
