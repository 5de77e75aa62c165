"""What two objectives, both minimised, say of a set of points: the front, its hypervolume, and which point to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Values = tuple[float, float]


def front(values: Mapping[str, Values]) -> list[str]:
    """Names of the points that no other beats in one objective without losing in the other, by the first objective.

    Of equal points the first by name is taken.
    """
    found: list[str] = []
    lowest = float("inf")
    for name in sorted(values, key=lambda n: (*values[n], n)):
        if values[name][1] < lowest:
            found.append(name)
            lowest = values[name][1]
    return found


def hypervolume(points: Sequence[Values], reference: Values) -> float:
    """Area that the points dominate below a reference point; points beyond it add nothing."""
    area, ceiling = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return area


def knee(values: Mapping[str, Values]) -> str:
    """The point of the front that lies farthest below the line between its ends, both axes scaled to its extent."""
    names = front(values)
    xs, ys = ([values[name][axis] for name in names] for axis in (0, 1))
    width, height = max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0
    return min(names, key=lambda n: ((values[n][0] - min(xs)) / width + (values[n][1] - min(ys)) / height, n))


def recommend(values: Mapping[str, Values], ranks: Mapping[str, int], noise: Values) -> str:
    """The knee of the front; or, among points that lie within the noise of it in both objectives, the smallest rank.

    Args:
        values: objectives by name.
        ranks: of the adapters, by name.
        noise: differences in each objective that mean nothing: what the baseline's seeds differ by.
    """
    best = knee(values)
    near = [
        name
        for name, point in values.items()
        if all(value <= value_best + width for value, value_best, width in zip(point, values[best], noise, strict=True))
    ]
    return min(near, key=lambda name: (ranks[name], name != best, sum(values[name]), name))
