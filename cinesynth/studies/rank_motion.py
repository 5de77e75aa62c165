"""`rank_motion`: how much the videos move by rank, beside how much the real ones do, in both domains."""

from __future__ import annotations

from statistics import fmean

from cinesynth.metrics.catalogue import label
from cinesynth.report.page import number
from cinesynth.studies.cells import Cell
from cinesynth.studies.estimates import Estimate, beyond
from cinesynth.studies.findings import (
    EMPTY,
    Chart,
    Difference,
    Findings,
    Mark,
    Table,
    conclusions,
    fewer_seeds,
    seeds,
    told,
)
from cinesynth.studies.grid import Grid, Rule

METRIC = "motion_score"


def cells(grid: Grid) -> list[Cell]:
    """The grid."""
    return grid.grid_cells()


def findings(grid: Grid) -> Findings:
    """What the finished cells show."""
    why = grid.unavailable(
        [grid.against_base("fixed", grid.config.ranks[0], grid.config.home, grid.config.seeds[0])], METRIC
    )
    if why:
        return Findings([f"Nothing can be said by {label(METRIC)}: {why}."], [], [])
    charts = [chart for rule in grid.rules for chart in _charts(grid, rule)]
    return Findings(
        _shows(grid), [*(_table(grid, rule) for rule in grid.rules), _contrasts(grid)], charts, _warnings(grid)
    )


def _table(grid: Grid, rule: Rule) -> Table:
    rows = []
    for domain in grid.config.domains:
        for rank in grid.config.ranks:
            found = grid.seeds_of(rule, rank, domain)
            adapters, bases = (grid.values(found, METRIC, arm) for arm in ("adapter", "base"))
            real = next((v.real for v in adapters if v.real is not None), None)
            base = bases[0].value if bases else None
            each = ", ".join(number(v.value) for v in adapters)
            difference = grid.difference(found, METRIC, "adapter")
            rows.append([domain, str(rank), number(real), number(base), each or EMPTY, told(difference)])
    return Table(
        f"{label(METRIC)} by rank, {grid.rules[rule]}",
        ["domain", "rank", "real", "base", "adapter, each seed", "distance to real, adapter − base"],
        rows,
        "A video that moves more is not better for it: what counts is how far a set's mean lies from the real set's.",
    )


def _contrasts(grid: Grid) -> Table:
    least, rows = min(grid.config.ranks), []
    for rule in grid.rules:
        for rank in (r for r in grid.config.ranks if r != least):
            found = _differences(grid, rule, rank)
            rows.append([f"rank {rank} − rank {least}", grid.rules[rule], *map(told, found), seeds(found[2])])
    home, away = grid.config.home, grid.config.away
    columns = ["difference", "rule", home, away, f"{away} − {home}", "each seed"]
    return Table("Distance to the real set, between ranks", columns, rows, "Below zero: the higher rank is closer.")


def _differences(grid: Grid, rule: Rule, rank: int) -> tuple[Estimate | None, ...]:
    """A rank less the lowest one, at home and away, and the second less the first."""
    home, away = (grid.contrast(rule, rank, domain, METRIC) for domain in grid.config.domains)
    return home, away, None if home is None or away is None else beyond(away, home)


def _shows(grid: Grid) -> list[str]:
    config, asked = grid.config, []
    most, least = max(config.ranks), min(config.ranks)
    for rule, name in grid.rules.items():
        by = f", {name}" if len(grid.rules) > 1 else ""
        for domain in config.domains:
            for rank in config.ranks:
                what = f"Distance of {label(METRIC)} to the real set in {domain}, rank {rank} − base{by}"
                found = grid.difference(grid.seeds_of(rule, rank, domain), METRIC, "adapter")
                words = (f"the {arm} moves more like the real windows" for arm in ("adapter", "base"))
                asked.append(Difference(what, found, *words))
        *own, both = _differences(grid, rule, most)
        for domain, estimate in zip(config.domains, own, strict=True):
            what = f"Distance of {label(METRIC)} to the real set in {domain}, rank {most} − rank {least}{by}"
            lower = f"rank {most} moves more like the real windows than rank {least}"
            higher = f"rank {least} moves more like the real windows than rank {most}"
            asked.append(Difference(what, estimate, lower, higher))
        what = f"What the rank does in {config.away} less what it does in {config.home}{by}"
        words = (f"a higher rank helps {config.away} {than} than {config.home}" for than in ("more", "less"))
        asked.append(Difference(what, both, *words))
    counted = [grid.counted(grid.seeds_of("fixed", least, d), f"Windows of {d}") for d in config.domains]
    return [*counted, *conclusions(asked)]


def _charts(grid: Grid, rule: Rule) -> list[Chart]:
    charts = []
    for domain in grid.config.domains:
        marks, levels = [], {}
        for rank in grid.config.ranks:
            found = grid.seeds_of(rule, rank, domain)
            values = [float(v.value) for v in grid.values(found, METRIC, "adapter") if v.value is not None]
            if values:
                word = fewer_seeds(len(values), len(grid.config.seeds))
                marks.append(Mark(float(rank), fmean(values), min(values), max(values), word))
            for v in grid.values(found, METRIC, "base"):
                levels = {"base": float(v.value or 0.0), **({} if v.real is None else {"real": v.real})}
        if marks:
            title = f"{label(METRIC)} in {domain}, {grid.rules[rule]}"
            note = "Bars go from the lowest seed to the highest."
            charts.append(Chart(title, "rank", label(METRIC), {"adapters": marks}, levels, logarithmic=True, note=note))
    return charts


def _warnings(grid: Grid) -> list[str]:
    says = f"{label(METRIC)} says how much moves, and not whether it moves as it should"
    return [f"{says}: read it with the metrics of rank_quality."]
