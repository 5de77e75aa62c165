"""What the nano model can do: `python -m benchmarks.nano [--model DIR] [--windows 64] [--record DIR]`.

It prints three tables: the home domain (held-out screenplays over held-out photographs), out of domain (bikes.mp4 as it
is), and an adaptation to a film look by `nano/style.yaml`. The rivals are the repeated first frame, a PCA with as many
numbers as the VAE's latents, the same model with random weights, and the base without the adapter.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

from cinesynth.config import TrainConfig
from cinesynth.nano.evaluation import adaptation_figures, bikes_samples, home_figures, measure
from cinesynth.nano.recipe import full_recipe
from cinesynth.report.nano import record_figures
from cinesynth.settings import load_config

STYLE = Path(__file__).resolve().parent.parent / "jobs" / "configs" / "nano" / "style.yaml"

Target = tuple[str, str, float | str]
"""(figure, comparison, bound). A bound is a number, or the name of another figure."""
HOME: list[Target] = [
    ("vae_psnr", ">", "vae_floor"),
    ("vae_psnr", ">=", 27.0),
    ("vae_drift", "<=", 1.0),
    ("vae_colour_error", "<", 3.0),
    ("first_frame_psnr", ">=", 24.0),
    ("kvd_share_of_random", "<=", 0.2),
    ("kvd_nano_minus_repeat_high", "<", 0.0),
    ("lpips_late_nano_minus_repeat_high", "<", 0.0),
    ("moves_found", ">=", 0.8),
    ("temporal_ssim_share_of_real", ">=", 0.9),
    ("loss_wrong_first_frame_minus_right_low", ">", 0.0),
    ("loss_wrong_caption_minus_right_low", ">", 0.0),
]
ADAPTATION: list[Target] = [
    ("loss_adapter_minus_base_high", "<", 0.0),
    ("kvd_adapter_minus_base_high", "<", 0.0),
    ("lpips_late_adapter_minus_base_high", "<", 0.0),
    ("push_in_adapter", ">", 0.06),
    ("training_minutes", "<", 3.0),
]


def main(argv: list[str] | None = None) -> None:
    """Print the tables. The last line holds the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nano", description=__doc__)
    parser.add_argument("--model", default="nano", help="'nano', or a folder that `make nano` left")
    parser.add_argument("--windows", type=int, default=64, help="held-out windows of the home domain")
    parser.add_argument("--record", type=Path, help="folder of `make nano`: write figures, page and model card there")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("cinesynth").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="cinesynth-nano-") as scratch:
        home = home_figures(arguments.model, arguments.windows, Path(scratch) / "home")
        bikes = measure(arguments.model, bikes_samples(), Path(scratch) / "bikes")
        style = load_config(TrainConfig, str(STYLE))
        adaptation = adaptation_figures(arguments.model, style, Path(scratch) / "film-look")
    passed = _table("home domain", home.values, HOME)
    _table("out of domain: bikes.mp4", bikes.values, [])
    passed &= _table("adaptation to the film look", adaptation.values, ADAPTATION)
    tables = {"home": home, "bikes": bikes, "adaptation": adaptation}
    figures = {name: {key: round(float(v), 5) for key, v in table.values.items()} for name, table in tables.items()}
    if arguments.record:
        record_figures(arguments.record, full_recipe(), figures, home)
    targets = {
        name: [" ".join(map(str, target)) for target in bounds]
        for name, bounds in (("home", HOME), ("adaptation", ADAPTATION))
    }
    print(json.dumps({"name": "nano", "figures": figures, "targets": targets, "pass": passed}))


def _table(title: str, figures: dict[str, float], targets: list[Target]) -> bool:
    print(f"\n{title}")
    passed = True
    for key, value in figures.items():
        marks = []
        for _, sign, bound in (target for target in targets if target[0] == key):
            limit = figures[bound] if isinstance(bound, str) else bound
            met = bool({"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[sign])
            passed &= met
            marks.append(f"{'ok' if met else 'MISSED'} ({sign} {bound})")
        print(f"  {key:45} {value:10.4f}  {', '.join(marks)}")
    for key in sorted({target[0] for target in targets} - set(figures)):  # an interval of too few groups
        print(f"  {key:45} {'-':>10}  MISSED (not measured)")
        passed = False
    return passed


if __name__ == "__main__":
    main()
