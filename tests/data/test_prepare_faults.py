"""What kills, a full disk and a second writer leave of a dataset that is being prepared."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from cinesynth.data.check import check_dataset
from cinesynth.data.dataset import ClipsDataset, pixels_file
from cinesynth.data.encode.assemble import facts_of
from cinesynth.data.encode.commits import Commits
from cinesynth.data.prepare import prepare, publish
from cinesynth.data.records import read_plan, read_rejects, row_id, write_plan
from cinesynth.data.video import read_video, write_video
from cinesynth.errors import DatasetError, RunTaken, StorageError
from cinesynth.lease import held
from cinesynth.runs import Run
from cinesynth.storage import Storage, sha256_file
from tests.data.preparing import RESOURCES, location, prepare_config
from tests.small_disk import fill, resize, small_disk
from tests.tiny_dataset import decoded, encoded_dataset


def test_an_interrupted_run_encodes_only_what_no_commit_holds(
    footage: Path, prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill leaves it: some commits, a shard that no commit names, no manifest, no result. In two graphs."""
    whole, result = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    dataset = storage / "datasets" / "clips"
    commits = sorted((dataset / "commits").iterdir())
    for path in [*commits[1:], dataset / "manifest.json", storage / "runs/clips/result.json"]:
        path.unlink()
    (dataset / "shards" / "lost.parquet").write_bytes(b"of no commit")
    kept = Commits(Storage.open(dataset))
    surviving = next(iter(kept))["shard"]["file"]
    mark = (dataset / surviving).stat().st_mtime_ns
    half = (result["figures"]["windows"] - len(kept.done)) // 2 + 1
    monkeypatch.setattr("cinesynth.data.prepare._AT_ONCE", half)
    continued = prepare(prepare_config(footage, storage))
    assert (dataset / surviving).stat().st_mtime_ns == mark
    opened = ClipsDataset.open(Storage.open(dataset))
    assert {path.name for path in (dataset / "shards").iterdir()} == {
        Path(shard["file"]).name for shard in opened.manifest["shards"]
    }, "shards of no commit are removed"
    again = sum(len(commit["rows"]) for commit in Commits(Storage.open(dataset))) - len(kept.done)
    assert again == result["figures"]["windows"] - len(kept.done)
    # Neither the interruption, nor the workers, nor the size of shards show in the content.
    assert continued["outputs"]["manifest_sha256"] == result["outputs"]["manifest_sha256"]


@pytest.mark.slow
def test_kill_of_the_driver_loses_and_doubles_nothing(
    footage: Path, prepared: Any, tmp_path: Path, ray_head: Any
) -> None:
    """SIGKILL once the first commit is there, then the same command. What comes before encoding is there already."""
    whole, result = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    for name in ("manifest.json", "commits", "shards", "index", "pixels", "history"):
        path = storage / "datasets/clips" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (storage / "runs/clips/result.json").unlink()
    config = tmp_path / "prepare.yaml"
    values = prepare_config(footage, storage, shard_mb=0.02, shard_s=0.2).model_dump(mode="json")
    config.write_text(yaml.safe_dump(values | {"ray": {"address": ray_head.address}}))
    command = [sys.executable, "-m", "jobs.prepare", "--config", str(config)]
    root = Path(__file__).resolve().parents[2]
    commits = storage / "datasets/clips/commits"
    log = tmp_path / "killed.log"
    with open(log, "w") as output, subprocess.Popen(command, cwd=root, stdout=output, stderr=output) as process:
        deadline = time.monotonic() + 200
        while not any(commits.glob("0*.json")):
            late = time.monotonic() > deadline
            if late or process.poll() is not None:
                process.kill()
                pytest.fail(f"no commit {'after 200 s' if late else 'at its end'}:\n{log.read_text()}")
            time.sleep(0.02)
        process.kill()
    assert not (storage / "datasets/clips/manifest.json").exists()
    committed = [json.loads(path.read_text()) for path in commits.glob("0*.json")]
    kept = {name: (storage / "datasets/clips" / name).stat().st_mtime_ns for name in _shards(committed)}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = ClipsDataset.open(Storage.open(storage / "datasets/clips"))
    assert dataset.manifest_sha256 == result["outputs"]["manifest_sha256"]
    assert sum(shard["rows"] for shard in dataset.manifest["shards"]) == result["figures"]["windows"]
    assert kept
    assert {name: (storage / "datasets/clips" / name).stat().st_mtime_ns for name in kept} == kept


