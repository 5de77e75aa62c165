"""What a review found: per question how often which arm was preferred (or how it was rated), strengths, and agreement.

All figures are given with every rater and, where some failed the attention checks, without those.
"""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from cinesynth.studies.review.agreement import krippendorff_alpha
from cinesynth.studies.review.design import Design
from cinesynth.studies.review.folder import ReviewFolder
from cinesynth.studies.review.intervals import Estimate, estimate, share
from cinesynth.studies.review.strengths import NoStrengths, bradley_terry


@dataclass(frozen=True)
class Row:
    """One question of one item, as one rater answered it.

    Attributes:
        rater: its place, as `rater 3`: keys have names, tables have none.
        arms: which made the videos, left to right.
        answer: as the rater gave it.
        right: of an attention check, whether it is; None where nothing is expected.
        check: whether the item is an attention check.
    """

    rater: str
    item: str
    window: str
    group: str
    question: str
    arms: tuple[str, ...]
    answer: str
    right: bool | None
    check: bool
    seconds: float
    plays: int
    changes: int
    answered_at: float

    @property
    def preferred(self) -> str:
        """The arm that was preferred, or `tie`."""
        return "tie" if self.answer == "tie" else self.arms["AB".index(self.answer)]


@dataclass(frozen=True)
class RaterFacts:
    """How far a rater came, and how the rater's attention checks went; `failed` is None where none was answered."""

    rater: str
    answered: int
    items: int
    right: int
    asked: int
    failed: bool | None
    median_seconds: float


@dataclass(frozen=True)
class Preference:
    """How often an arm was preferred over another one in a question. `rate` counts ties half."""

    question: str
    arm: str
    over: str
    wins: int
    ties: int
    losses: int
    rate: Estimate

    @property
    def n(self) -> int:
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class Strength:
    """An arm's Bradley-Terry strength against the baseline's, on the logit scale."""

    question: str
    arm: str
    strength: Estimate


@dataclass(frozen=True)
class Rating:
    """An arm's mean on the scale from 1 to 5, and its difference to the baseline's mean."""

    question: str
    arm: str
    n: int
    mean: Estimate
    difference: Estimate | None


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha of a question; None where all answers are equal, or no item was answered twice."""

    question: str
    nominal: float | None
    ordinal: float | None


@dataclass(frozen=True)
class Part:
    """The figures of some raters' answers; attention checks are none of them."""

    raters: int
    windows: int
    items: int
    answers: int
    preferences: list[Preference]
    strengths: list[Strength]
    without_strengths: dict[str, str]
    """Question to why it has no strengths."""
    ratings: list[Rating]
    agreement: list[Agreement]


@dataclass(frozen=True)
class Analysis:
    """A review's figures: of all raters, and without those who failed (None where nobody did, or all)."""

    raters: list[RaterFacts]
    every: Part
    attentive: Part | None

    @property
    def shown(self) -> Part:
        """The part to read first."""
        return self.attentive or self.every


def read_rows(review: ReviewFolder) -> list[Row]:
    """Everything that was answered: by place, in the order in which it was shown."""
    design, rows = review.design, []
    for place in sorted(review.raters()):
        answers = review.answers(place)
        for item in design.sequences[place]:
            if item not in answers:
                continue
            given, window, expected = answers[item], design.window_of(item), design.items[item].expected
            for question, answer in given.answers.items():
                rows.append(
                    Row(
                        rater=rater_name(place),
                        item=item,
                        window=window.id,
                        group=window.group,
                        question=question,
                        arms=design.arms_of(item),
                        answer=answer,
                        right=answer in expected[question] if question in expected else None,
                        check=bool(expected),
                        seconds=given.seconds,
                        plays=given.plays,
                        changes=given.changes,
                        answered_at=given.answered_at,
                    )
                )
    return rows


def rater_name(place: int) -> str:
    """A rater in tables and pages."""
    return f"rater {place + 1}"


def analyse(design: Design, rows: Sequence[Row], pass_share: float) -> Analysis:
    """The figures of a review.

    Args:
        design: of it.
        rows: one answer at least that is no check's.
        pass_share: of right answers to checks, below which a rater has failed.
    """
    raters = [_facts(design, rater, list(of), pass_share) for rater, of in itertools.groupby(rows, lambda r: r.rater)]
    failed = {facts.rater for facts in raters if facts.failed}
    judged = [row for row in rows if not row.check]
    kept = [row for row in judged if row.rater not in failed]
    return Analysis(raters, _part(design, judged), _part(design, kept) if kept and failed else None)


def _facts(design: Design, rater: str, rows: Sequence[Row], pass_share: float) -> RaterFacts:
    checked = [row.right for row in rows if row.right is not None]
    seconds = {row.item: row.seconds for row in rows}
    return RaterFacts(
        rater=rater,
        answered=len(seconds),
        items=len(design.sequences[int(rater.split()[-1]) - 1]),
        right=sum(checked),
        asked=len(checked),
        failed=sum(checked) < pass_share * len(checked) if checked else None,
        median_seconds=statistics.median(seconds.values()),
    )


