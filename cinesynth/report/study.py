"""The page of a study: what its data show, tables and charts, and every cell, or why it is empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cinesynth.report.curves import study_chart
from cinesynth.report.page import write_page
from cinesynth.runs import Run
from cinesynth.studies.cells import Cell, Outcome
from cinesynth.studies.config import StudyConfig
from cinesynth.studies.findings import Chart, Findings


@dataclass(frozen=True)
class Page:
    """What the page is made of."""

    config: StudyConfig
    question: str
    findings: Findings
    cells: Sequence[tuple[Cell, Outcome]]

    def counted(self) -> list[tuple[str, str]]:
        """N and seeds, as the head of the page states them."""
        config = self.config
        windows = config.generate.max_windows
        return [
            ("model", config.model),
            ("trained on", f"{config.home} ({config.domains[config.home]})"),
            ("never trained on", f"{config.away} ({config.domains[config.away]})"),
            ("ranks", ", ".join(map(str, config.ranks))),
            ("seeds", ", ".join(map(str, config.seeds))),
            ("windows", f"{'all' if windows is None else f'at most {windows}'} of split {config.generate.split}"),
            ("steps", f"{config.train.optimizer.steps:,}"),
            ("cells", f"{sum(o.is_complete for _, o in self.cells)} of {len(self.cells)} complete"),
        ]

    def charts(self) -> list[tuple[Chart, Markup]]:
        """Each chart with its drawing; those without a point are left out."""
        return [(chart, study_chart(chart)) for chart in self.findings.charts if any(chart.series.values())]


def write_study_page(page: Page, run: Run) -> str:
    """Write `report.html` into the study's folder; returns its uri."""
    return write_page(run.folder, "report.html", "study.html.j2", page=page, run=run, config=page.config)
