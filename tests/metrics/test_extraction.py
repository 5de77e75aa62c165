"""Which rows are computed: what is missing, each once, whoever works on it; and how often a file is decoded."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.errors import MediaError, MetricError, WeightsUnavailable
from cinesynth.metrics import catalogue, features, videos
from cinesynth.metrics.distributed import RayExecutor
from cinesynth.metrics.evaluate import compare
from cinesynth.metrics.extraction import find_rows, network_record
from cinesynth.metrics.features import LocalExecutor, Reader, read_ahead
from cinesynth.metrics.kept import KeptWork
from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import Metric, Network
from cinesynth.metrics.record import MetricsRecord
from cinesynth.storage import Storage

IDS = [f"w{i}" for i in range(5)]
SEEN: Counter[str] = Counter()
"""Items that each network of this file has seen."""


def _brightness(_: Any, items: Sequence[Any]) -> Any:
    SEEN["brightness"] += len(items)
    return np.stack([frames.mean(axis=(1, 2, 3)) for (frames,) in items])


def _distance(_: Any, items: Sequence[Any]) -> Any:
    SEEN["distance"] += len(items)
    return np.stack([np.abs(a.astype(float) - b).mean(axis=(1, 2, 3)) for a, b in items])


BRIGHTNESS = Network("brightness", "brightness", _brightness)
DISTANCE = Network("distance", "distance", _distance, pair=True)


def _add(monkeypatch: pytest.MonkeyPatch, network: Network) -> Metric:
    metric = Metric(network.name, network.label, 1, "for a test", network, group_means)
    monkeypatch.setitem(catalogue.METRICS, network.name, metric)
    return metric


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    _add(monkeypatch, BRIGHTNESS)
    _add(monkeypatch, DISTANCE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for name in ("real", "base", "adapter"):
        for i, key in enumerate(IDS):
            frames = rng.integers(0, 255, (6 if i == 4 else 4, 16, 24, 3), np.uint8)
            write_video(root / name / f"{key}.mkv", frames, codec="ffv1")
    return {name: root / name for name in ("real", "base", "adapter")}


def settings(*metrics: str, **changes: Any) -> EvaluateSettings:
    return EvaluateSettings(metrics=list(metrics), **changes)


def run(
    folders: dict[str, Path], chosen: EvaluateSettings, executor: Any = LocalExecutor, **given: Any
) -> MetricsRecord:
    arms = {name: folder for name, folder in folders.items() if name != "real"}
    return compare(folders["real"], arms, settings=chosen, executor=executor, **given)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is decoded for networks, and for its check."""
    counts: Counter[str] = Counter()

    def counting(kind: str, real: Any) -> Any:
        def read(path: Path, num_frames: int | None = None) -> Any:
            counts[f"{kind} {path.parent.name}/{path.stem}"] += 1
            return real(path, num_frames)

        return read

    monkeypatch.setattr(features, "read_video", counting("network", features.read_video))
    monkeypatch.setattr(videos, "inspect_video", counting("check", videos.inspect_video))
    return counts


class Shuffled(LocalExecutor):
    """As many workers of one order that nobody knows."""

    workers = 3

    def run(self, batches: Sequence[Any]) -> Iterator[Any]:
        read = list(read_ahead(batches))
        random.Random(self.workers).shuffle(read)
        with ThreadPoolExecutor(self.workers) as pool:
            outputs = pool.map(lambda one: self._networks.run_all(batches[one[0]].calls, one[1]), read)
            yield from zip([place for place, _ in read], outputs, strict=True)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_record_is_the_same_for_any_number_of_workers_in_any_order(
    folders: dict[str, Path], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shuffled, "workers", workers)
    chosen = settings("brightness", "distance", batch_size=2)
    assert run(folders, chosen, Shuffled) == run(folders, chosen)


