"""The page of an evaluation: the verdict, every number, and the best, median and worst windows of each arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cinesynth.config import EvaluateConfig
from cinesynth.data.video import read_video
from cinesynth.metrics.record import MetricsRecord
from cinesynth.metrics.statistics import group_mean
from cinesynth.metrics.windows import WindowValue, read_windows
from cinesynth.outline import sized
from cinesynth.report.filmstrips import Scene, Strip
from cinesynth.report.images import strip, strip_places
from cinesynth.report.page import number, write_page
from cinesynth.report.values import Tables
from cinesynth.report.verdict import evaluation_verdict
from cinesynth.runs import Run
from cinesynth.storage import public_uri

_PICTURES = 144
"""Pictures that a page shows at 160 pixels; of more, each is smaller."""
_BYTES = 3_500_000
"""Most bytes of all pictures of a page; windows beyond them are left out, and counted."""


def write_evaluation_report(
    config: EvaluateConfig, run: Run, record: MetricsRecord, folders: Mapping[str, Mapping[str, Path]]
) -> str:
    """Write `report.html` into the folder of an evaluation; returns its uri.

    Args:
        config: of the evaluation.
        run: with `windows.parquet`, where numbers of each video were kept.
        record: what was found.
        folders: set name (`real`, then the arms) to the file of each video by its id.
    """
    rows = read_windows(run.folder)
    shown = metric_of_strips(record, rows)
    scenes: list[Scene] = []
    if shown:
        picked = pick_windows([row for row in rows if row.metric == shown], record, shown)
        scenes = _scenes(picked, [row for row in rows if row.metric == shown], folders, config.frames)
        left_out = len(picked) - len(scenes)
    return write_page(
        run.folder,
        "report.html",
        "evaluation.html.j2",
        run=run,
        verdict=evaluation_verdict(record),
        summary=_summary(config, record, folders),
        tables=Tables.of(record, config.metrics),
        shown=record.definitions[shown].label if shown else None,
        scenes=scenes,
        left_out=left_out if shown else 0,
        domains=DomainMeans.of(record, rows),
        has_windows=bool(rows),
        origins=_origins(run, record),
    )


def metric_of_strips(record: MetricsRecord, rows: Iterable[WindowValue]) -> str | None:
    """The metric that windows are ranked by: a primary one that compares pairs, else the first with their numbers."""
    held = {row.metric for row in rows if row.arm in record.arms}
    names = [name for name in record.definitions if name in held]
    paired = [n for n in names if record.definitions[n].primary and "pair" in record.definitions[n].needs]
    return next(iter([*paired, *names]), None)


def pick_windows(rows: Sequence[WindowValue], record: MetricsRecord, metric: str) -> dict[str, list[str]]:
    """Id of a window to why it is shown (`best of base`): the best, the median and the worst of each arm.

    Args:
        rows: of this metric.
        record: says the arms, and what is better.
        metric: its name.
    """
    picked: dict[str, list[str]] = {}
    for arm in record.arms:
        ranked = _ranked(rows, arm, record.definitions[metric].direction)
        places = {"best": 0, "median": (len(ranked) - 1) // 2, "worst": len(ranked) - 1}
        for name, place in places.items():
            if ranked and (name == "best" or place != places["best"]) and (name != "median" or len(ranked) > 2):
                picked.setdefault(ranked[place], []).append(f"{name} of {arm}")
    return picked


def _ranked(rows: Sequence[WindowValue], arm: str, direction: str) -> list[str]:
    """Ids of an arm's windows, the best first; of equals, by id."""
    real = {row.id: row.value for row in rows if row.arm == "real"}
    middle = sum(real.values()) / len(real) if real else 0.0

    def badness(row: WindowValue) -> float:
        if direction == "match":
            return abs(row.value - real.get(row.id, middle))
        return -row.value if direction == "higher" else row.value

    return [row.id for row in sorted((r for r in rows if r.arm == arm), key=lambda row: (badness(row), row.id))]


