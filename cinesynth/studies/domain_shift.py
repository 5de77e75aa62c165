"""`domain_shift`: what an adapter does in a domain that it was not trained on, against what it does in its own.

Values against different real sets do not compare. So in each domain the adapter's value less the base's is taken, on
the same windows, and then the difference of these two differences.
"""

from __future__ import annotations

from cinesynth.metrics.catalogue import METRICS, label
from cinesynth.report.page import number
from cinesynth.studies.cells import Cell
from cinesynth.studies.estimates import Estimate, beyond
from cinesynth.studies.findings import (
    EMPTY,
    UNAVAILABLE,
    Chart,
    Difference,
    Findings,
    Mark,
    Table,
    conclusions,
    fewer_seeds,
    joined,
    seeds,
    told,
    unsaid,
)
from cinesynth.studies.grid import Grid, Rule, compared_by

SHIFT_METRICS = ("kvd", "fid", "kid", "clip_fid", "clip_sim_text", "clip_sim_frames", "motion_score")
"""MotionScore stands beside the similarity of successive frames: a still is the most similar video."""


def cells(grid: Grid) -> list[Cell]:
    """The grid."""
    return grid.grid_cells()


def findings(grid: Grid) -> Findings:
    """What the finished cells show."""
    return Findings(
        shows=_shows(grid),
        tables=[*(_table(grid, rule) for rule in grid.rules), _values(grid)],
        charts=[chart for metric in SHIFT_METRICS for chart in _chart(grid, metric)],
        warnings=_warnings(grid),
    )


def _differences(grid: Grid, rule: Rule, rank: int, metric: str) -> tuple[Estimate | None, ...]:
    """Adapter less base at home and away, and the second less the first."""
    config = grid.config
    home, away = (
        grid.difference(grid.seeds_of(rule, rank, domain), metric, "adapter") for domain in (config.home, config.away)
    )
    return home, away, None if home is None or away is None else beyond(away, home)


def _table(grid: Grid, rule: Rule) -> Table:
    config, rows = grid.config, []
    for metric in SHIFT_METRICS:
        if grid.unavailable([c for rank in config.ranks for c in _every(grid, rule, rank)], metric):
            rows.append([label(metric), "all", UNAVAILABLE, *["–"] * 4])
            continue
        for rank in config.ranks:
            differences = _differences(grid, rule, rank, metric)
            both = differences[2]
            counts = "–" if both is None else f"{both.n} of {both.groups} groups"
            rows.append([label(metric), str(rank), *map(told, differences), seeds(both), counts])
    return Table(
        f"Adapter − base in both domains, {grid.rules[rule]}",
        ["metric", "rank", config.home, config.away, f"{config.away} − {config.home}", "each seed", "N of each"],
        rows,
        f"Adapters were trained on {config.home}. {_directions()} The last difference takes the domains as "
        "independent: their variances add.",
    )


def _values(grid: Grid) -> Table:
    config, rows = grid.config, []
    for metric in SHIFT_METRICS:
        if grid.unavailable([c for rank in config.ranks for c in _every(grid, "fixed", rank)], metric):
            continue
        for domain in config.domains:
            for rank in config.ranks:
                found = grid.seeds_of("fixed", rank, domain)
                bases = grid.values(found, metric, "base")
                real, base = (number(bases[0].real), number(bases[0].value)) if bases else (EMPTY, EMPTY)
                adapters = ", ".join(number(v.value) for v in grid.values(found, metric, "adapter"))
                rows.append([label(metric), domain, str(rank), real, base, adapters or EMPTY])
    return Table(
        "Values, fixed learning rate",
        ["metric", "domain", "rank", "real", "base", "adapter, each seed"],
        rows,
        "Those of different domains are against different real sets, and do not compare.",
    )


def _every(grid: Grid, rule: Rule, rank: int) -> list[Cell | None]:
    return [cell for domain in grid.config.domains for cell in grid.seeds_of(rule, rank, domain)]


def _directions() -> str:
    higher, match = ([label(m) for m in SHIFT_METRICS if METRICS[m].direction == way] for way in ("higher", "match"))
    return (
        f"Lower is better, of {joined(higher)} higher; of {joined(match)} the distances to the real set's own value "
        "are compared, and lower is closer."
    )


def _shows(grid: Grid) -> list[str]:
    config, asked, missing = grid.config, [], {}
    for metric in SHIFT_METRICS:
        if why := grid.unavailable(_every(grid, "fixed", config.ranks[0]), metric):
            missing[label(metric)] = why
            continue
        raised = METRICS[metric].direction == "higher"
        words = [
            f"adapting to {config.home} helps {config.away} {than} than {config.home} itself"
            for than in ("more", "less")
        ]
        lower, higher = reversed(words) if raised else words
        for rank in config.ranks:
            both = _differences(grid, "fixed", rank, metric)[2]
            what = f"{compared_by(metric)}, rank {rank}, (adapter − base) in {config.away} − in {config.home}"
            asked.append(Difference(what, both, lower, higher))
    counted = [grid.counted(grid.seeds_of("fixed", config.ranks[0], d), f"Windows of {d}") for d in config.domains]
    return [*counted, *conclusions(asked), *unsaid(missing)]


def _chart(grid: Grid, metric: str) -> list[Chart]:
    config, series = grid.config, {}
    for domain in config.domains:
        marks = []
        for rank in config.ranks:
            e = grid.difference(grid.seeds_of("fixed", rank, domain), metric, "adapter")
            if e is not None:
                marks.append(Mark(float(rank), e.value, e.low, e.high, fewer_seeds(len(e.by_seed), e.wanted)))
        if marks:
            series[domain] = marks
    if not series:
        return []
    title = f"{compared_by(metric)}, adapter − base"
    note = "Means over seeds, fixed learning rate. Zero: as the base."
    return [Chart(title, "rank", title, series, {"no difference": 0.0}, logarithmic=True, note=note)]


def _warnings(grid: Grid) -> list[str]:
    config = grid.config
    found = [
        f"What is compared is what adapting to {config.home} does, and not how the two domains differ: the base model "
        f"may know one of them better."
    ]
    if len(config.seeds) < 3:
        found.append(f"{len(config.seeds)} trainings of each rank: another training could turn a difference round.")
    return found
