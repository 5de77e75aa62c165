"""The page of an expert review: rates or ratings with their intervals, then strengths, agreement and raters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cinesynth.outline import sized
from cinesynth.report.page import number, signed, write_page
from cinesynth.studies.review.analysis import Analysis, Part
from cinesynth.studies.review.design import Design
from cinesynth.studies.review.folder import ReviewFolder
from cinesynth.studies.review.intervals import Estimate


def write_review_report(name: str, review: ReviewFolder, found: Analysis, pass_share: float) -> str:
    """Write `report.html` into a review's folder; returns its uri.

    Args:
        name: of the review.
        review: what was shown.
        found: its figures.
        pass_share: of right answers to checks, below which a rater failed.
    """
    design = review.design
    failed = [facts.rater for facts in found.raters if facts.failed]
    parts = [("All raters", found.every)]
    if found.attentive is not None:
        parts.insert(0, (f"Without the {sized(len(failed), 'rater')} who failed the attention checks", found.attentive))
    return write_page(
        review.folder,
        "report.html",
        "review.html.j2",
        review_name=name,
        design=design,
        labels={question.name: question.text for question in design.questions},
        verdict=verdict(design, found.shown),
        parts=parts,
        raters=found.raters,
        failed=failed,
        pass_share=pass_share,
        checks=sum(1 for item in design.sequences[0] if design.items[item].expected),
        percent=percent,
        percents=percents,
        span=_span,
    )


def verdict(design: Design, part: Part) -> str:
    """One sentence: in which questions an arm is shown to be preferred, or rated otherwise than the baseline."""
    clauses = list(_preference_clauses(part)) if design.format == "pairs" else list(_rating_clauses(design, part))
    asked = [q.text.lower() for q in design.questions]
    if not clauses:
        estimates = [p.rate for p in part.preferences] + [r.difference for r in part.ratings if r.difference]
        few = bool(estimates) and all(e.low is None or e.too_narrow for e in estimates)
        why = "there are fewer than 8 raters and 8 groups of windows" if few else "the intervals hold no difference"
        return f"No difference is shown in {listed(asked)}: {why}."
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _preference_clauses(part: Part) -> Iterator[str]:
    """One clause for each arm that is preferred over another one, with all questions in which it is."""
    found: dict[tuple[str, str], list[str]] = {}
    for p in part.preferences:
        if p.rate.excludes(0.5):
            pair = (p.arm, p.over) if p.rate.value > 0.5 else (p.over, p.arm)
            found.setdefault(pair, []).append(f"{p.question} ({percent(max(p.rate.value, 1 - p.rate.value))})")
    for (better, worse), questions in found.items():
        yield f"{better} is preferred over {worse} in {listed(questions)}"


def _rating_clauses(design: Design, part: Part) -> Iterator[str]:
    """One clause for each arm that is rated otherwise than the baseline."""
    found: dict[str, list[str]] = {}
    for r in part.ratings:
        if r.difference is not None and r.difference.excludes(0):
            found.setdefault(r.arm, []).append(f"{r.question} ({signed(r.difference.value, 2)})")
    for arm, questions in found.items():
        yield f"{arm} is rated otherwise than {design.arms[0]} in {listed(questions)}"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def percent(value: float) -> str:
    """A share in whole percent."""
    return f"{100 * value:.0f} %"


def percents(e: Estimate) -> str:
    """A share's interval in whole percent; a dash for none."""
    return "–" if e.low is None or e.high is None else f"[{100 * e.low:.0f}, {100 * e.high:.0f}] %"


def _span(e: Estimate) -> str:
    return "–" if e.low is None or e.high is None else f"[{number(e.low, 3)}, {number(e.high, 3)}]"
