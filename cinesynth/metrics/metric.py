"""What a metric is: a network that turns videos into numbers, and how these become values and comparisons.

A file of metrics holds a tuple `METRICS` and is one line of `cinesynth.metrics.catalogue`. It imports no torch at its
top: configuration and pages read it. Whatever needs torch is imported inside `load` and `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cinesynth.errors import MetricError
from cinesynth.metrics.record import Comparison, Direction, IntervalRecord, Value
from cinesynth.metrics.statistics import Interval, NoInterval

if TYPE_CHECKING:
    from cinesynth.config import EvaluateSettings

Item = tuple[Any, ...]
"""What a network sees at once: (video,), or (real video, video) for pairs, then the video's frames per second and the
caption where it asks for them. A video is uint8 RGB frames [T, H, W, 3]."""

SHOWN = "uint8 RGB as shown: upright, in square pixels (Lanczos), in the matrix and range stated or assumed"
"""How every video is read, as a network's `preprocessing` is to say it."""

FRAME_0_GIVEN = "frame 0 is given to an image-to-video model"
"""The `frames_note` of metrics of pairs that leave frame 0 out."""


def _no_weights(settings: EvaluateSettings) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Network:
    """How videos become numbers: a network, or a plain function of frames. Metrics that share one run it once.

    Attributes:
        name: key of the network.
        label: its name as people write it.
        run: (what `load` gave, items) to one row an item, [B, ...] float64: features [d] of the video, features
            [T, d] of each frame, or a number for each frame.
        load: the torch module on the CPU, in evaluation mode; None where `run` needs none.
        weights: name of each file of weights to its sha256, without torch.
        preprocessing: all that happens to frames before they reach the network.
        pair: it compares a video with the real one of the same name.
        fps: it reads the video's frames per second, above 0.
        caption: it reads the caption.
        min_frames: frames that a video needs at least; `frames_needed` counts those of `start` and `count` too.
        start: first frame that it sees, 0-based.
        count: frames that it sees from there on; None: all.
        min_side: pixels that the shorter side needs.
        d: dimension of the features.
        dtype: number formats, for the record.
        version: raised whenever a change of its code changes its rows: kept rows of another version do not count.
    """

    name: str
    label: str
    run: Callable[[Any, Sequence[Item]], NDArray[np.floating]]
    load: Callable[[EvaluateSettings], Any] | None = None
    weights: Callable[[EvaluateSettings], dict[str, str]] = _no_weights
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    pair: bool = False
    fps: bool = False
    caption: bool = False
    min_frames: int = 1
    start: int = 0
    count: int | None = None
    min_side: int = 1
    d: int | None = None
    dtype: str = "float32 networks without TF32, float64 statistics"
    version: int = 1

    def of_frames(self, start: int, count: int, which: str) -> Network:
        """This network where it sees `count` frames from `start` on; `which` says so in its preprocessing."""
        return replace(
            self,
            name=f"{self.name}_{count}f",
            label=f"{self.label} ({count} frames)",
            preprocessing={"frames": which, **self.preprocessing},
            start=start,
            count=count,
        )

    @property
    def frames_needed(self) -> int:
        """Frames that a video has to have."""
        return self.start + max(self.min_frames, self.count or 1)


@dataclass(frozen=True)
class Sample:
    """What a network found of one set of videos.

    Attributes:
        name: `real`, or the arm's name.
        rows: id of the video to its row, or to a row for each frame [T, d]; empty for the real set of a network that
            compares pairs.
        groups: id of every video of the set to its group.
        unavailable: why there are no rows.
    """

    name: str
    rows: Mapping[str, NDArray[np.float64]]
    groups: Mapping[str, str]
    unavailable: str | None = None

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The rows as [N, d], in the order of `rows`; a video with a row for each frame gives as many."""
        return np.concatenate([np.atleast_2d(row) for row in self.rows.values()])

    @property
    def row_groups(self) -> list[str]:
        """Group of each row of `matrix`."""
        return [self.groups[key] for key, row in self.rows.items() for _ in np.atleast_2d(row)]

    def only(self, ids: Sequence[str]) -> Sample:
        """The same with the rows of these videos alone."""
        return replace(self, rows={key: self.rows[key] for key in ids})


@dataclass(frozen=True)
class Results:
    """What a metric says of all arms."""

    values: list[Value]
    comparisons: list[Comparison]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Metric:
    """One metric of the catalogue.

    Attributes:
        name: in configurations and records: lower-case letters, digits, `_`.
        label: its name as people write it.
        version: raised whenever a change of the definition changes its numbers.
        description: the definition in a line.
        network: what it is computed from.
        measure: from (this metric, the real set, the arms with the baseline first) to values and comparisons:
            `means.group_means` for a number of each video or pair.
        direction: whether `lower` or `higher` values are better, or those that `match` the real set's own.
        primary: it carries the verdict; the others are shown beside.
        real: it measures against the real set, so that better means closer to it.
        first_frame: the first number of a row that counts, 0-based. A row has one for each frame; one fewer, where each
            stands for a frame and the next.
        frames_note: why frames are left out.
        beside: the metrics that this one accompanies: it is computed whenever one of them is.
        ddof: covariances are divided by N - ddof.
    """

    name: str
    label: str
    version: int
    description: str
    network: Network
    measure: Callable[[Metric, Sample, Sequence[Sample]], Results]
    direction: Direction = "lower"
    primary: bool = False
    real: bool = False
    first_frame: int = 0
    frames_note: str = ""
    beside: tuple[str, ...] = ()
    ddof: int | None = None

    @property
    def needs(self) -> list[Literal["pair", "caption", "real"]]:
        """What it needs besides the arm's videos: the real video of the same name, the caption, the real set."""
        needed: dict[Literal["pair", "caption", "real"], bool] = {
            "pair": self.network.pair,
            "caption": self.network.caption,
            "real": self.real or self.direction == "match",
        }
        return [name for name, needs in needed.items() if needs]

    def of_frames(self, network: Network) -> Metric:
        """This metric over the frames that another network sees, as a secondary one."""
        name, label = f"{self.name}_{network.count}f", f"{self.label}-{network.count}"
        return replace(self, name=name, label=label, network=network, primary=False)

    def frames(self, fewest: int, most: int) -> str:
        """Which of a video's frames count, in words; the shortest video has `fewest`, the longest `most`."""
        last = str(most - 1) if fewest == most else f"the last ({fewest - 1} to {most - 1})"
        if self.network.count is not None:
            last = str(self.network.start + self.network.count - 1)
        first = self.network.start + self.first_frame
        return f"{first} to {last}" + (f"; {self.frames_note}" if self.frames_note else "")


def require_finite(metric: Metric, arm: str, key: str, numbers: NDArray[np.float64]) -> None:
    """Raise MetricError where a video's numbers hold one that is not finite: it would decide the mean of all."""
    if not np.isfinite(numbers).all():
        found = numbers[~np.isfinite(numbers)][0]
        raise MetricError(
            f"{metric.label} of {arm}: {key} has a score of {found:g}; look at that video, or leave out {metric.name!r}"
        )


def interval_fields(make: Callable[[], Interval]) -> dict[str, Any]:
    """The fields `interval` and `reason` of a value or a comparison."""
    try:
        return {"interval": IntervalRecord.of(make()), "reason": None}
    except NoInterval as e:
        return {"interval": None, "reason": f"no interval: {e}"}