def _shards(commits: list[dict[str, Any]]) -> list[str]:
    return [commit["shard"]["file"] for commit in commits if "shard" in commit]


def test_a_file_that_is_replaced_before_it_was_encoded_leaves_no_window(
    footage: Path, prepared: Any, tmp_path: Path
) -> None:
    """What was planned of it is gone; the rest, and what is encoded already, stays."""
    storage = Path(shutil.copytree(prepared[0], tmp_path / "storage"))
    other = Path(shutil.copytree(footage, tmp_path / "footage"))
    names = {w.window_id: Path(w.source_uri).name for w in read_plan(location(storage))}
    places = {row_id(w.window_id, w.caption): w.window_id for w in read_plan(location(storage))}
    for path in sorted((storage / "datasets/clips/commits").iterdir()):
        rows = {names[places[row["row_id"]]] for row in json.loads(path.read_text())["rows"]}
        if "portrait.mp4" in rows:
            path.unlink()
    for name in ("datasets/clips/manifest.json", "runs/clips/result.json"):
        (storage / name).unlink()
    frames, fps = read_video(other / "portrait.mp4")
    write_video(other / "portrait.mp4", frames[:, ::-1], fps=fps)
    result = prepare(prepare_config(other, storage))
    dataset = ClipsDataset.open(location(storage))
    rejects = [row for row in read_rejects(dataset.storage) if row.reason == "gone"]
    assert {Path(reject.source).name for reject in rejects} == {"portrait.mp4"}
    shas = {Path(w.source_uri).name: w.source_sha256 for w in dataset.windows()}
    assert shas["portrait.mp4"] == sha256_file(other / "portrait.mp4")
    assert result["figures"]["windows"] == prepared[1]["figures"]["windows"], "it is cut as the one before was"
    assert check_dataset(dataset.storage)[1] == []


def test_a_commit_that_another_run_writes_over_is_found_out(tmp_path: Path) -> None:
    """As it goes on an object store, which has no exclusive create."""
    storage = Storage.open(tmp_path)
    ours = Commits(storage)
    commit: dict[str, Any] = {"rejected": {}, "rows": [], "cpu_s": {}}
    ours.add(commit)
    storage.write_json("commits/000000.json", commit | {"by": "another"})
    with pytest.raises(DatasetError, match="another run of prepare writes"):
        ours.add(commit)


def test_two_runs_that_write_one_dataset_find_each_other_out(tmp_path: Path) -> None:
    ours, theirs = (Commits(Storage.open(tmp_path)) for _ in range(2))
    commit: dict[str, Any] = {"rejected": {}, "rows": [], "cpu_s": {}}
    ours.add(commit)
    with pytest.raises(DatasetError, match=r"another run of prepare writes .* at the same time"):
        theirs.add(commit)
    ours.add(commit)
    assert len(list(Commits(Storage.open(tmp_path)))) == 2


def test_a_run_without_a_commit_of_its_own_finds_those_of_another(tmp_path: Path) -> None:
    ours, theirs = (Commits(Storage.open(tmp_path)) for _ in range(2))
    theirs.add({"rejected": {}, "rows": [], "cpu_s": {}})
    with pytest.raises(DatasetError, match="another run of prepare writes"):
        ours.verify()
    theirs.verify()


def test_a_run_that_was_taken_over_commits_nothing_more(tmp_path: Path) -> None:
    def taken_over() -> None:
        raise RunTaken("another driver took it over")

    storage = Storage.open(tmp_path)
    with pytest.raises(RunTaken):
        Commits(storage, taken_over).add({"rejected": {}, "rows": [], "cpu_s": {}})
    assert list(Commits(storage)) == []