def _part(design: Design, rows: Sequence[Row]) -> Part:
    of = {q.name: [row for row in rows if row.question == q.name] for q in design.questions}
    of = {question: some for question, some in of.items() if some}
    pairs = design.format == "pairs"
    strengths, without = [], {}
    for question, some in of.items() if pairs else ():
        try:
            strengths += _strengths(design.arms, question, some)
        except NoStrengths as e:
            without[question] = str(e)
    return Part(
        raters=len({row.rater for row in rows}),
        windows=len({row.window for row in rows}),
        items=len({(row.rater, row.item) for row in rows}),
        answers=len(rows),
        preferences=[p for q, some in of.items() for p in _preferences(design.arms, q, some)] if pairs else [],
        strengths=strengths,
        without_strengths=without,
        ratings=[] if pairs else [r for q, some in of.items() for r in _ratings(design.arms, q, some)],
        agreement=[_agreement(design, question, some) for question, some in of.items()],
    )


def _preferences(arms: Sequence[str], question: str, rows: Sequence[Row]) -> Iterable[Preference]:
    """The later arm of each pair over the earlier one, so that the baseline is what others are compared with."""
    for over, arm in itertools.combinations(arms, 2):
        some = [row for row in rows if set(row.arms) == {arm, over}]
        if not some:
            continue
        found = [row.preferred for row in some]

        def score(row: Row, arm: str = arm) -> float:
            return 0.5 if row.preferred == "tie" else float(row.preferred == arm)

        wins, ties, losses = (found.count(name) for name in (arm, "tie", over))
        yield Preference(question, arm, over, wins, ties, losses, share(score, some))


def _strengths(arms: Sequence[str], question: str, rows: Sequence[Row]) -> list[Strength]:
    def of_arm(n: int) -> Estimate:
        return estimate(lambda some: float(bradley_terry(_wins(arms, some))[n]), rows)

    return [Strength(question, arm, of_arm(n)) for n, arm in enumerate(arms) if n]


def _wins(arms: Sequence[str], rows: Sequence[Row]) -> NDArray[np.float64]:
    """[K, K]; how often the row's arm was preferred over the column's, ties half."""
    wins = np.zeros((len(arms), len(arms)))
    for row in rows:
        left, right = (arms.index(arm) for arm in row.arms)
        score = {"A": 1.0, "B": 0.0, "tie": 0.5}[row.answer]
        wins[left, right] += score
        wins[right, left] += 1 - score
    return wins


def _ratings(arms: Sequence[str], question: str, rows: Sequence[Row]) -> Iterable[Rating]:
    def mean(arm: str, some: Sequence[Row]) -> float:
        found = [int(row.answer) for row in some if row.arms == (arm,)]
        if not found:
            raise ValueError(f"{arm} has no answers")
        return sum(found) / len(found)

    def difference(arm: str, some: Sequence[Row]) -> float:
        return mean(arm, some) - mean(arms[0], some)

    rated = [arm for arm in arms if any(row.arms == (arm,) for row in rows)]
    for arm in rated:
        own = [row for row in rows if row.arms == (arm,)]
        compared = arm != arms[0] and arms[0] in rated
        yield Rating(
            question,
            arm,
            len(own),
            estimate(lambda some, arm=arm: mean(arm, some), own),  # type: ignore[misc]
            estimate(lambda some, arm=arm: difference(arm, some), rows) if compared else None,  # type: ignore[misc]
        )


def _agreement(design: Design, question: str, rows: Sequence[Row]) -> Agreement:
    """Of the raters who saw the same window in the same arms, whatever the sides."""
    units: dict[tuple[str, frozenset[str]], list[float]] = {}
    for row in rows:
        units.setdefault((row.window, frozenset(row.arms)), []).append(_value(design.arms, row))
    answers = list(units.values())
    return Agreement(question, krippendorff_alpha(answers, "nominal"), krippendorff_alpha(answers, "ordinal"))


def _value(arms: Sequence[str], row: Row) -> float:
    """An answer as a number that means the same for every rater: -1 the earlier arm, 0 a tie, 1 the later one."""
    if len(row.arms) == 1:
        return float(row.answer)
    return 0.0 if row.answer == "tie" else 1.0 if row.preferred == max(row.arms, key=arms.index) else -1.0


COLUMNS = (
    "rater", "item", "check", "window", "group", "question", "left", "right", "answer", "preferred", "as_expected",
    "seconds", "plays", "changes", "answered_at",
)  # fmt: skip


def as_csv(rows: Sequence[Row]) -> str:
    """One line an answer, with which arm stood on which side. On scales `left` is the arm that was rated."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        pair = len(row.arms) == 2
        writer.writerow(
            [
                row.rater,
                row.item,
                "yes" if row.check else "no",
                row.window,
                row.group,
                row.question,
                row.arms[0],
                row.arms[1] if pair else "",
                row.answer,
                row.preferred if pair else "",
                {True: "yes", False: "no", None: ""}[row.right],
                f"{row.seconds:.1f}",
                row.plays,
                row.changes,
                datetime.fromtimestamp(row.answered_at, UTC).isoformat(timespec="seconds"),
            ]
        )
    return buffer.getvalue()
