"""How a benchmark ends: its figures, which targets are met, and one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def conclude(name: str, figures: Mapping[str, Any], targets: Mapping[str, tuple[str, float]]) -> None:
    """Print all figures and whether each target is met; the last line holds them as JSON.

    Args:
        name: of the benchmark.
        figures: name to value.
        targets: figure to what it has to be: (`>=` or `<=`, bound).
    """
    passed = {
        figure: figures[figure] >= bound if sign == ">=" else figures[figure] <= bound
        for figure, (sign, bound) in targets.items()
    }
    for figure, value in figures.items():
        mark = "" if figure not in passed else "ok" if passed[figure] else "MISSED"
        print(f"  {figure:40} {value!s:>12}  {mark}")
    told = {figure: f"{sign} {bound}" for figure, (sign, bound) in targets.items()}
    print(json.dumps({"name": name, "figures": figures, "targets": told, "pass": all(passed.values())}))
