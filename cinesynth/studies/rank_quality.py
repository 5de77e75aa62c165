"""`rank_quality`: what the rank does to the distribution of the videos and to how close each is to its real one."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from cinesynth.metrics.catalogue import label
from cinesynth.report.page import number
from cinesynth.studies.cells import Cell
from cinesynth.studies.findings import EMPTY, Chart, Difference, Findings, Mark, Table, conclusions, seeds, told
from cinesynth.studies.grid import Grid, Rule, arm_of
from cinesynth.studies.inputs import LONG_FRAMES
from cinesynth.studies.segments import cut_parts, part_folder, part_frames

PART_METRICS = ("kvd", "fvd", "lpips", "r_lpips")


def cells(grid: Grid) -> list[Cell]:
    """The grid, and long clips by the lowest and the highest rank."""
    return [*grid.grid_cells(), *(cell for found in long_parts(grid).values() for cell in found)]


def long_parts(grid: Grid) -> dict[int, list[Cell]]:
    """Rank to the measurements of the parts of long clips: lowest and highest rank, fixed learning rate, first seed."""
    config = grid.config
    if config.generate.expansion is None:
        return {}
    base = grid.videos(None, config.long)
    return {
        rank: _parts(grid, base, grid.videos(grid.adapter(rank, config.seeds[0], 1.0), config.long))
        for rank in (min(config.ranks), max(config.ranks))
    }


def _part_frames(grid: Grid) -> int:
    """Frames of a part of a long clip."""
    expansion = grid.config.generate.expansion
    assert expansion is not None
    return part_frames(expansion.segment_frames, expansion.overlap)


def _parts(grid: Grid, base: Cell, made: Cell) -> list[Cell]:
    """The measurements of the whole parts of two cells' long clips, in order."""
    return [_part(grid, base, made, number) for number in range(LONG_FRAMES // _part_frames(grid))]


def _part(grid: Grid, base: Cell, made: Cell, number: int) -> Cell:
    long, frames = grid.config.long, _part_frames(grid)
    arms = {arm_of(cell): cell for cell in (base, made)}
    cut_from = {"real": (base, "real"), **{arm: (cell, arm) for arm, cell in arms.items()}}

    def cut() -> None:
        for cell, arm in cut_from.values():
            cut_parts(grid.cells.folder(cell), arm, number, frames)

    places = {name: grid.folder(cell, *part_folder(number, frames, arm)) for name, (cell, arm) in cut_from.items()}
    given = {"arms": {arm: places[arm] for arm in arms}, "real": places["real"]}
    given["groups"] = grid.folder(base, "groups.csv")
    inputs = {"dataset": grid.inputs.datasets[long], "part": number, "frames": frames}
    against = " against ".join(cell.what.partition(": ")[2] for cell in (made, base))
    what = f"metrics of {long}, part {number + 1}: {against}"
    return replace(grid.evaluation(given, inputs, PART_METRICS, what, [base, made]), before=cut)


def findings(grid: Grid) -> Findings:
    """What the finished cells show."""
    metrics = ("kvd", "fvd", grid.perceptual)
    charts = [chart for rule in grid.rules for chart in _trade(grid, rule)]
    return Findings(
        shows=[*_shows(grid), *_long_shows(grid)],
        tables=[*(_table(grid, rule, metrics) for rule in grid.rules), _contrasts(grid, metrics), *_long_tables(grid)],
        charts=[*charts, *_long_charts(grid)],
        warnings=_warnings(grid),
    )


def _table(grid: Grid, rule: Rule, metrics: tuple[str, ...]) -> Table:
    rows = []
    for rank in grid.config.ranks:
        factor = grid.factor(rule, rank)
        row = [str(rank), EMPTY if factor is None else f"{grid.lr(factor):g}"]
        for metric in metrics:
            found = grid.seeds_of(rule, rank, grid.config.home)
            values = grid.values(found, metric, "adapter")
            row.append(", ".join(number(v.value) for v in values) or grid.unavailable(found, metric) or EMPTY)
            row.append(told(grid.difference(found, metric, "adapter")))
        rows.append(row)
    columns = ["rank", "lr"]
    columns += [name for metric in metrics for name in (f"{label(metric)}, each seed", "adapter − base")]
    return Table(
        f"By rank, {grid.rules[rule]}",
        columns,
        rows,
        f"In the domain that was trained on, {grid.config.home}. Differences are means over seeds; lower is closer to "
        "the real windows.",
    )


def _contrasts(grid: Grid, metrics: tuple[str, ...]) -> Table:
    least, rows = min(grid.config.ranks), []
    for rule in grid.rules:
        for rank in grid.config.ranks:
            if rank == least:
                continue
            for metric in metrics:
                found = grid.contrast(rule, rank, grid.config.home, metric)
                counts = ["–", "–"] if found is None else [str(found.n), str(found.groups)]
                what = [f"rank {rank} − rank {least}", grid.rules[rule], label(metric)]
                rows.append([*what, told(found), seeds(found), *counts])
    return Table(
        "Between ranks",
        ["difference", "rule", "metric", "mean over seeds", "each seed", "N", "groups"],
        rows,
        "Of the same windows, paired.",
    )


def _shows(grid: Grid) -> list[str]:
    config, least = grid.config, min(grid.config.ranks)
    asked = []
    for rule, name in grid.rules.items():
        by = f", {name}" if len(grid.rules) > 1 else ""
        for metric in ("kvd", grid.perceptual):
            for rank in config.ranks:
                found = grid.seeds_of(rule, rank, config.home)
                lower, higher = (f"the {arm} is closer to the real windows" for arm in ("adapter", "base"))
                what = f"{label(metric)}, rank {rank} − base{by}"
                asked.append(Difference(what, grid.difference(found, metric, "adapter"), lower, higher))
            for rank in (r for r in config.ranks if r != least):
                lower = f"rank {rank} is closer to the real windows than rank {least}"
                higher = f"rank {least} is closer to the real windows than rank {rank}"
                what = f"{label(metric)}, rank {rank} − rank {least}{by}"
                asked.append(Difference(what, grid.contrast(rule, rank, config.home, metric), lower, higher))
    counted = grid.counted(grid.seeds_of("fixed", least, config.home), f"Windows of {config.home}")
    return [counted, *conclusions(asked)]


def _trade(grid: Grid, rule: Rule) -> list[Chart]:
    """The distribution's distance over the perceptual one: a point a rank."""
    charts = []
    for metric in ("kvd", "fvd"):
        marks = []
        for rank in grid.config.ranks:
            cells_of = grid.seeds_of(rule, rank, grid.config.home)
            xs, ys = grid.values(cells_of, grid.perceptual, "adapter"), grid.values(cells_of, metric, "adapter")
            if xs and ys:
                x, y = (fmean(float(v.value) for v in values if v.value is not None) for values in (xs, ys))
                marks.append(Mark(x, y, word=f"rank {rank}"))
        base = grid.seeds_of(rule, grid.config.ranks[0], grid.config.home)
        bases = [grid.values(base, name, "base") for name in (grid.perceptual, metric)]
        series = {"adapters": marks}
        if all(bases) and marks:
            x, y = (float(values[0].value or 0.0) for values in bases)
            series["base"] = [Mark(x, y, word="base")]
        if marks:
            title = f"{label(metric)} against {label(grid.perceptual)}, {grid.rules[rule]}"
            note = "Means over seeds. Lower left is closer to the real windows."
            charts.append(Chart(title, label(grid.perceptual), label(metric), series, note=note))
    return charts


def _long_tables(grid: Grid) -> list[Table]:
    rows = []
    for rank, parts in long_parts(grid).items():
        for k, cell in enumerate(parts):
            for metric in ("kvd", "fvd", grid.perceptual):
                values = [grid.values([cell], metric, arm) for arm in ("base", "adapter")]
                shown = [number(v[0].value) if v else EMPTY for v in values]
                difference = grid.difference([cell], metric, "adapter")
                rows.append([str(rank), str(k + 1), label(metric), *shown, told(difference)])
    if not rows:
        return []
    expansion = grid.config.generate.expansion
    assert expansion is not None
    return [
        Table(
            "Long clips, part by part",
            ["rank", "part", "metric", "base", "adapter", "adapter − base"],
            rows,
            f"Clips of {grid.config.long}, made in segments of {expansion.segment_frames} frames; a part is the "
            f"{_part_frames(grid)} frames from where a segment begins to where the next one does. Fixed learning rate, "
            "first seed.",
        )
    ]


def _long_charts(grid: Grid) -> list[Chart]:
    charts = []
    for metric in ("kvd", grid.perceptual):
        series: dict[str, list[Mark]] = {}
        for rank, parts in long_parts(grid).items():
            for arm, name in (("base", "base"), ("adapter", f"rank {rank}")):
                found = [(k + 1, grid.values([cell], metric, arm)) for k, cell in enumerate(parts)]
                marks = [Mark(k, float(v[0].value)) for k, v in found if v and v[0].value is not None]
                if marks:
                    series[name] = marks
        if series:
            charts.append(Chart(f"{label(metric)} over a long clip", "part", label(metric), series))
    return charts


def _long_shows(grid: Grid) -> list[str]:
    every = long_parts(grid)
    if not every:
        return ["Long clips were not made: generate.expansion is not given."]
    if not any(every.values()):
        adds = f"a segment adds {_part_frames(grid)} frames, and parts are of the first {LONG_FRAMES}"
        return [f"Long clips have no part: {adds}."]
    asked = []
    for rank, parts in every.items():
        name = f"{label(grid.perceptual)} of long clips, rank {rank} − base, part"
        lower, higher = "the adapter is closer to the real clips there", "the base is closer to the real clips there"
        for place in sorted({1, len(parts)}):
            difference = grid.difference([parts[place - 1]], grid.perceptual, "adapter")
            asked.append(Difference(f"{name} {place}", difference, lower, higher))
    counted = grid.counted(every[min(every)], "Parts of the long clips", grid.config.seeds[:1])
    return [counted, *conclusions(asked)]


def _warnings(grid: Grid) -> list[str]:
    counts = [
        v.n for v in grid.values(grid.seeds_of("fixed", grid.config.ranks[0], grid.config.home), "fvd", "adapter")
    ]
    found = []
    if counts and min(counts) < 400:
        found.append(f"FVD of {min(counts)} videos is mostly bias (its features have 400 dimensions): read KVD.")
    if grid.perceptual == "lpips":
        found.append(
            "R-LPIPS needs its published weights (evaluate.r_lpips_weights): LPIPS is shown, under its own name."
        )
    return found
