"""The Slurm script, run as it is: only `srun` and `scontrol` are stood in for, on one node.

It ends with `ray stop`, which ends every Ray that it sees: the tests run it where it sees only its own processes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.label_utils import parse_node_labels_string

from cinesynth.data.dataset import ClipsDataset
from cinesynth.data.video import write_video
from cinesynth.storage import Storage
from cluster.pools import POOLS
from tests.conftest import REPOSITORY
from tests.tiny_dataset import picture

SCRIPT = REPOSITORY / "cluster" / "slurm" / "cinesynth.sbatch"
NODE = "10.77.0.1"
"""Address of the one node, in a network of its own."""
STANDS_IN = {
    "srun": f"""#!/bin/sh
# One task, here.
while [ "${{1#--}}" != "$1" ]; do shift; done
if [ "$1" = hostname ]; then echo "{NODE} 10.77.1.1"; else exec "$@"; fi
""",
    "scontrol": """#!/bin/sh
[ "$1 $2" = "show hostnames" ] && echo "$3"
""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of one node without GPUs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STANDS_IN.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
    return environment | {
        "PATH": f"{programs}{os.pathsep}{environment['PATH']}",
        "CINESYNTH_PYTHON": sys.executable,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node-1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "2",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def sbatch(environment: dict[str, str], *arguments: str, alone: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the script; `alone`: among its own processes and ports only."""
    command = ["bash", str(SCRIPT), *arguments]
    if alone:
        apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--net"]
        if os.getuid() != 0:
            apart += ["--user", "--map-root-user"]
        network = f"ip link set lo up && ip addr add {NODE}/32 dev lo && ip route add default dev lo src {NODE}"
        command = [*apart, "sh", "-c", f'{network} && exec "$@"', "sh", *command]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400)


def with_ray(environment: dict[str, str], folder: Path, text: str) -> dict[str, str]:
    """The environment with a program of ours in Ray's place."""
    folder.mkdir()
    for name, script in {"ray": text, "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n'}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return environment | {"CINESYNTH_PYTHON": str(folder / "python")}


def test_shellcheck_finds_nothing() -> None:
    found = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_its_nodes_are_those_of_the_pool() -> None:
    """What the script tells Ray, against the table: on-demand nodes with eight A100s of 80 GB."""
    text = SCRIPT.read_text()
    pool = POOLS["a100"]
    (told,) = re.findall(r"--labels '(.*)'", text)
    assert parse_node_labels_string(told) == pool.labels
    machine = pool.machines["aws"]
    assert '{"accelerator_type:A100-80G": 1}' in text
    assert pool.resources == {"accelerator_type:A100-80G": 1}
    assert f"#SBATCH --gpus-per-node={machine.gpus}\n" in text
    assert f"#SBATCH --cpus-per-task={machine.cpus}\n" in text
    assert "#SBATCH --exclusive\n" in text  # `ray stop` ends every Ray on a node


def test_a_job_that_is_not_there_is_refused_before_anything_starts(slurm: dict[str, str]) -> None:
    done = sbatch(slurm, "trian", "name=x")
    assert done.returncode == 2
    assert "jobs/trian.py is not in" in done.stderr
    none = sbatch(slurm)
    assert none.returncode != 0
    assert "which job?" in none.stderr


def test_the_jobs_end_is_the_scripts(slurm: dict[str, str], tmp_path: Path) -> None:
    at_once = with_ray(slurm, tmp_path / "ray", '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift; "$@"\n')
    done = sbatch(at_once, "prepare", f"storage={tmp_path}", "name=a name", "footage=[{path: /nowhere}]")
    assert done.returncode == 2
    assert "name = 'a name'" in done.stderr  # it came as one argument


def test_a_ray_that_does_not_start_is_a_failure(slurm: dict[str, str], tmp_path: Path) -> None:
    """`ray symmetric-run` ends with 0 then."""
    silent = with_ray(slurm, tmp_path / "ray", "#!/bin/sh\n")
    done = sbatch(silent, "prepare", f"storage={tmp_path}", "name=clips")
    assert done.returncode == 1
    assert "Ray did not start on every node" in done.stderr


@pytest.mark.slow
@pytest.mark.hosts
def test_a_job_runs_on_a_cluster_of_its_own(slurm: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "footage").mkdir()
    write_video(tmp_path / "footage" / "a.mp4", picture(0, 40))
    done = sbatch(
        slurm,
        *("prepare", "--config", "jobs/configs/nano/prepare.yaml", f"storage={tmp_path / 'storage'}", "name=clips"),
        *(f"footage=[{{path: {tmp_path / 'footage'}}}]", "window.max_upscale=2", "shots.detector=none"),
        "resources.labels={cinesynth.io/pool: a100}",
        "resources.decode.labels={cinesynth.io/pool: a100}",
        alone=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prepare clips: complete" in done.stdout
    dataset = ClipsDataset.open(Storage.open(str(tmp_path / "storage")).child("datasets", "clips"))
    assert len(dataset.windows()) == 2  # of 17 frames each, of 40
    assert not Path(f"/tmp/cs-{slurm['SLURM_JOB_ID']}").exists()
