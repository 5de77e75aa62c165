"""A storage folder that version 0.1.0 wrote still opens, and its runs go on. See fixtures/storage_0_1_0/README.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cinesynth.config import EvaluateConfig, GenerateConfig, JobConfig, PrepareConfig, PublishConfig, TrainConfig
from cinesynth.data.check import check_dataset
from cinesynth.data.dataset import ClipsDataset
from cinesynth.data.prepare import prepare
from cinesynth.data.video import read_video
from cinesynth.errors import IdentityError
from cinesynth.generate.driver import generate
from cinesynth.metrics.catalogue import metric_identity
from cinesynth.metrics.record import MetricsRecord
from cinesynth.publish import publish
from cinesynth.registry import Registry
from cinesynth.runs import Run, read_result
from cinesynth.settings import load_config
from cinesynth.storage import Storage
from cinesynth.train.driver import train
from cinesynth.wan.adapter import load_adapters
from cinesynth.wan.card import read_card
from cinesynth.wan.folder import base_hash
from cinesynth.wan.load import load_transformer

FIXTURE = Path(__file__).parent / "fixtures" / "storage_0_1_0"
RECORDED = "/srv/storage"
"""Where the storage folder lay when its runs recorded their outputs."""
WINDOWS = {"train": 1, "val": 2, "test": 1}
JOBS: dict[str, type[JobConfig]] = {
    "prepare": PrepareConfig,
    "style": TrainConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "publish": PublishConfig,
}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """The whole storage folder again, at its new place: what is there twice, or is only looked at, is not kept."""
    root = tmp_path / "storage"
    shutil.copytree(FIXTURE / "storage", root)
    for text in [*root.glob("runs/*/*.json"), *root.glob("runs/*/*.yaml")]:
        text.write_text(text.read_text().replace(RECORDED, str(root)))
    shutil.copytree(root / "datasets/tiny-prepare/pixels", root / "runs/tiny-generate/videos/real")
    version = json.loads((root / "registry/tiny/aliases/latest.json").read_text())["version"]
    published = json.loads((root / f"registry/tiny/versions/{version}.json").read_text())
    shutil.copytree(root / "runs/tiny-style/adapter", root / "registry/tiny/files" / published["sha256"])
    for page in ("runs/tiny-style/report.html", "datasets/tiny-prepare/index.html"):
        (root / page).touch()
    return root


def config_of(storage: Path, step: str, *overrides: str) -> Any:
    """The configuration that a run recorded."""
    return load_config(JOBS[step], str(storage / f"runs/tiny-{step}/config.yaml"), ["ray.address=null", *overrides])


def dataset_of(storage: Path) -> Storage:
    return Storage.open(storage).child("datasets", "tiny-prepare")


def test_the_dataset_opens_with_its_windows_tensors_and_pixels(storage: Path, tmp_path: Path) -> None:
    dataset = ClipsDataset.open(dataset_of(storage))
    assert {split: len(dataset.windows(split)) for split in WINDOWS} == WINDOWS  # type: ignore[arg-type]
    for split in WINDOWS:
        staged = dataset.stage(tmp_path / "staged", split)  # type: ignore[arg-type]
        window = staged.windows[0]
        assert window.caption not in ("", "a video"), "it has the caption beside its file"
        assert (window.bucket, window.num_frames, window.fps) == ("48x32x13", 13, 16)
        assert tuple(staged[0]["latents"].shape) == (16, 4, 4, 6)
        assert staged[0]["condition_latents"].shape[1:] == (4, 4, 6)
        assert staged[0]["prompt_embeds"].shape[1] == dataset.empty_prompt_embeds().shape[1]
    for path in dataset.stage_pixels(tmp_path / "pixels", "val").values():
        assert read_video(path)[0].shape == (13, 32, 48, 3)


def test_the_dataset_is_as_its_manifest_says(storage: Path) -> None:
    counts, findings = check_dataset(dataset_of(storage))
    assert findings == []
    assert (counts["windows"], counts["shards"], counts["pixels"]) == (4, 1, 3)


def test_the_adapter_is_put_on_the_base_that_it_was_trained_on(storage: Path) -> None:
    folder = storage / "runs/tiny-style/adapter"
    card = read_card(folder)
    transformer = load_transformer("nano")
    (applied,) = load_adapters(transformer, [(folder, 0.5)], base_hash("nano"))
    assert (applied.sha256, applied.scale) == (card.sha256, 0.5)
    assert any("lora_B" in name for name, _ in transformer.named_parameters())
    assert (card.base_model, card.stage, card.step) == ("nano", "style", 2)


def test_the_published_adapter_is_found(storage: Path, tmp_path: Path) -> None:
    registry = Registry(Storage.open(storage))
    found = registry.resolve("tiny@latest")
    fetched = registry.fetch(found.ref, tmp_path / "cache")
    assert read_card(fetched).sha256 == read_card(storage / "runs/tiny-style/adapter").sha256


def test_the_metrics_record_opens(storage: Path) -> None:
    record = MetricsRecord.read(storage / "runs/tiny-evaluate/metrics.json")
    assert record.arms == ["base", "adapter"]
    for arm in record.arms:
        assert {m for m in ("fvd", "kvd", "lpips") if record.value(m, arm).value is not None} == {"fvd", "kvd", "lpips"}
    assert record.comparison("lpips", "adapter").n == 2


@pytest.mark.parametrize("step", JOBS)
def test_a_complete_run_is_complete_for_the_inputs_that_it_recorded(storage: Path, step: str) -> None:
    recorded = read_result(Storage.open(storage), f"tiny-{step}")
    done = Run.open(config_of(storage, step), recorded["inputs"]).result()
    assert done is not None
    assert (done["figures"], done["outputs"]) == (recorded["figures"], recorded["outputs"])


def test_an_evaluation_without_the_metrics_own_inputs_is_made_again_in_place(storage: Path) -> None:
    config = config_of(storage, "evaluate")
    recorded = read_result(Storage.open(storage), "tiny-evaluate")["inputs"]
    wanted = recorded | metric_identity(config)
    assert wanted.keys() - recorded.keys(), "the version before did not record them"
    assert Run.open(config, wanted).result() is None
    assert Run.open(config, wanted).result() is None, "and from now on they count"
    with pytest.raises(IdentityError, match=r"inputs\.metric_kvd"):
        Run.open(config, wanted | {"metric_kvd": "another version"})


@pytest.mark.parametrize(("step", "job"), [("style", train), ("generate", generate), ("publish", publish)])
def test_a_complete_run_is_not_done_again(storage: Path, step: str, job: Any) -> None:
    recorded = read_result(Storage.open(storage), f"tiny-{step}")
    done = job(config_of(storage, step))  # no Ray cluster is known here
    assert (done["figures"], done["outputs"]) == (recorded["figures"], recorded["outputs"])


def test_prepare_goes_on_from_the_dataset_without_encoding_anything_again(storage: Path, ray_head: Any) -> None:
    dataset = dataset_of(storage)
    before = ClipsDataset.open(dataset)
    footage = json.dumps([{"path": str(FIXTURE / "footage"), "domain": "scripted"}])  # moved since
    result = prepare(config_of(storage, "prepare", f"footage={footage}"))
    after = ClipsDataset.open(dataset)
    assert result["figures"]["windows"] == 4
    assert after.manifest_sha256 == before.manifest_sha256
    assert after.manifest["shards"] == before.manifest["shards"]
    assert dataset.list("commits") == ["commits/000000.json"]
