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


def beats(one: Values, other: Values, noise: Values) -> bool:
    """Whether a point is better beyond the noise in one objective, and not worse beyond it in the other."""
    return bool(better_in(one, other, noise)) and not better_in(other, one, noise)


def better_in(one: Values, other: Values, noise: Values) -> list[int]:
    """The objectives (0, 1) in which a point is better than another one by more than the noise."""
    return [axis for axis in (0, 1) if other[axis] - one[axis] > noise[axis]]


def knee(values: Mapping[str, Values], noise: Values = (0.0, 0.0)) -> str:
    """The point of the front that lies farthest below the line between its ends, both axes scaled to its extent.

    Where several do, as both points of a front of two always lie on that line: the one with the lower sum of
    objectives, each counted in its noise, or in its mean size on the front where the noise of either is 0; then the one
    with the lower first objective.
    """
    names = front(values)
    points = [values[name] for name in names]
    lowest, extent = _lowest(points), _extent(points)
    units = _units(points, noise)

    def key(name: str) -> tuple[float, float, Values]:
        scaled = sum((values[name][axis] - lowest[axis]) / extent[axis] for axis in (0, 1))
        # Rounded, as what is equal in exact arithmetic is a tie.
        return round(scaled, 9), round(_sum_in(values[name], units), 9), values[name]

    return min(names, key=key)


def recommend(values: Mapping[str, Values], ranks: Mapping[str, int], noise: Values) -> str:
    """The knee of the front; or, among points that lie within the noise of it in both objectives, the smallest rank.

    Points that another one beats beyond the noise are left out first: with two objectives one at least remains, as a
    chain of such wins gains more in one objective than it loses there, and never closes.

    Args:
        values: objectives by name.
        ranks: of the adapters, by name.
        noise: differences in each objective that mean nothing: what the baseline's seeds differ by.
    """
    kept = {
        name: point
        for name, point in values.items()
        if not any(beats(other, point, noise) for other in values.values())
    }
    best = knee(kept, noise)
    near = [
        name
        for name, point in kept.items()
        if not better_in(point, kept[best], noise) and not better_in(kept[best], point, noise)
    ]
    units = _units(list(kept.values()), noise)
    return min(near, key=lambda name: (ranks[name], name != best, _sum_in(kept[name], units), name))


def _lowest(points: Sequence[Values]) -> Values:
    return min(x for x, _ in points), min(y for _, y in points)


def _extent(points: Sequence[Values]) -> Values:
    """Of each objective over the points; 1 where they do not differ."""
    (left, low), (right, high) = _lowest(points), (max(x for x, _ in points), max(y for _, y in points))
    return right - left or 1.0, high - low or 1.0


def _units(points: Sequence[Values], noise: Values) -> Values:
    """What differences in each objective are counted in, so that they add up."""
    if min(noise) > 0:
        return noise
    sizes = [sum(abs(point[axis]) for point in points) / len(points) for axis in (0, 1)]
    return sizes[0] or 1.0, sizes[1] or 1.0


def _sum_in(point: Values, units: Values) -> float:
    return point[0] / units[0] + point[1] / units[1]