def test_a_file_is_decoded_once_for_its_check_and_once_for_all_networks_of_all_arms(
    folders: dict[str, Path], decoded: Counter[str]
) -> None:
    record = run(folders, settings("brightness", "distance", batch_size=2))
    files = {f"{name}/{key}" for name in folders for key in IDS}
    assert decoded == {f"{kind} {file}": 1 for kind in ("check", "network") for file in files}
    assert SEEN == {"brightness": 15, "distance": 10}
    whole = {k: features.read_video(folders["base"] / f"{k}.mkv")[0] for k in IDS}
    assert record.value("brightness", "base").value == pytest.approx(np.mean([v.mean() for v in whole.values()]))
    real = {k: features.read_video(folders["real"] / f"{k}.mkv")[0] for k in IDS}
    distances = [np.abs(whole[k].astype(float) - real[k]).mean() for k in IDS]
    assert record.value("distance", "base").value == pytest.approx(np.mean(distances))


def test_kept_work_is_not_done_again_and_gives_the_same_record(
    folders: dict[str, Path], decoded: Counter[str], tmp_path: Path
) -> None:
    kept = KeptWork(Storage.open(tmp_path))
    first = run(folders, settings("brightness", "distance"), kept=kept)
    decoded.clear()
    SEEN.clear()
    assert run(folders, settings("brightness", "distance"), kept=kept) == first
    assert not decoded
    assert not SEEN
    assert first.definitions["brightness"].device == "cpu"


def test_a_metric_that_is_added_computes_only_itself(
    folders: dict[str, Path], decoded: Counter[str], tmp_path: Path
) -> None:
    kept = KeptWork(Storage.open(tmp_path))
    run(folders, settings("brightness"), kept=kept)
    decoded.clear()
    SEEN.clear()
    record = run(folders, settings("brightness", "distance"), kept=kept)
    assert SEEN == {"distance": 10}
    assert {key.split()[0] for key in decoded} == {"network"}
    assert max(decoded.values()) == 1
    assert record == run(folders, settings("brightness", "distance"))


def test_one_more_arm_takes_its_own_videos_and_the_real_ones_of_its_pairs(
    folders: dict[str, Path], decoded: Counter[str], tmp_path: Path
) -> None:
    kept = KeptWork(Storage.open(tmp_path))
    run({name: folders[name] for name in ("real", "base")}, settings("brightness", "distance"), kept=kept)
    decoded.clear()
    SEEN.clear()
    run(folders, settings("brightness", "distance"), kept=kept)
    assert SEEN == {"brightness": 5, "distance": 5}
    assert {key.split("/")[0] for key in decoded} == {"check adapter", "network adapter", "network real"}


def test_the_arms_of_two_earlier_evaluations_are_compared_without_decoding_anything(
    folders: dict[str, Path], decoded: Counter[str], tmp_path: Path
) -> None:
    kept, chosen = KeptWork(Storage.open(tmp_path)), settings("brightness", "distance")
    for arm in ("base", "adapter"):
        run({name: folders[name] for name in ("real", arm)}, chosen, kept=kept)
    decoded.clear()
    SEEN.clear()
    together = run(folders, chosen, kept=kept)
    assert not decoded
    assert not SEEN
    assert together == run(folders, chosen)


def test_any_number_of_ray_workers_gives_the_same_record(folders: dict[str, Path], ray_head: str) -> None:
    expected = run(folders, settings("brightness", "distance", batch_size=2))
    for workers in (1, 2, 4):
        chosen = settings("brightness", "distance", batch_size=2, workers=workers, cpus_per_worker=0.5)
        assert run(folders, chosen, RayExecutor) == expected


def test_a_killed_evaluation_goes_on_after_the_batch_that_was_lost(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, chosen = KeptWork(Storage.open(tmp_path)), settings("brightness", batch_size=1)

    class Killed(LocalExecutor):
        def run(self, batches: Sequence[Any]) -> Iterator[Any]:
            for i, done in enumerate(super().run(batches)):
                if i == 7:
                    raise KeyboardInterrupt
                yield done

    with pytest.raises(KeyboardInterrupt):
        run(folders, chosen, Killed, kept=kept)
    assert SEEN == {"brightness": 8}
    SEEN.clear()
    found = run(folders, chosen, kept=kept)
    assert SEEN == {"brightness": 15 - 7}
    assert found == run(folders, chosen)


def test_two_evaluations_at_once_on_one_storage_find_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    kept, chosen = KeptWork(Storage.open(tmp_path)), settings("brightness", "distance", batch_size=1)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: run(folders, chosen, kept=kept), range(2)))
    assert both[0] == both[1] == run(folders, chosen)
    SEEN.clear()
    assert run(folders, chosen, kept=kept) == both[0]
    assert not SEEN