def _scenes(
    picked: Mapping[str, Sequence[str]],
    rows: Sequence[WindowValue],
    folders: Mapping[str, Mapping[str, Path]],
    num_frames: int | None,
) -> list[Scene]:
    """Filmstrips of the picked windows, the real one above the arms, as many as `_BYTES` allow."""
    values = {(row.arm, row.id): row for row in rows}
    pictures = 6 * len(picked) * len(folders)
    count, height = (6, 160) if pictures <= _PICTURES else (5, 96)
    found, size = [], 0
    for key, reasons in picked.items():
        places: list[int] = []
        strips = []
        for name, files in folders.items():
            row = values.get((name, key))
            score = "" if row is None else number(row.value)
            images: list[str] = []
            if key in files:
                frames, _ = read_video(files[key], num_frames)
                images, places = strip(frames, count, height), strip_places(len(frames), count)
            strips.append(Strip(name, images, "", score))
        size += sum(len(image) for made in strips for image in made.images)
        if size > _BYTES:
            break
        domain = next((row.domain for row in rows if row.id == key), "")
        found.append(Scene(key, ", ".join(reasons), domain, places, strips))
    return found


class DomainMeans(NamedTuple):
    """The table of means by domain; empty where no domain is known."""

    sets: list[str]
    """Those of the real set and the arms that any metric has numbers of."""
    rows: list[tuple[str, str, list[str]]]
    """(metric, domain, the mean and N of each set)."""

    @classmethod
    def of(cls, record: MetricsRecord, rows: Sequence[WindowValue]) -> DomainMeans:
        """Means over the windows of a group, then over groups, as those of the record are."""
        cells: dict[tuple[str, str], dict[str, list[WindowValue]]] = {}
        for row in rows:
            if row.metric in record.definitions:
                cells.setdefault((row.metric, row.domain), {}).setdefault(row.arm, []).append(row)
        if not any(domain for _, domain in cells):
            return cls([], [])
        sets = [name for name in ("real", *record.arms) if any(name in of for of in cells.values())]
        order = list(record.definitions)
        keys = sorted(cells, key=lambda key: (order.index(key[0]), key[1]))
        return cls(
            sets,
            [
                (record.label(metric), domain or "none", [_mean(cells[metric, domain].get(name, [])) for name in sets])
                for metric, domain in keys
            ],
        )


def _mean(rows: Sequence[WindowValue]) -> str:
    if not rows:
        return "–"
    value = group_mean({row.id: row.value for row in rows}, {row.id: row.group for row in rows})
    return f"{number(value)} (N {len(rows)})"


def _summary(
    config: EvaluateConfig, record: MetricsRecord, folders: Mapping[str, Mapping[str, Path]]
) -> list[tuple[str, str]]:
    """The line under the verdict: what was compared."""
    split = config.real
    places = {"real": public_uri(split) if isinstance(split, str) else f"{split.dataset}, split {split.split}"}
    places |= {arm: public_uri(config.arms[arm]) for arm in record.arms}
    sets = [(name, f"{place} ({sized(len(folders[name]), 'video')})") for name, place in places.items()]
    frames = "all of each video" if config.frames is None else f"the first {config.frames}"
    return [*sets, ("frames", frames), ("cinesynth", record.code_version)]


def _origins(run: Run, record: MetricsRecord) -> list[tuple[str, str]]:
    """Whole hashes and versions of everything that the numbers were made from."""
    rows = [("run", run.folder.uri)]
    rows += [(f"{name} sha256", sha) for name, sha in run.inputs.items() if not name.startswith("metric_")]
    weights = {name: sha for d in record.definitions.values() for name, sha in d.weights.items()}
    rows += [(f"weights {name} sha256", sha) for name, sha in sorted(weights.items())]
    preprocessing: dict[str, list[str]] = {}
    for definition in record.definitions.values():
        steps = "; ".join(f"{step}: {what}" for step, what in definition.preprocessing.items())
        told = f"{steps} (sha256 {definition.preprocessing_sha256})"
        preprocessing.setdefault(told, []).append(definition.label)
    rows += [(f"preprocessing of {', '.join(labels)}", told) for told, labels in preprocessing.items()]
    return [*rows, ("computed with", ", ".join(f"{name} {value}" for name, value in record.environment.items()))]