def test_a_second_run_of_a_name_is_refused_before_it_touches_the_dataset(
    small_footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    config = prepare_config(small_footage, tmp_path)
    taken = pytest.raises(RunTaken, match=r"'clips' is being worked on by process \d+ on .*, since 20")
    with held(Run.at(config), beat_s=0.05), taken:
        prepare(config)
    assert not (tmp_path / "datasets").exists()
    assert not (tmp_path / "runs/clips/result.json").exists(), "how it ends is for the first to say"


def test_a_source_that_is_withdrawn_during_a_run_leaves_no_pixels(tmp_path: Path, monkeypatch: Any) -> None:
    """One before its windows are encoded, another while the dataset is assembled."""
    storage = Storage.open(tmp_path)
    dataset = storage.child("datasets", "d")
    encoded_dataset(dataset, "nano", ["val", "test", "test", "train"])
    windows, _ = decoded(["val", "test", "test", "train"])
    write_plan(dataset, "i", windows)
    for window in windows[:3]:
        dataset.write_bytes(pixels_file(window.window_id), b"frames")

    def withdrawn_now(sha256: str) -> None:
        dataset.write_json(f"withdrawn/{sha256}.json", {"sha256": sha256, "uri": "/a.mp4", "at": "now"})

    monkeypatch.setattr("cinesynth.data.prepare.write_dataset_page", lambda *_: withdrawn_now(windows[1].source_sha256))
    withdrawn_now(windows[0].source_sha256)
    manifest = publish(dataset, facts_of(dataset.read_json("manifest.json")), [], Commits(dataset))
    assert dataset.list("pixels") == [pixels_file(windows[2].window_id)]
    assert manifest["windows"] == 2
    assert manifest["withdrawn"] == [w.source_sha256 for w in windows[:2]]


@pytest.mark.slow
def test_four_nodes_of_which_one_dies_and_a_worker_make_the_same_dataset(
    footage: Path, prepared: Any, tmp_path: Path, ray_head: Any
) -> None:
    """SIGKILL of a process that encodes latents at the first commit, and of a node at the third.

    The same ids, splits and scores; latents within one step of fp16, as threads may add up in another order.
    """
    _, alone = prepared
    nodes = [ray_head.cluster.add_node(num_cpus=2) for _ in range(3)]
    storage = tmp_path / "storage"
    commits = storage / "datasets/clips/commits"
    killed: list[int] = []
    over = threading.Event()

    def commits_are(count: int) -> bool:
        while len(list(commits.glob("0*.json"))) < count:
            if over.wait(0.02):
                return False
        return True

    def kill() -> None:
        if commits_are(1):
            workers = psutil.Process().children(recursive=True)
            victim = next(p for p in workers if "EncodeLatents" in " ".join(p.cmdline()))
            victim.kill()
            killed.append(victim.pid)
        if commits_are(3):
            ray_head.cluster.remove_node(nodes.pop(0), allow_graceful=False)
            killed.append(0)

    killer = threading.Thread(target=kill)
    try:
        killer.start()
        resources = RESOURCES | {"vae": {"workers": 3, "cpus": 1.0}}
        result = prepare(prepare_config(footage, storage, resources=resources, shard_mb=0.01, shard_s=0.2))
    finally:
        over.set()
        killer.join()
        for node in nodes:
            ray_head.cluster.remove_node(node)
    assert len(killed) == 2
    rows = [row["row_id"] for commit in Commits(location(storage)) for row in commit["rows"]]
    assert len(rows) == len(set(rows)) == result["figures"]["windows"]
    whole, spread = (ClipsDataset.open(location(place)) for place in (prepared[0], storage))
    facts = [[(w.window_id, w.split, w.group, w.scores, w.caption) for w in d.windows()] for d in (whole, spread)]
    assert facts[0] == facts[1]
    assert check_dataset(spread.storage)[1] == []
    assert result["figures"]["windows"] == alone["figures"]["windows"]
    staged = [d.stage(tmp_path / name, "test") for name, d in (("a", whole), ("b", spread))]
    for i in range(len(staged[0])):
        ours, theirs = (s[i]["latents"] for s in staged)
        step = torch.nextafter(ours.abs(), torch.tensor(torch.inf, dtype=torch.half)) - ours.abs()
        assert ((ours - theirs).abs() <= step).all()


@pytest.mark.slow
def test_a_disk_that_fills_up_is_an_error_and_the_dataset_stays_valid(
    footage: Path, prepared: Any, tmp_path: Path, ray_head: Any
) -> None:
    few = [{"path": str(footage / "scripted-000[01].mp4"), "domain": "scripted"}]
    with small_disk(tmp_path / "small", "600k") as disk:
        with pytest.raises(StorageError, match=r"No space left on device while preparing 'clips'"):
            prepare(prepare_config(footage, disk))
        assert not (disk / "datasets/clips/manifest.json").exists()
        resize(disk, "64m")
        started = prepare(prepare_config(footage, disk, footage=few))
        # Now it fills up while a dataset that is complete grows: readers go on with what they had.
        fill(disk, 8192)
        with pytest.raises(StorageError, match=r"No space left on device while preparing 'clips'"):
            prepare(prepare_config(footage, disk))
        assert ClipsDataset.open(location(disk)).manifest_sha256 == started["outputs"]["manifest_sha256"]
        assert check_dataset(location(disk))[1] == []
