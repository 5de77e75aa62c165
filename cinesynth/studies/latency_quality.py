"""`latency_quality`: seconds of a video against its temporal consistency, over steps, how the adapter lies on the base,
and the size of the group that makes the video.

A group makes its videos one after another. The first one warms it up and is not counted; of the next ones the median is
taken. Starting the group and loading its model is told apart.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import median
from typing import Any

from cinesynth.metrics.catalogue import METRICS, label
from cinesynth.report.page import number, span
from cinesynth.studies.cells import Cell
from cinesynth.studies.findings import EMPTY, UNAVAILABLE, Chart, Findings, Mark, Table, unsaid
from cinesynth.studies.grid import Grid
from cinesynth.studies.inputs import too_large

LATENCY_METRICS = ("tssim", "tlp", "tof", "motion_score", "lpips")
"""MotionScore stands beside the consistency of consecutive frames: a still is the most consistent video."""


@dataclass(frozen=True)
class Setting:
    """How videos are made."""

    steps: int
    merged: bool
    ranks: int

    @property
    def adapter(self) -> str:
        """How the adapter lies on the base."""
        return "merged" if self.merged else "live"


@dataclass(frozen=True)
class Timing:
    """What the videos of a setting took.

    Attributes:
        seconds: of a video: the median of the warm ones.
        count: of these.
        load_seconds: until the group was there with its model.
        device: as its maker calls it.
    """

    seconds: float
    count: int
    load_seconds: float
    device: str


def settings(grid: Grid) -> list[Setting]:
    """All settings, in the order of the table."""
    steps, latency = grid.config.latency_steps(), grid.config.latency
    return [Setting(*values) for values in itertools.product(steps, (False, True), latency.ranks)]


def cells(grid: Grid) -> list[Cell]:
    """The videos of every setting, what those of one group size measure, and both of the other families."""
    of_families = [(name, steps) for name in grid.config.latency.families for steps in grid.config.latency_steps()]
    return [
        *(videos(grid, setting) for setting in settings(grid)),
        *(quality(grid, setting) for setting in settings(grid)),
        *(family_quality(grid, name, steps) for name, steps in of_families),
    ]


def family_quality(grid: Grid, name: str, steps: int) -> Cell:
    """What the videos of another family measure, on as many frames as it makes."""
    dataset, frames = grid.config.domains[grid.config.home], grid.config.latency.families[name].frames
    return grid.compared({"videos": grid.family_videos(name, steps)}, dataset, LATENCY_METRICS, frames)


def videos(grid: Grid, setting: Setting) -> Cell:
    """The videos of a setting. Neither the group's size nor its CPUs are identity of a generation, but of what is
    timed they are."""
    config = grid.config
    adapter = grid.adapter(config.train.lora.rank, config.seeds[0], 1.0)
    changes: dict[str, Any] = {
        "sampler": {**config.generate.sampler.model_dump(), "steps": setting.steps},
        "merge": setting.merged,
        "ranks": setting.ranks,
        "workers": 1,
        "cpus_per_worker": config.latency.cpus_per_worker,
        "keep_every": 0,
        "max_windows": config.latency_windows(),
    }
    told = f"{setting.steps} steps, {setting.adapter}, group of {setting.ranks}"
    also = {"timed": True, "ranks": setting.ranks, "cpus": config.latency.cpus_per_worker}
    refused = merged_refusal(grid) if setting.merged else ""
    return grid.videos(adapter, config.domains[config.home], changes, also, told, refused)


def merged_refusal(grid: Grid) -> str:
    """Why adapters are not merged; empty where they may be."""
    if not (arithmetic := too_large(grid.inputs.merged, grid.config.generate.use_gpu)):
        return ""
    return f"an adapter is merged into an fp32 base, which does not fit on one device: {arithmetic}"


def quality(grid: Grid, setting: Setting) -> Cell:
    """What the videos of a setting measure. Group sizes make the same ones to rounding: the first stands for all."""
    first = Setting(setting.steps, setting.merged, grid.config.latency.ranks[0])
    dataset = grid.config.domains[grid.config.home]
    return grid.compared({"videos": videos(grid, first)}, dataset, LATENCY_METRICS)


def timing(grid: Grid, setting: Setting) -> Timing | None:
    """What the videos of a setting took; None where there is no warm one."""
    return timed(grid, videos(grid, setting))


def timed(grid: Grid, cell: Cell) -> Timing | None:
    """What the videos of a cell took; None as above."""
    if not grid.cells.outcome(cell).is_complete:
        return None
    return timing_of(grid.cells.folder(cell).read_json("seconds.json")["videos"], grid.config.latency.repeats)


def timing_of(made: list[dict[str, Any]], repeats: int) -> Timing | None:
    """The timing of a generation's `seconds.json`: a group's first video in each attempt is left out.

    Args:
        made: rows of the file, in the order in which the videos were made.
        repeats: warm videos that count, at most.
    """
    groups: set[tuple[int, int, float]] = set()
    warm = []
    for row in made:
        key = row["attempt"], row["group"], row["load_seconds"]
        if key in groups:
            warm.append(row)
        groups.add(key)
    counted = warm[:repeats]
    if not counted:
        return None
    seconds = median(sum(row["seconds"].values()) for row in counted)
    return Timing(seconds, len(counted), median(load for *_, load in groups), counted[0]["device"])


def findings(grid: Grid) -> Findings:
    """What the finished cells show."""
    charts = [chart for metric in ("tssim", "tlp") for chart in _chart(grid, metric)]
    return Findings(_shows(grid), [_table(grid), *_families(grid)], charts, _warnings(grid), is_of_seeds=False)


def _table(grid: Grid) -> Table:
    rows = []
    for setting in settings(grid):
        found, measured = timing(grid, setting), quality(grid, setting)
        times = [EMPTY] * 3
        if found is not None:
            times = [f"{number(found.seconds, 3)} (of {found.count})", number(found.load_seconds, 3), found.device]
        shown = [_shown(grid, measured, metric) for metric in LATENCY_METRICS]
        rows.append([str(setting.steps), setting.adapter, str(setting.ranks), *times, *shown])
    columns = ["steps", "adapter", "group", "seconds a video", "seconds to load", "device"]
    return Table(
        "By setting",
        [*columns, *(label(metric) for metric in LATENCY_METRICS)],
        rows,
        "Seconds are the median of warm videos, one at a time; neither the start of the group's processes nor loading "
        "the model is in them. Group sizes give the same videos to rounding, and are measured once.",
    )


def _shown(grid: Grid, measured: Cell, metric: str) -> str:
    """A metric of some videos with its interval, or why there is none."""
    if values := grid.values([measured], metric, "videos"):
        return f"{number(values[0].value)} {span(values[0].interval)}"
    return UNAVAILABLE if grid.unavailable([measured], metric) else EMPTY


def _families(grid: Grid) -> list[Table]:
    """The other families, where there are any."""
    rows = []
    for name, family in grid.config.latency.families.items():
        for steps in grid.config.latency_steps():
            found, measured = timed(grid, grid.family_videos(name, steps)), family_quality(grid, name, steps)
            times = [EMPTY] * 2 if found is None else [f"{number(found.seconds, 3)} (of {found.count})", found.device]
            numbers = [_shown(grid, measured, metric) for metric in LATENCY_METRICS]
            rows.append([name, family.family, str(steps), str(family.frames), *times, *numbers])
    if not rows:
        return []
    columns = ["model", "family", "steps", "frames", "seconds a video", "device"]
    note = (
        "One process, one video at a time. AnimateDiff makes videos of a prompt and does not see the first frame: its "
        "paired metrics say how far it is from the real window."
    )
    return [Table("Model families", [*columns, *(label(metric) for metric in LATENCY_METRICS)], rows, note)]


def _shows(grid: Grid) -> list[str]:
    known = {s: t for s in settings(grid) if (t := timing(grid, s)) is not None}
    if not known:
        return ["No setting has been timed."]
    device = next(iter(known.values())).device
    fastest, slowest = min(known, key=lambda s: known[s].seconds), max(known, key=lambda s: known[s].seconds)
    found = [
        f"On {device}, a video takes {number(known[fastest].seconds, 3)} s with {_told(fastest)} and "
        f"{number(known[slowest].seconds, 3)} s with {_told(slowest)}, medians of {known[fastest].count}.",
        grid.counted([quality(grid, fastest)], "What they measure", grid.config.seeds[:1]),
    ]
    few, many = min(grid.config.latency_steps()), max(grid.config.latency_steps())
    for metric in ("tssim", "tlp"):
        ends = [Setting(steps, False, grid.config.latency.ranks[0]) for steps in (few, many)]
        cells_of = [quality(grid, setting) for setting in ends]
        if why := grid.unavailable(cells_of, metric):
            found.append(f"{label(metric)}: {why}.")
            continue
        values = [grid.values([cell], metric, "videos") for cell in cells_of]
        if few == many or not all(values):
            continue
        low, high = values[0][0], values[1][0]
        if low.interval is None or high.interval is None:
            apart = "without intervals: it decides nothing"
        elif low.interval.low > high.interval.high or low.interval.high < high.interval.low:
            apart = "intervals that do not touch: the steps make a difference"
        else:
            apart = "intervals that overlap: the data do not show a difference"
        found.append(
            f"{label(metric)} is {number(low.value)} {span(low.interval)} at {few} steps and {number(high.value)} "
            f"{span(high.interval)} at {many}, with {apart}."
        )
    found.append("Other devices and other sizes of video were not timed here.")
    return found


def _told(setting: Setting) -> str:
    return f"{setting.steps} steps, the adapter {setting.adapter}, in a group of {setting.ranks}"


def _chart(grid: Grid, metric: str) -> list[Chart]:
    series: dict[str, list[Mark]] = {}
    for setting in settings(grid):
        found, values = timing(grid, setting), grid.values([quality(grid, setting)], metric, "videos")
        if found is None or not values or values[0].value is None:
            continue
        interval = values[0].interval
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        name = f"{setting.adapter}, group of {setting.ranks}"
        series.setdefault(name, []).append(Mark(found.seconds, values[0].value, low, high, str(setting.steps)))
    if not series:
        return []
    real = next((v.real for v in grid.values([quality(grid, s) for s in settings(grid)], metric, "videos")), None)
    levels = {} if real is None else {"real": real}
    direction = METRICS[metric].direction
    better = {"lower": "lower is better", "higher": "higher is better", "match": "closer to the real set is better"}
    note = f"The numbers beside the points are steps; {better[direction]}."
    return [Chart(f"{label(metric)} against latency", "seconds a video", label(metric), series, levels, note=note)]


def _warnings(grid: Grid) -> list[str]:
    measured = [quality(grid, setting) for setting in settings(grid)]
    found = unsaid({label(m): why for m in LATENCY_METRICS if (why := grid.unavailable(measured, m))})
    if why := merged_refusal(grid):
        found.append(f"Merged cells are empty: {why}.")
    elif grid.config.generate.use_gpu:
        found.append("On GPUs the base is bf16: a merged adapter is rounded with it, and its frames are others.")
    few = {
        t.count for s in settings(grid) if (t := timing(grid, s)) is not None and t.count < grid.config.latency.repeats
    }
    if few:
        found.append(f"Some settings have {min(few)} warm videos only: their runs were continued.")
    return found
