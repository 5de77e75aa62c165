"""What a page shows of a training stage: its curves, the held-out loss by noise level, its settings.

`write_train_report` makes a page of one train run from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from cinesynth.config import TrainConfig, TrainSettings
from cinesynth.metrics.catalogue import label
from cinesynth.report.checkpoints import validation_scenes
from cinesynth.report.curves import band_curve, held_out_curve, loss_curve, progress_curve
from cinesynth.report.page import write_page
from cinesynth.runs import Run, read_events
from cinesynth.storage import Storage
from cinesynth.train.events import SIGMA_BANDS, training_steps, validations
from cinesynth.train.validations import FOLDER, read_records
from cinesynth.wan.family import TARGET_ALIASES


def told_targets(targets: str | tuple[str, ...]) -> str:
    """What an adapter is put on, in words."""
    groups = TARGET_ALIASES.get(targets, targets) if isinstance(targets, str) else targets
    return f"those that match {groups}" if isinstance(groups, str) else ", ".join(groups)


_NAMES = {"adamw": "AdamW", "muon": "Muon"}


@dataclass(frozen=True)
class Training:
    """The events of a training stage, in the order of steps."""

    settings: TrainSettings
    steps: list[dict[str, Any]]
    """`step`, `loss`, `lr`, `grad_norm`, `loss_from_sigma` and more of every optimiser step."""
    held_out: list[dict[str, Any]]
    """`step`, `val_loss`, and `val_loss/<sigma>` of every validation; empty where nothing is held out."""
    held_out_otherwise: int = 0
    """Validations on other windows or noise levels, before the run was continued with these."""
    by_videos: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    """Records of the validations by videos, by step ascending, made like the newest one."""

    @classmethod
    def read(cls, settings: TrainSettings, folder: Storage) -> Training:
        """From a train run's folder."""
        records = read_records(folder.child(FOLDER))
        alike = {step: record for step, record in records.items() if record["set"] == records[max(records)]["set"]}
        events = read_events(folder)
        return cls(settings, training_steps(events), *validations(events), alike)

    @classmethod
    def of(cls, settings: TrainSettings, events: Sequence[dict[str, Any]]) -> Training:
        """From events as they were logged."""
        return cls(settings, training_steps(events), *validations(events))

    @property
    def sigmas(self) -> list[str]:
        """Noise levels of the held-out loss, ascending."""
        names = {key.partition("/")[2] for event in self.held_out for key in event if key.startswith("val_loss/")}
        return sorted(names, key=float)

    def loss_svg(self) -> Markup | None:
        """Chart of training loss and learning rate."""
        if not self.steps:
            return None
        columns = [[event[key] for event in self.steps] for key in ("step", "loss", "lr")]
        return loss_curve(*columns)

    def bands_svg(self) -> Markup | None:
        """Chart of the training loss by noise level; none for runs of before it was recorded."""
        curves: dict[str, tuple[list[int], list[float]]] = {}
        for event in self.steps:
            for start, loss in event.get("loss_from_sigma", {}).items():
                steps, losses = curves.setdefault(start, ([], []))
                steps.append(event["step"])
                losses.append(loss)
        named = {f"σ {start}-{float(start) + 1 / SIGMA_BANDS:g}": curves[start] for start in sorted(curves, key=float)}
        return band_curve(named) if named else None

    def lpips_svg(self) -> Markup | None:
        """Chart of LPIPS over the checkpoints that were validated; none with fewer than two."""
        if len(self.by_videos) < 2:
            return None
        curve = list(self.by_videos), [record["figures"]["lpips"] for record in self.by_videos.values()]
        return progress_curve({"LPIPS": curve}, "LPIPS to the real windows", "optimiser step")

    def video_rows(self) -> list[tuple[int, dict[str, float]]]:
        """(step, figures by label) of each validation by videos."""
        return [
            (step, {label(name): value for name, value in record["figures"].items()})
            for step, record in self.by_videos.items()
        ]

    def held_out_svg(self) -> Markup | None:
        """Chart of the held-out loss; none with fewer than two validations."""
        if len(self.held_out) < 2:
            return None
        by_sigma = {sigma: [event[f"val_loss/{sigma}"] for event in self.held_out] for sigma in self.sigmas}
        steps, mean = ([event[key] for event in self.held_out] for key in ("step", "val_loss"))
        return held_out_curve(steps, mean, by_sigma)

    def held_out_rows(self) -> list[tuple[str, float, float]]:
        """(name, first, last) of the held-out loss by noise level, then over all."""
        if not self.held_out:
            return []
        keys = [(f"σ {sigma}", f"val_loss/{sigma}") for sigma in self.sigmas] + [("mean", "val_loss")]
        return [(name, self.held_out[0][key], self.held_out[-1][key]) for name, key in keys]

    def facts(self) -> list[tuple[str, str]]:
        """The settings that decide the result, as (name, value)."""
        s, o = self.settings, self.settings.optimizer
        name = _NAMES[o.algorithm]
        stop = s.early_stop
        ends = (
            "no"
            if stop is None
            else f"after {stop.patience} validations whose LPIPS did not fall by {stop.min_delta:g}"
        )
        parents = ", ".join(f"{parent.ref} × {parent.scale:g}" for parent in s.parents)
        return [
            ("stage", s.stage),
            ("rank, alpha", f"{s.lora.rank}, {s.lora.alpha:g}"),
            ("adapted layers", told_targets(s.lora.targets)),
            ("steps", f"{o.steps:,}"),
            ("windows per step", str(o.batch_size)),
            ("learning rate", f"{o.lr:g}, cosine to 0 after {100 * o.warmup:g} % warm-up"),
            (
                "optimiser",
                f"{name}, betas {o.betas[0]:g} and {o.betas[1]:g}, weight decay {o.weight_decay:g}",
            ),
            ("gradient norm at most", f"{o.max_grad_norm:g}"),
            ("noise level", f"{s.flow.distribution.replace('_', '-')}, shift {s.flow.shift:g}"),
            ("caption dropout", f"{s.caption_dropout:g}"),
            ("parents, live and frozen", parents or "none"),
            ("ends early", ends),
            ("seed", str(s.seed)),
        ]


def write_train_report(config: TrainConfig, run: Run) -> str:
    """Write `report.html` of one train run into its folder; returns its uri. Needs the events only."""
    training = Training.read(config, run.folder)
    return write_page(
        run.folder,
        "report.html",
        "train.html.j2",
        config=config,
        run=run,
        training=training,
        scenes=validation_scenes(run.folder, training.by_videos),
    )
