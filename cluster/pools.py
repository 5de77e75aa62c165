"""The node pools of every cluster file here: KubeRay, `ray up` on AWS and GCP, and Slurm; their names stand only here.

A node says which pool it is of by the label `cinesynth.io/pool`, and a job's configuration asks for nodes by it:
`resources: {labels: {cinesynth.io/pool: a100}}`. Tests hold manifests, scripts and configurations to this table.

    python -m cluster.pools             # the table, as docs/clusters.md has it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

POOL_LABEL = "cinesynth.io/pool"
"""Label of a node: the name of its pool."""
ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""Ray's own label of a node's GPU. Ray finds `A100` by itself, whatever its memory: manifests say `A100-80G`."""
MARKET_LABEL = "ray.io/market-type"
"""Ray's own label: `spot` for a node that the cloud may take back, else `on-demand`."""
LABELS = (POOL_LABEL, ACCELERATOR_LABEL, MARKET_LABEL)

Market = Literal["on-demand", "spot"]
Cloud = Literal["aws", "gcp"]
Work = Literal["read footage", "encode", "train", "generate", "evaluate", "serve"]
A100_80G = "A100-80G"
"""As `ray.util.accelerators` names it, and `resources.accelerator` in configurations."""


@dataclass(frozen=True)
class Machine:
    """A machine type of a cloud: its name there, vCPUs, GPUs and memory in GiB (not a pod's share of them)."""

    name: str
    cpus: int
    gpus: int
    memory_gib: int


@dataclass(frozen=True)
class NodePool:
    """Nodes of one kind.

    Attributes:
        name: value of the label `cinesynth.io/pool`.
        takes: kinds of work that the shipped configurations send there; none on the head.
        machines: machine type on each cloud. Sizes: https://aws.amazon.com/ec2/instance-types/ and
            https://cloud.google.com/compute/docs/machine-resource.
        accelerator: GPU of its nodes; none has only CPUs.
        market: spot nodes go away with two minutes' notice on AWS, and 30 seconds' on GCP.
    """

    name: str
    takes: tuple[Work, ...]
    machines: dict[Cloud, Machine]
    accelerator: str | None = None
    market: Market = "on-demand"

    @property
    def labels(self) -> dict[str, str]:
        """Labels of each of its nodes."""
        found = {POOL_LABEL: self.name, MARKET_LABEL: self.market}
        return found | {ACCELERATOR_LABEL: self.accelerator} if self.accelerator else found

    @property
    def resources(self) -> dict[str, int]:
        """Custom resources of each of its nodes: Ray schedules `accelerator_type=` by this one."""
        return {f"accelerator_type:{self.accelerator}": 1} if self.accelerator else {}


_A100: dict[Cloud, Machine] = {
    "aws": Machine("p4de.24xlarge", 96, 8, 1152),
    "gcp": Machine("a2-ultragpu-8g", 96, 8, 1360),
}
POOLS = {
    pool.name: pool
    for pool in (
        NodePool("head", (), {"aws": Machine("m6i.2xlarge", 8, 0, 32), "gcp": Machine("n2-standard-8", 8, 0, 32)}),
        NodePool(
            "data",
            ("read footage",),
            {"aws": Machine("m6i.8xlarge", 32, 0, 128), "gcp": Machine("n2-standard-32", 32, 0, 128)},
        ),
        NodePool("a100", ("encode", "train", "generate", "evaluate", "serve"), _A100, A100_80G),
        # What runs here goes on from its last checkpoint or state. A video that somebody waits for does not run here.
        NodePool("a100-spot", ("encode", "train", "generate", "evaluate"), _A100, A100_80G, "spot"),
    )
}
"""By name."""


def table() -> str:
    """The pools in Markdown."""
    rows = ["| pool | GPUs | market | work | AWS | GCP |", "| --- | --- | --- | --- | --- | --- |"]
    for pool in POOLS.values():
        aws, gcp = pool.machines["aws"], pool.machines["gcp"]
        gpus = f"{aws.gpus} x {pool.accelerator}" if pool.accelerator else "none"
        work = ", ".join(pool.takes) or "none"
        rows.append(f"| `{pool.name}` | {gpus} | {pool.market} | {work} | {aws.name} | {gcp.name} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
