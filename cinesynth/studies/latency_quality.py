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

from cinesynth.generate.driver import SECONDS
from cinesynth.metrics.catalogue import METRICS, label
from cinesynth.report.page import number, span
from cinesynth.studies.cells import Cell
from cinesynth.studies.estimates import Estimate, over_seeds
from cinesynth.studies.findings import (
    EMPTY,
    UNAVAILABLE,
    Chart,
    Difference,
    Findings,
    Mark,
    Table,
    conclusions,
    joined,
    unsaid,
)
from cinesynth.studies.grid import Grid, compared_by
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

    @property
    def arm(self) -> str:
        """Of the evaluation. Group sizes make the same videos to rounding: one arm stands for all."""
        return f"{self.steps}-steps-{self.adapter}"


@dataclass(frozen=True)
class Timing:
    """What the videos of a setting took.

    Attributes:
        seconds: of a video: the median of the warm ones.
        least, most: of these.
        count: of these.
        load_seconds: until the group was there with its model.
        device: as its maker calls it; all that there were, where the run was continued on another.
    """

    seconds: float
    least: float
    most: float
    count: int
    load_seconds: float
    device: str

    def told(self) -> str:
        """The seconds with their spread."""
        return f"{number(self.seconds, 3)} ({number(self.least, 3)} to {number(self.most, 3)}, of {self.count})"


def settings(grid: Grid) -> list[Setting]:
    """All settings, in the order of the table."""
    steps, latency = grid.config.latency_steps(), grid.config.latency
    return [Setting(*values) for values in itertools.product(steps, (False, True), latency.ranks)]


