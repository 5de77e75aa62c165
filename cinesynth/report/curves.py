"""Training curves as inline SVG that follows the page's colours, light and dark.

Matplotlib draws with marker colours, which then become the page's CSS variables. Text stays text, so it takes the
page's font and can be searched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from cinesynth.studies.findings import Chart

_INK, _SOFT, _LINE, _ACCENT = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
_VARIABLES = {_INK: "var(--ink)", _SOFT: "var(--soft)", _LINE: "var(--line)", _ACCENT: "var(--accent)"}
_WIDTH, _HEIGHT = 7.4, 4.1  # inches; 72 units each
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "DejaVu Sans"],
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "lines.solid_capstyle": "round",
}
_MAX_POINTS = 2000


def loss_curve(steps: Sequence[int], losses: Sequence[float], rates: Sequence[float]) -> Markup:
    """Training loss of each step, its running mean (`smoothing_window` steps), and the learning rate below."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "loss"}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        window = smoothing_window(len(losses))
        stride = -(-len(steps) // _MAX_POINTS)
        top.plot(steps[::stride], losses[::stride], color=_SOFT, alpha=0.45, linewidth=0.9, label="each step")
        top.plot(
            steps[::stride],
            running_mean(losses, window)[::stride],
            color=_ACCENT,
            linewidth=2.2,
            label=f"mean of the last {window} steps",
        )
        top.set_ylabel("training loss")
        top.legend(frameon=False, loc="upper right", fontsize=10, labelcolor=_SOFT)
        bottom.plot(steps[::stride], rates[::stride], color=_INK, linewidth=1.4)
        bottom.set_ylim(0, max(rates) * 1.15 or 1)
        bottom.set_yticks([0, max(rates)], ["0", f"{max(rates):.2g}"])
        bottom.set_ylabel("lr")
        _step_axis(bottom)
        figure.align_ylabels()
        return _themed(figure)


def held_out_curve(steps: Sequence[int], mean: Sequence[float], by_sigma: Mapping[str, Sequence[float]]) -> Markup:
    """Held-out loss as a change against its first value, in percent: one line a noise level, and their mean.

    Args:
        steps: optimiser steps of the validations; the first is what the others are compared with.
        mean: loss over all noise levels, at each of them.
        by_sigma: loss by noise level, fainter for the smaller ones.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "held-out"}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=_SOFT, linewidth=0.9)
        ends = []
        for place, (sigma, losses) in enumerate(sorted(by_sigma.items(), key=lambda item: float(item[0]))):
            change = _percent(losses)
            strength = 0.3 + 0.5 * (place + 1) / len(by_sigma)
            axes.plot(steps, change, color=_ACCENT, alpha=strength, linewidth=1.5, marker="o", markersize=3)
            ends.append((float(change[-1]), f"σ {sigma}", _SOFT))
        change = _percent(mean)
        axes.plot(steps, change, color=_INK, linewidth=2.4, marker="o", markersize=4)
        ends.append((float(change[-1]), "mean", _INK))
        axes.set_ylabel("held-out loss, change in %")
        axes.margins(x=0.02)
        _step_axis(axes)
        _label_ends(axes, steps[-1], ends)
        return _themed(figure)


def band_curve(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Markup:
    """Training loss by noise level: the running mean of each band (steps, losses), fainter for the lower ones."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "bands"}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        ends, last = [], 0
        for place, (name, (steps, losses)) in enumerate(curves.items()):
            smooth = running_mean(losses, smoothing_window(len(losses)))
            stride = -(-len(steps) // _MAX_POINTS)
            strength = 0.3 + 0.7 * (place + 1) / len(curves)
            axes.plot(steps[::stride], smooth[::stride], color=_ACCENT, alpha=strength, linewidth=1.8)
            ends.append((smooth[-1], name, _SOFT))
            last = max(last, steps[-1])
        axes.set_ylabel("training loss, running mean")
        axes.margins(x=0.02)
        _step_axis(axes)
        _label_ends(axes, last, ends)
        return _themed(figure)


def progress_curve(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str, x: str) -> Markup:
    """Named curves (x, y) over one axis, each labelled at its end."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        for place, (name, (steps, values)) in enumerate(curves.items()):
            colour = (_ACCENT, _INK, _SOFT)[place % 3]
            axes.plot(steps, values, color=colour, linewidth=2, marker="o", markersize=3)
            end = (steps[-1], values[-1])
            axes.annotate(name, end, xytext=(0, 9), textcoords="offset points", ha="right", color=colour, fontsize=10)
        axes.set_ylabel(label)
        axes.set_xlabel(x)
        if all(isinstance(place, int) for places, _ in curves.values() for place in places):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02, y=0.12)
        return _themed(figure)


def front_chart(
    points: Mapping[str, tuple[float, float]],
    line: Sequence[str],
    marked: Mapping[str, str],
    noise: tuple[float, float],
    labels: tuple[str, str],
) -> Markup:
    """Trials by two objectives, lower left is better: the front as a line, some marked by a word.

    Args:
        points: objectives by trial.
        line: trials of the front, in order.
        marked: trial to the word beside it.
        noise: standard deviation of each objective, drawn as bars on the marked ones.
        labels: of the axes.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "front"}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        xs, ys = zip(*points.values(), strict=True)
        axes.scatter(xs, ys, color=_SOFT, s=22, alpha=0.7)
        axes.plot(*zip(*(points[name] for name in line), strict=True), color=_ACCENT, linewidth=1.8, marker="o")
        for name, word in marked.items():
            x, y = points[name]
            axes.errorbar(x, y, xerr=noise[0], yerr=noise[1], color=_INK, linewidth=1, fmt="o", markersize=6)
            axes.annotate(word, (x, y), xytext=(8, 8), textcoords="offset points", color=_INK, fontsize=10)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(x=0.12, y=0.14)
        return _themed(figure)


def slice_chart(values: Mapping[str, Sequence[tuple[float, float]]], label: str, logarithmic: bool) -> Markup:
    """What each objective was at each value of one setting: a panel an objective."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"slice {label}"}):
        figure = Figure(figsize=(_WIDTH, 2.6), layout="constrained")
        for axes, (name, pairs) in zip(figure.subplots(1, len(values)), values.items(), strict=True):
            xs, ys = zip(*pairs, strict=True)
            axes.scatter(xs, ys, color=_ACCENT, s=22, alpha=0.8)
            axes.set_ylabel(name)
            axes.set_xlabel(label)
            if logarithmic:
                axes.set_xscale("log")
                ends = sorted({min(xs), (min(xs) * max(xs)) ** 0.5, max(xs)})
                axes.set_xticks(ends, [f"{end:.3g}" for end in ends])
                axes.minorticks_off()
        return _themed(figure)


def study_chart(chart: Chart) -> Markup:
    """A study's chart: its series with their intervals, and its levels drawn across."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": chart.title}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        if chart.logarithmic:
            axes.set_xscale("log")
        for place, (name, marks) in enumerate(chart.series.items()):
            colour = (_ACCENT, _INK, _SOFT)[place % 3]
            style = ("-", "--", ":")[place // 3 % 3]
            xs, ys = [m.x for m in marks], [m.y for m in marks]
            below = [0.0 if m.low is None else max(0.0, m.y - m.low) for m in marks]
            above = [0.0 if m.high is None else max(0.0, m.high - m.y) for m in marks]
            axes.plot(xs, ys, color=colour, linewidth=1.6, linestyle=style, marker="o", markersize=5, label=name)
            axes.errorbar(xs, ys, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)
            for mark in marks:
                at = (mark.x, mark.y)
                axes.annotate(mark.word, at, xytext=(7, 7), textcoords="offset points", color=colour, fontsize=10)
        for name, level in chart.levels.items():
            axes.axhline(level, color=_SOFT, linewidth=0.9, linestyle="--")
            across = axes.get_yaxis_transform()  # x: share of the axes; y: data
            axes.text(0.99, level, name, transform=across, ha="right", va="bottom", color=_SOFT, fontsize=10)
        if chart.logarithmic:
            ends = sorted({m.x for marks in chart.series.values() for m in marks})
            axes.set_xticks(ends, [f"{end:g}" for end in ends])
            axes.minorticks_off()
        elif all(float(m.x).is_integer() for marks in chart.series.values() for m in marks):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(chart.x)
        axes.set_ylabel(chart.y)
        axes.margins(x=0.12, y=0.14)
        axes.legend(frameon=False, fontsize=10, labelcolor=_SOFT)
        return _themed(figure)


def smoothing_window(steps: int) -> int:
    """Steps that the running mean covers: a twentieth of the run, at least 5."""
    return max(5, steps // 20)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at every place; at the start, of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - window)
    return [float(mean) for mean in (sums[ends] - sums[starts]) / (ends - starts)]


def _percent(losses: Sequence[float]) -> np.ndarray:
    values = np.asarray(losses, np.float64)
    return 100 * (values / values[0] - 1)


def _step_axis(axes: Axes) -> None:
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _label_ends(axes: Axes, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Names beside the last points, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.062
    places: list[float] = []
    for value, _, _ in sorted(ends):
        places.append(max(value, places[-1] + gap) if places else value)
    shift = max(0.0, places[-1] - (high - gap / 2))
    for place, (_, name, colour) in zip(places, sorted(ends), strict=True):
        axes.annotate(
            name,
            (x, place - shift),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=10,
            fontweight="bold" if name == "mean" else "normal",
            annotation_clip=False,
        )


def _themed(figure: Figure) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r'font-family: [^;"]*', "font-family: inherit", svg)
    for marker, variable in _VARIABLES.items():
        svg = svg.replace(marker, variable)
    return Markup(svg)
