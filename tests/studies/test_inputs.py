"""What a study reads is checked before anything is run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cinesynth.data.dataset import WindowRow
from cinesynth.errors import DatasetError
from cinesynth.studies.config import StudyConfig
from cinesynth.studies.inputs import read_inputs, too_large
from cinesynth.wan.folder import model_spec
from tests.generate.test_windows import ROW
from tests.studies.fake_jobs import study_config


@dataclass(frozen=True)
class Split:
    """The part of a dataset that is read here: a window of each split, of a file of its own."""

    manifest_sha256: str
    files: dict[str, str]
    frames: int = 17

    def windows(self, split: str | None = None) -> list[WindowRow]:
        return [
            replace(ROW, window_id=file, source_uri=file, source_sha256=file, split=name, num_frames=self.frames)
            for name, file in self.files.items()
            if split in (None, name)
        ]


DATASETS = {
    "home": Split("hash-home", {"train": "a", "val": "b", "test": "c"}),
    "away": Split("hash-away", {"test": "d"}),
    "leak": Split("hash-leak", {"test": "a"}),
    "untested": Split("hash-untested", {"train": "e"}),
    "long": Split("hash-long", {"test": "f"}, 129),
}


@pytest.fixture(autouse=True)
def _datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cinesynth.studies.inputs.locate_dataset", lambda storage, name: DATASETS[name])


def given(storage: Path, study: str = "domain_shift", long: str = "away", **domains: str) -> StudyConfig:
    names = {"historical": domains.get("home", "home"), "sci-fi": domains.get("away", "away")}
    return study_config(storage, study, domains=names, long=long)


def test_what_is_read_is_known_by_its_content(tmp_path: Path) -> None:
    found = read_inputs(given(tmp_path))
    assert found.datasets == {"home": "hash-home", "away": "hash-away"}
    assert len(set(found.hashes().values())) == 3
    assert read_inputs(given(tmp_path, "lora_vs_full", "long")).datasets["long"] == "hash-long"
    assert too_large(found.full, use_gpu=False) == too_large(found.merged, use_gpu=True) == ""
    assert sum(found.full.whole.values()) > 3 * found.merged.weights  # 16 bytes a parameter against 4


def test_footage_that_was_trained_on_is_no_other_domain(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'leak' shares 1 files with the train split of 'home' \(such as a\)"):
        read_inputs(given(tmp_path, away="leak"))


def test_splits_and_lengths_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="'away' has no window in its train split, which the study trains on"):
        read_inputs(given(tmp_path, home="away", away="home"))
    with pytest.raises(DatasetError, match="'untested' has no window in its test split"):
        read_inputs(given(tmp_path, away="untested"))


@pytest.mark.parametrize(("fps", "told"), [(16, r"8\.1 s at 16 fps"), (24, r"5\.4 s at 24 fps")])
def test_how_long_shots_have_to_be_follows_the_rate_of_the_model(
    fps: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = model_spec("nano")
    monkeypatch.setattr(
        "cinesynth.wan.folder.model_spec", lambda model: replace(spec, family=replace(spec.family, fps=fps))
    )
    with pytest.raises(DatasetError, match=f"windows of 17 frames, and the study needs at least 129: .* least {told}$"):
        read_inputs(given(tmp_path, "rank_quality"))
