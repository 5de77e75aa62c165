"""The commands of an expert review: `python -m cinesynth.studies.review design|analyse|export --config review.yaml`.

design makes the review's folder; analyse writes its report.html, analysis.json and answers.csv; export writes
answers.csv alone, or prints it. Exit code 2: the user can fix what is wrong, and the last line says it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence

from cinesynth.errors import CinesynthError, DatasetError
from cinesynth.settings import load_config
from cinesynth.settings_help import help_text
from cinesynth.storage import check_lasting
from cinesynth.studies.review.analysis import Analysis, Row, analyse, as_csv, read_rows
from cinesynth.studies.review.config import ReviewConfig
from cinesynth.studies.review.folder import ReviewFolder

ANSWERS = "answers.csv"


def main(argv: list[str] | None = None) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(
        prog="python -m cinesynth.studies.review",
        description=" ".join((__doc__ or "").split()),
        epilog=f"key=value, nested with dots, e.g. arms.base=videos/base\n\n{help_text(ReviewConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("design", "analyse", "export"))
    parser.add_argument("--config", help="YAML file; the same for all commands")
    parser.add_argument("--stdout", action="store_true", help="of export: print in place of writing")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        config = load_config(ReviewConfig, arguments.config, arguments.overrides)
        check_lasting(config.storage)
        if arguments.command == "design":
            _design(config)
        elif arguments.command == "analyse":
            _analyse(config)
        else:
            _export(config, arguments.stdout)
    except CinesynthError as e:
        sys.stdout.flush()
        print(f"error: {e}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def _design(config: ReviewConfig) -> None:
    from cinesynth.studies.review.make import make_review  # loads OpenCV

    design = (review := make_review(config)).design
    shown = len(design.sequences[0])
    print(f"review {config.name}: {len(design.windows)} windows of {', '.join(design.arms)}")
    print(f"  {shown} items for each of {len(design.sequences)} raters, {config.checks} of them attention checks")
    print(f"  {review.folder.uri}")
    print(
        f"serve it with `reviews={config.name}` in the service's configuration; each rater needs a key of scope review"
    )


def _analyse(config: ReviewConfig) -> None:
    from cinesynth.report.review import write_review_report

    review, rows = _answered(config)
    found = analyse(review.design, rows, config.pass_share)
    review.folder.write_text(ANSWERS, as_csv(rows))
    review.folder.write_json("analysis.json", dataclasses.asdict(found))
    page = write_review_report(config.name, review, found, config.pass_share)
    print("\n".join(_told(found)))
    print(f"  {page}")


def _export(config: ReviewConfig, to_stdout: bool) -> None:
    review = ReviewFolder.open(config.storage, config.name)
    text = as_csv(read_rows(review))
    if to_stdout:
        print(text, end="")
        return
    review.folder.write_text(ANSWERS, text)
    print(f"{text.count(chr(10)) - 1} answers in {review.folder.uri}/{ANSWERS}")


def _answered(config: ReviewConfig) -> tuple[ReviewFolder, list[Row]]:
    review = ReviewFolder.open(config.storage, config.name)
    rows = read_rows(review)
    if all(row.check for row in rows):
        raise DatasetError(f"review {config.name!r} has no answers yet; raters give them at /review of the service")
    return review, rows


def _told(found: Analysis) -> Sequence[str]:
    part = found.shown
    failed = sum(1 for facts in found.raters if facts.failed)
    told = [f"{part.raters} raters, {part.items} items, {part.answers} answers; {failed} raters failed the checks"]
    for p in part.preferences:
        low, high = p.rate.low or 0.0, p.rate.high or 0.0
        told.append(f"  {p.question}: {p.arm} over {p.over} {p.rate.value:.0%} [{low:.0%}, {high:.0%}], {p.n} answers")
    for r in part.ratings:
        told.append(f"  {r.question}: {r.arm} {r.mean.value:.2f} of 5, {r.n} answers")
    return told


if __name__ == "__main__":
    main()