def test_a_damaged_row_is_computed_again_and_nothing_else(folders: dict[str, Path], tmp_path: Path) -> None:
    kept, chosen = KeptWork(Storage.open(tmp_path)), settings("brightness", "distance")
    first = run(folders, chosen, kept=kept)
    files = sorted((tmp_path / "features").glob("brightness-*/*.npz"))
    files[3].write_bytes(files[3].read_bytes()[:-40])
    SEEN.clear()
    assert run(folders, chosen, kept=kept) == first
    assert SEEN == {"brightness": 1}


def test_a_video_that_lies_in_two_sets_is_seen_once(folders: dict[str, Path]) -> None:
    record = compare(folders["real"], {"same": folders["real"]}, settings=settings("brightness"))
    assert SEEN == {"brightness": 5}
    assert record.value("brightness", "same").value == record.value("brightness", "same").real


def test_a_network_sees_its_range_of_frames_the_rate_and_the_caption(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def look(_: Any, items: Sequence[Any]) -> Any:
        seen.extend(items)
        return np.zeros((len(items), 1))

    network = Network("look", "look", look, pair=True, fps=True, caption=True, start=1, count=2)
    _add(monkeypatch, network)
    captions = {key: f"caption of {key}" for key in IDS}
    run({name: folders[name] for name in ("real", "base")}, settings("look", "brightness"), captions=captions)
    assert len(seen) == 5
    real, fake, fps, caption = seen[0]
    frames = {name: features.read_video(folders[name] / "w0.mkv")[0] for name in ("real", "base")}
    np.testing.assert_array_equal(real, frames["real"][1:3])
    np.testing.assert_array_equal(fake, frames["base"][1:3])
    assert (fps, caption) == (16.0, "caption of w0")


def test_a_batch_holds_few_videos_of_one_shape(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Any] = []

    class Recorded(LocalExecutor):
        def run(self, given: Sequence[Any]) -> Iterator[Any]:
            batches.extend(given)
            return super().run(given)

    run(folders, settings("brightness", "distance", batch_size=3), Recorded)
    assert [(b.turn, b.num_frames, len(b.videos), len(b.partners), b.held) for b in batches] == [
        (0, 4, 3, 0, True), (0, 4, 3, 3, False), (0, 4, 3, 3, False),
        (1, 4, 1, 0, True), (1, 4, 1, 1, False), (1, 4, 1, 1, False),
        (2, 6, 1, 0, True), (2, 6, 1, 1, False), (2, 6, 1, 1, False),
    ]  # fmt: skip
    reader = Reader()
    for batch in batches:
        reader.read(batch)
        assert len(reader._held) <= 3


def test_a_name_that_the_real_set_lacks_may_have_another_length_in_each_arm(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    sets = {name: shutil.copytree(folder, tmp_path / name) for name, folder in folders.items()}
    for name, frames in (("base", 4), ("adapter", 6)):
        write_video(sets[name] / "extra.mkv", np.full((frames, 16, 24, 3), 100, np.uint8), codec="ffv1")
    record = run(sets, settings("brightness", "distance"))
    assert [record.value("brightness", name).n for name in ("base", "adapter")] == [6, 6]


def test_a_file_that_changes_under_the_evaluation_is_found_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "real" / "a.mkv", np.zeros((4, 16, 24, 3), np.uint8), codec="ffv1")

    class Late(LocalExecutor):
        def run(self, batches: Sequence[Any]) -> Iterator[Any]:
            write_video(path, np.ones((4, 16, 24, 3), np.uint8), codec="ffv1")
            return super().run(batches)

    with pytest.raises(MediaError, match=r"a\.mkv changed while"):
        compare(path.parent, {"base": path.parent}, settings=settings("brightness"), executor=Late)


def test_a_metric_without_weights_says_so_and_the_others_go_on(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(_: EvaluateSettings) -> Any:
        raise WeightsUnavailable("clip.safetensors is not there; give it by path")

    _add(monkeypatch, Network("clip", "CLIP", _brightness, load=absent))
    _add(monkeypatch, Network("unnamed", "unnamed", _brightness, weights=absent))
    kept = KeptWork(Storage.open(tmp_path))
    record = run(folders, settings("clip", "unnamed", "brightness"), kept=kept)
    for name in ("clip", "unnamed"):
        for arm in ("base", "adapter"):
            value = record.value(name, arm)
            assert value.value is None
            assert value.reason == "no weights: clip.safetensors is not there; give it by path"
        assert "no weights: clip.safetensors" in record.table()
    assert record.value("brightness", "base").value is not None
    assert record.comparison("brightness", "adapter").difference is not None
    assert not list((tmp_path / "features").glob("clip-*/*"))
    assert MetricsRecord.parse(record.to_json(), "here") == record
    with pytest.raises(WeightsUnavailable, match="is not there"):
        run(folders, settings("clip", "brightness", require=True), kept=kept)


def test_kept_rows_stand_in_for_weights_that_are_gone(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = KeptWork(Storage.open(tmp_path))
    first = run(folders, settings("brightness"), kept=kept)

    def absent(_: EvaluateSettings) -> Any:
        raise WeightsUnavailable("gone")

    _add(monkeypatch, Network("brightness", "brightness", _brightness, load=absent))
    assert run(folders, settings("brightness"), kept=kept) == first


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named_and_never_averaged(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: float
) -> None:
    def odd(_: Any, items: Sequence[Any]) -> Any:
        rows = np.zeros((len(items), 4))
        rows[:, 2] = value
        return rows

    metric = _add(monkeypatch, Network("odd", "odd network", odd))
    kept = KeptWork(Storage.open(tmp_path))
    with pytest.raises(MetricError, match=rf"w0\.mkv: odd network gives {value:g} at \[2\], which is no number"):
        run(folders, settings("odd"), kept=kept)
    assert bool(list((tmp_path / "features").glob("odd-*/*"))) is (not np.isnan(value))
    monkeypatch.setitem(
        catalogue.METRICS, "odd", Metric("odd", "odd", 1, "", metric.network, group_means, first_frame=3)
    )
    assert run(folders, settings("odd"), kept=kept).value("odd", "base").value == 0


def test_names_without_a_pair_are_told_with_one_of_each(folders: dict[str, Path], tmp_path: Path) -> None:
    write_video(tmp_path / "x.mkv", np.zeros((4, 16, 24, 3), np.uint8), codec="ffv1")
    write_video(tmp_path / "y.mkv", np.zeros((6, 16, 24, 3), np.uint8), codec="ffv1")
    record = run({"real": folders["real"], "other": tmp_path}, settings("distance", "brightness"))
    assert "real has 'w0', other has 'x'" in record.value("distance", "other").reason
    assert record.value("brightness", "other").value == 0


def test_a_network_that_reads_the_rate_is_left_out_where_a_video_states_none(folders: dict[str, Path]) -> None:
    real, base, _ = videos.open_sets(folders, None)
    unstated = replace(base, fps=frozenset({0.0, 16.0}))
    network = Network("speed", "speed", lambda _, items: np.zeros((len(items), 1)), fps=True)
    rows = find_rows([network], [real, unstated], {}, EvaluateSettings(), LocalExecutor)["speed"]
    assert rows.unfit == [None, "speed needs the frame rate, and a video of base states none"]


def test_the_record_of_a_network_holds_what_changes_its_rows() -> None:
    record = network_record(catalogue.find("kvd").network, EvaluateSettings())
    assert record["weights"] == catalogue.find("kvd").network.weights(EvaluateSettings())
    assert record["preprocessing"]["range"] == "x / 127.5 - 1"
    assert record["decoder"].startswith("PyAV")
    assert record["processor"] == "cpu"
    assert network_record(catalogue.find("kvd").network, EvaluateSettings(use_gpu=True))["processor"] == "gpu"
