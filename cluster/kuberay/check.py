"""Check manifests without a cluster: `python -m cluster.kuberay.check`, before `kubectl apply`.

Unknown fields, names that nobody defines, quotas that never hold a workload, and the service's configuration.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cinesynth.errors import CinesynthError, ConfigError
from cluster.kuberay.manifests import Manifest, read_manifests
from cluster.kuberay.references import reference_problems
from cluster.kuberay.schema import schema_problems
from cluster.kuberay.service import service_problems


def problems(manifests: list[Manifest]) -> list[str]:
    """All that is wrong with a set of manifests: a line each. References are looked at where all shapes are right."""
    found = [
        f"{manifest.path.name}: {manifest.kind} {manifest.name}: {line}"
        for manifest in manifests
        for line in schema_problems(manifest.document)
    ]
    if found:
        return found
    for manifest in manifests:
        if manifest.kind == "RayService":
            workers = [group for name, _, group in manifest.groups() if name != "head"]
            nodes = [(group.get("labels", {}), float(group.get("resources", {}).get("GPU", 0))) for group in workers]
            lines = service_problems(manifest.spec.get("serveConfigV2", ""), nodes)
            found += [f"{manifest.path.name}: {manifest.kind} {manifest.name}: {line}" for line in lines]
    return found + reference_problems(manifests)


def main(argv: list[str] | None = None) -> None:
    """Check files. Exit code 2: something is wrong, and stderr says what."""
    parser = argparse.ArgumentParser(prog="python -m cluster.kuberay.check", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="all manifests of a cluster; default: the shipped ones")
    arguments = parser.parse_args(argv)
    try:
        manifests = read_manifests(arguments.files)
        if found := problems(manifests):
            raise ConfigError("\n".join(found))
    except CinesynthError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    for manifest in manifests:
        print(f"{manifest.path.parent.name}/{manifest.path.name}: {manifest.kind} {manifest.name}")
    print(f"{len(manifests)} manifests are right in themselves; no cluster was asked")


if __name__ == "__main__":
    main()
