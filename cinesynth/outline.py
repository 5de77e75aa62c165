"""What a job would do, as `dry_run=true` prints it: inputs, work, resources. Nothing is started or written for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cinesynth.config import JobConfig
from cinesynth.pool import Pool
from cinesynth.runs import CUT, FAILED, Run

Facts = list[tuple[str, str]]
"""(name, value), in the order in which they are read."""


@dataclass(frozen=True)
class Outline:
    """The answer of `dry_run=true`.

    Attributes:
        title: the job and its run.
        state: whether the run is new, continues or is complete.
        inputs: what is read.
        work: what would be done.
        resources: what it would be done with.
    """

    title: str
    state: str
    inputs: Facts = field(default_factory=list)
    work: Facts = field(default_factory=list)
    resources: Facts = field(default_factory=list)

    def text(self) -> str:
        """A readable block of lines."""
        parts = {"inputs": self.inputs, "work": self.work, "resources": self.resources}
        width = max((len(name) for facts in parts.values() for name, _ in facts), default=0)
        lines = [f"{self.title}: {self.state}"]
        for part, facts in parts.items():
            if facts:
                lines += [f"  {part}", *(f"    {name:<{width}}  {value}" for name, value in facts)]
        return "\n".join(lines)


def state_of(config: JobConfig, inputs: dict[str, str] | None) -> str:
    """What the command finds under its run's name.

    Args:
        config: of the job.
        inputs: as `Run.open` gets them; None where they are known only when the job reads them.

    Raises IdentityError when another run has the name.
    """
    run = Run.at(config, inputs)
    if not run.folder.exists("run.json"):
        return "new"
    run.check(config, with_inputs=inputs is not None)
    if inputs is None:
        return "there already; it is done again only where its inputs changed"
    if run.result() is not None:
        return "complete; nothing would be done again"
    ended = run.folder.read_json("result.json") if run.folder.exists("result.json") else {}
    if ended.get("status") in (FAILED, CUT):
        return f"continues; the last attempt ended {ended['status']}: {ended.get('reason', 'no reason was recorded')}"
    return "continues"


def cluster_of(config: JobConfig) -> tuple[str, str]:
    """The fact that names the Ray cluster."""
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    return "Ray", "a private one on this machine" if address == "local" else address or "no address is known"


def worker_fact(workers: int, cpus: float, gpus: float, pool: Pool) -> tuple[str, str]:
    """The fact that says how many workers of which size a job takes, and on which nodes."""
    each = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    return "workers", f"{workers} of {each} each" + (f", on {pool.told()}" if pool.told() else "")


def sized(n: int, noun: str) -> str:
    """`1 window`, `2 windows`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