def cells(grid: Grid) -> list[Cell]:
    """The videos of every setting, what those of one group size measure together, and both of the other families."""
    of_families = [(name, steps) for name in grid.config.latency.families for steps in grid.config.latency_steps()]
    measured = quality(grid)
    return [
        *(videos(grid, setting) for setting in settings(grid)),
        *([] if measured is None else [measured]),
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


def quality(grid: Grid) -> Cell | None:
    """What the videos of all settings measure, in one evaluation, so that their differences are paired: to the fewest
    steps with a live adapter. A setting whose videos are refused, or failed, is left out; None where all are. Where
    that one is left out, the evaluation has values, and none of the differences that are asked for."""
    first = [setting for setting in settings(grid) if setting.ranks == grid.config.latency.ranks[0]]
    made = {setting.arm: videos(grid, setting) for setting in first}
    arms = {arm: cell for arm, cell in made.items() if grid.cells.outcome(cell).status not in ("refused", "failed")}
    return grid.compared(arms, grid.config.domains[grid.config.home], LATENCY_METRICS) if arms else None


def timing(grid: Grid, setting: Setting) -> Timing | None:
    """What the videos of a setting took; None where there is no warm one."""
    return timed(grid, videos(grid, setting))


def timed(grid: Grid, cell: Cell) -> Timing | None:
    """What the videos of a cell took; None as above, and where a kill came between its last video and the seconds."""
    folder = grid.cells.folder(cell)
    if not grid.cells.outcome(cell).is_complete or not folder.exists(SECONDS):
        return None
    return timing_of(folder.read_json(SECONDS)["videos"], grid.config.latency.repeats)


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
    seconds = [sum(row["seconds"].values()) for row in counted]
    load_seconds = median(load for *_, load in groups)
    device = joined(list(dict.fromkeys(row["device"] for row in counted)))
    return Timing(median(seconds), min(seconds), max(seconds), len(counted), load_seconds, device)


def _timings(grid: Grid) -> dict[Setting, Timing]:
    """Of the settings that have one."""
    return {setting: found for setting in settings(grid) if (found := timing(grid, setting)) is not None}


def _devices(known: dict[Setting, Timing]) -> list[str]:
    """What settings were timed on, each device once."""
    return list(dict.fromkeys(found.device for found in known.values()))


def findings(grid: Grid) -> Findings:
    """What the finished cells show."""
    charts = [chart for metric in ("tssim", "tlp") for chart in _chart(grid, metric)]
    return Findings(_shows(grid), [_table(grid), *_families(grid)], charts, _warnings(grid), is_of_seeds=False)


def _table(grid: Grid) -> Table:
    rows, measured = [], quality(grid)
    for setting in settings(grid):
        found, times = timing(grid, setting), [EMPTY] * 3
        if found is not None:
            times = [found.told(), number(found.load_seconds, 3), found.device]
        shown = [text for metric in LATENCY_METRICS for text in _shown(grid, measured, metric, setting.arm)]
        rows.append([str(setting.steps), setting.adapter, str(setting.ranks), *times, *shown])
    columns = ["steps", "adapter", "group", "seconds a video", "seconds to load", "device"]
    return Table(
        "By setting",
        [*columns, *_metric_columns()],
        rows,
        "Seconds are the median of warm videos, one at a time, with the least and the most; neither the start of the "
        "group's processes nor loading the model is in them. Group sizes give the same videos to rounding, and are "
        "measured once. The other metrics compare each video with its real one, which itself would have 0.",
    )


def _metric_columns() -> list[str]:
    """A column for each metric; a second one for the real set's own value, where that is to be matched."""
    return [
        name
        for metric in LATENCY_METRICS
        for name in (label(metric), *([f"{label(metric)}, real"] if METRICS[metric].direction == "match" else []))
    ]


def _shown(grid: Grid, measured: Cell | None, metric: str, arm: str) -> list[str]:
    """What stands in a metric's columns: its value of an arm with the interval, or why there is none."""
    columns = 2 if METRICS[metric].direction == "match" else 1
    if values := grid.values([measured], metric, arm):
        value = values[0]
        return [f"{number(value.value)} {span(value.interval)}", number(value.real)][:columns]
    return [UNAVAILABLE if grid.unavailable([measured], metric) else EMPTY] * columns


def _families(grid: Grid) -> list[Table]:
    """The other families, where there are any."""
    rows = []
    for name, family in grid.config.latency.families.items():
        for steps in grid.config.latency_steps():
            found, measured = timed(grid, grid.family_videos(name, steps)), family_quality(grid, name, steps)
            times = [EMPTY] * 2 if found is None else [found.told(), found.device]
            numbers = [text for metric in LATENCY_METRICS for text in _shown(grid, measured, metric, "videos")]
            rows.append([name, family.family, str(steps), str(family.frames), *times, *numbers])
    if not rows:
        return []
    columns = ["model", "family", "steps", "frames", "seconds a video", "device"]
    note = (
        "One process, one video at a time. AnimateDiff makes videos of a prompt and does not see the first frame: its "
        "paired metrics say how far it is from the real window."
    )
    return [Table("Model families", [*columns, *_metric_columns()], rows, note)]


def _shows(grid: Grid) -> list[str]:
    known = _timings(grid)
    if not known:
        return ["No setting has been timed."]
    found = [*_speed(known), grid.counted([quality(grid)], "What they measure", grid.config.seeds[:1])]
    asked = []
    for metric in ("tssim", "tlp"):
        if why := grid.unavailable([quality(grid)], metric):
            found.append(f"{label(metric)}: {why}.")
            continue
        found += _nearest(grid, metric)
        asked += _differences(grid, metric)
    return [*found, *conclusions(asked), "Other devices and other sizes of video were not timed here."]


def _speed(known: dict[Setting, Timing]) -> list[str]:
    """What settings took, by device: seconds of different ones do not compare."""
    on = {device: {s: t for s, t in known.items() if t.device == device} for device in _devices(known)}
    return [sentence for device, timed_there in on.items() for sentence in _speed_on(device, timed_there)]


def _speed_on(device: str, known: dict[Setting, Timing]) -> list[str]:
    """The fastest and the slowest setting of a device, and those whose seconds overlap with the fastest one's."""
    fastest, *others = sorted(known, key=lambda s: known[s].seconds)
    if not others:
        only = f"On {device}, a video takes {known[fastest].told()} s with {_told(fastest)}"
        return [f"{only}: the median, with the least and the most. No other setting was timed there."]
    slowest = max(others, key=lambda s: known[s].seconds)
    ends = " and ".join(f"{known[s].told()} s with {_told(s)}" for s in (fastest, slowest))
    alike = [s for s in known if s != fastest and known[s].least <= known[fastest].most]
    first = f"On {device}, a video takes {ends}: medians, with the least and the most."
    if not alike:
        return [first, f"Every video of {_told(fastest)} took less than any of another setting timed there."]
    overlapping = "; ".join(_told(s) for s in alike)
    return [first, f"The seconds of {_told(fastest)} overlap with those of {overlapping}: none is called the fastest."]


def _nearest(grid: Grid, metric: str) -> list[str]:
    """Of a metric to match: the real set's value, and the setting that lies nearest to it, where there are several."""
    values = {s: grid.values([quality(grid)], metric, s.arm) for s in settings(grid)}
    off = {
        setting: abs(found[0].value - found[0].real)
        for setting, found in values.items()
        if found and found[0].value is not None and found[0].real is not None
    }
    if not off:
        return []
    near = min(off, key=lambda s: off[s])
    value = values[near][0]
    own = f"{label(metric)} of the real windows is {number(value.real)}"
    if len({setting.arm for setting in off}) == 1:
        return [f"{own}; that of {_how(near)}, is {number(value.value)}."]
    return [f"{own}; nearest to it, by number, lies that of {_how(near)}, {number(value.value)}."]


def _differences(grid: Grid, metric: str) -> list[Difference]:
    """Of more steps and the fewest, and of the adapter merged and live, on the same windows."""
    fewest, *others = grid.config.latency_steps()
    name, closer = compared_by(metric), "closer to the real windows"
    found = [
        Difference(
            f"{name}, {steps} steps − {fewest}",
            _to_fewest_live(grid, metric, steps, merged=False),
            f"videos of {steps} steps are {closer} than those of {fewest}",
            f"videos of {fewest} steps are {closer} than those of {steps}",
        )
        for steps in others
    ]
    if not merged_refusal(grid):
        merged = _to_fewest_live(grid, metric, fewest, merged=True)
        words = (
            f"the adapter {one} is {closer} than {other}" for one, other in (("merged", "live"), ("live", "merged"))
        )
        found.append(Difference(f"{name}, {fewest} steps, merged − live", merged, *words))
    return found


def _to_fewest_live(grid: Grid, metric: str, steps: int, merged: bool) -> Estimate | None:
    """The difference of an arm and the live one of the fewest steps; None where either was not measured. An evaluation
    that lacks that one compares its arms with another, which is not what is asked."""
    arm, baseline = Setting(steps, merged, 1).arm, Setting(grid.config.latency_steps()[0], False, 1).arm
    return over_seeds({grid.config.seeds[0]: grid.comparison(quality(grid), metric, arm, baseline)})


def _told(setting: Setting) -> str:
    return f"{_how(setting)}, in a group of {setting.ranks}"


def _how(setting: Setting) -> str:
    return f"{setting.steps} steps, the adapter {setting.adapter}"


def _chart(grid: Grid, metric: str) -> list[Chart]:
    series: dict[str, list[Mark]] = {}
    levels, measured, known = {}, quality(grid), _timings(grid)
    for setting, found in known.items():
        values = grid.values([measured], metric, setting.arm)
        if not values or values[0].value is None:
            continue
        if values[0].real is not None:
            levels["real"] = values[0].real
        interval = values[0].interval
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        name = f"{setting.adapter}, group of {setting.ranks}"
        if len(_devices(known)) > 1:
            name += f", on {found.device}"
        series.setdefault(name, []).append(Mark(found.seconds, values[0].value, low, high, str(setting.steps)))
    if not series:
        return []
    direction = METRICS[metric].direction
    better = {"lower": "lower is better", "higher": "higher is better", "match": "closer to the real set is better"}
    note = f"The numbers beside the points are steps; {better[direction]}."
    return [Chart(f"{label(metric)} against latency", "seconds a video", label(metric), series, levels, note=note)]


def _warnings(grid: Grid) -> list[str]:
    found = unsaid({label(m): why for m in LATENCY_METRICS if (why := grid.unavailable([quality(grid)], m))})
    if why := merged_refusal(grid):
        found.append(f"Merged cells are empty: {why}.")
    elif grid.config.generate.use_gpu:
        found.append("On GPUs the base is bf16: a merged adapter is rounded with it, and its frames are others.")
    known = _timings(grid)
    if len(devices := _devices(known)) > 1:
        found.append(f"Settings were timed on {joined(devices)}: seconds of different devices do not compare.")
    few = {t.count for t in known.values() if t.count < grid.config.latency.repeats}
    if few:
        why = "the split has no more windows, or their runs were continued"
        found.append(f"Some settings have {min(few)} warm videos only: {why}.")
    return found
