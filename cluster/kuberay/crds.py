"""The schemas of KubeRay and Kueue, out of their CRDs. schemas/README.md has the commands.

python -m cluster.kuberay.crds VERSION SCHEMAS.json.gz CRD.yaml ...
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import yaml


def crd_schema(crd: dict[str, Any], version: str) -> dict[str, Any]:
    """One version of a CustomResourceDefinition: its OpenAPI v3 schema, without descriptions and `status`.

    Raises ValueError where the CRD does not serve that version.
    """
    for one in crd["spec"]["versions"]:
        if one["name"] == version and one["served"]:
            found: dict[str, Any] = _undescribed(one["schema"]["openAPIV3Schema"])
            found["properties"].pop("status", None)
            return found
    raise ValueError(f"{crd['metadata']['name']} does not serve {version}")


def _undescribed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without descriptions. A field may be called `description`: below `properties`, names are fields."""
    found = {name: part for name, part in schema.items() if name != "description"}
    if "properties" in found:
        found["properties"] = {name: _undescribed(part) for name, part in found["properties"].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(found.get(name), dict):
            found[name] = _undescribed(found[name])
    return found


def main(argv: list[str] | None = None) -> None:
    """Write the schemas of some CRDs: a JSON file, compressed, the same bytes each time."""
    parser = argparse.ArgumentParser(prog="python -m cluster.kuberay.crds", description=__doc__)
    parser.add_argument("version", help="such as v1")
    parser.add_argument("schemas", type=Path, help="the file to write, .json.gz")
    parser.add_argument("crds", nargs="+", type=Path, help="CRDs, a YAML file each")
    arguments = parser.parse_args(argv)
    crds = [yaml.safe_load(path.read_text()) for path in arguments.crds]
    schemas = {crd["spec"]["names"]["kind"]: crd_schema(crd, arguments.version) for crd in crds}
    text = json.dumps({"$defs": schemas}, sort_keys=True, separators=(",", ":"))
    arguments.schemas.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
